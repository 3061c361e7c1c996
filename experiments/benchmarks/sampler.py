"""How fast the sampler draws, and how close realised shares stay to what was asked.

A million draws over five domains, in rows and in tokens. Prints a table and, last, one JSON object:
`draws_per_s` (the slowest unit), `seconds`, `max_share_error` (examples, every prefix longer than
1,000 draws), `worst_token_ratio` (deviation in tokens over the longest row, at every prefix).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymix.core.job import Stage
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.data.sampler import Sampler

DRAWS = 1_000_000
DOMAINS = 5


@dataclass(frozen=True)
class Lengths:
    """Row lengths like those of an SFT domain: log-normal, 8 to 2,048 tokens."""

    domain: str
    tokens: NDArray[np.int64]
    loss_tokens: NDArray[np.int64]


def make_tables() -> list[Lengths]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(DOMAINS):
        tokens = np.clip(rng.lognormal(4.5 + 0.3 * i, 0.8, 5_000 * (i + 1)), 8, 2048).astype(int)
        made.append(Lengths(f"domain{i}", tokens, np.maximum(1, tokens // 2)))
    return made


def make_request(tables: list[Lengths], unit: Unit) -> tuple[Space, Stage]:
    names = tuple(t.domain for t in tables)
    mixture = Mixture.normalised(names, np.random.default_rng(1).dirichlet([2.0] * DOMAINS))
    domains = tuple(
        Domain(t.domain, len(t.tokens), int(t.tokens.sum()), int(t.loss_tokens.sum()))
        for t in tables
    )
    none, full, uncapped = (0.0,) * DOMAINS, (1.0,) * DOMAINS, (float("inf"),) * DOMAINS
    budget = Budget(DRAWS if unit is Unit.EXAMPLES else 10**12, unit)
    return Space(domains, budget, mixture, none, full, uncapped), Stage(mixture, budget)


def main() -> None:
    tables = make_tables()
    figures: dict[str, float] = {"seconds": 0.0}
    print(f"{'unit':<12} {'seconds':>8} {'draws/s':>12} {'largest deviation':>30}")
    for unit in (Unit.EXAMPLES, Unit.TOKENS):
        space, stage = make_request(tables, unit)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            draws = Sampler(tables, space, stage, 0).take(DRAWS)
            times.append(time.perf_counter() - begin)
        seconds = float(np.median(times))
        figures["seconds"] = max(figures["seconds"], seconds)
        columns = [
            np.ones(len(t.tokens), int) if unit is Unit.EXAMPLES else t.tokens for t in tables
        ]
        size = np.empty(DRAWS)
        for d, column in enumerate(columns):
            size[draws.domains == d] = column[draws.rows[draws.domains == d]]
        total = np.cumsum(size)
        deviation = np.zeros(DRAWS)
        for d, share in enumerate(stage.mixture.weights):
            drawn = np.cumsum(size * (draws.domains == d))
            deviation = np.maximum(deviation, np.abs(drawn - share * total))
        if unit is Unit.EXAMPLES:
            figures["max_share_error"] = float((deviation / total)[1000:].max())
            words = f"{figures['max_share_error']:.5f} of the draws so far"
        else:
            figures["worst_token_ratio"] = float(deviation.max() / size.max())
            words = f"{figures['worst_token_ratio']:.3f} longest rows"
        print(f"{unit:<12} {seconds:>8.3f} {DRAWS / seconds:>12,.0f} {words:>30}")
    figures["draws_per_s"] = DRAWS / figures["seconds"]
    print(json.dumps({key: round(value, 6) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
