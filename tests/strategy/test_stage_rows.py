"""What the real sampler makes of the stages: which rows, in which order, how often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.data.batches import foresee, joined, samplers
from raymix.strategy import DMT, MultiTask, ProMoT, Sequential

NAMES = ("math", "code", "chat")
SIZES = (90, 200, 400)
MIXTURE = Mixture.of({"math": 0.3, "code": 0.2, "chat": 0.5})


@dataclass(frozen=True)
class Lengths:
    domain: str
    tokens: np.ndarray
    loss_tokens: np.ndarray


def tables() -> list[Lengths]:
    rng = np.random.default_rng(0)
    made = []
    for name, size in zip(NAMES, SIZES, strict=True):
        tokens = rng.integers(4, 60, size)
        made.append(Lengths(name, tokens, tokens // 2))
    return made


TABLES = tables()


def space(budget: Budget, cap: float = float("inf")) -> Space:
    domains = tuple(
        Domain(t.domain, len(t.tokens), int(t.tokens.sum()), int(t.loss_tokens.sum()))
        for t in TABLES
    )
    return Space(domains, budget, MIXTURE, (0.0,) * 3, (1.0,) * 3, (cap,) * 3)


def drawn(strategy, budget, seed=3, pack=None):
    """Per stage and domain the rows in the order in which they are drawn, and the counts."""
    within = space(budget)
    stages = strategy.stages(MIXTURE, budget, {})
    rows, counts = [], []
    for sampler in samplers(TABLES, within, stages, seed, pack):
        rows.append(dict(zip(NAMES, sampler.ahead(), strict=True)))
        counts.append({d.domain: d for d in foresee(sampler).drawn})
    return stages, rows, counts


@pytest.mark.parametrize("k", [0.0, 0.1, 0.25, 1.0])
def test_dmt_draws_exactly_the_first_rows_of_stage_one_again(k):
    stages, (first, second), counts = drawn(DMT(("math", "code"), k=k), Budget(600))
    assert set(stages[1].replay) == ({"math", "code"} if k else set())
    for name in ("math", "code"):
        n = len(first[name])
        again = int(np.floor(k * n + 0.5))
        assert len(second[name]) == again
        assert np.array_equal(second[name], first[name][:again])
        assert counts[1][name].unique_rows == 0
    assert len(first["chat"]) == 0
    # 600 / (1 + k / 2) of each kind; general rows are the rest, all of them fresh.
    assert sum(map(len, first.values())) == round(300 / (1 + k / 2))
    assert sum(len(rows) for stage in (first, second) for rows in stage.values()) == 600
    assert counts[1]["chat"].unique_rows == len(second["chat"])


def test_a_replay_counts_towards_the_epochs():
    stages, _, counts = drawn(DMT("math", k=1.0), Budget(600))
    # a = 600 / 1.3: 138 of 90 rows in either stage.
    assert [c["math"].rows for c in counts] == [138, 138]
    total = joined([tuple(c.values()) for c in counts], [s.budget.unit for s in stages])
    assert total[0].epochs == pytest.approx(2 * 138 / 90)
    assert total[0].unique_rows == 90
    assert sum(part.rows for part in total) == 600


@pytest.mark.parametrize("unit", [Unit.TOKENS, Unit.LOSS_TOKENS])
def test_in_tokens_dmt_is_right_to_a_row(unit):
    stages, (first, second), counts = drawn(DMT(("math", "code"), k=0.25), Budget(8000, unit))
    column = "tokens" if unit is Unit.TOKENS else "loss_tokens"
    for name in ("math", "code"):
        asked = [s.mixture.as_dict()[name] * s.budget.amount for s in stages]
        assert asked[1] == pytest.approx(0.25 * asked[0], abs=0.51)
        for stage, wanted in zip(counts, asked, strict=True):
            assert abs(getattr(stage[name], column) - wanted) <= 60
        assert np.array_equal(second[name], first[name][: len(second[name])])


def test_in_packs_the_same_rows_come_again():
    _, (first, second), counts = drawn(DMT("math", k=0.5), Budget(6000, Unit.TOKENS), pack=128)
    n = len(second["math"])
    assert n > 10
    assert np.array_equal(second["math"], first["math"][:n])
    assert counts[1]["math"].unique_rows == 0


def test_sequential_stages_draw_the_rows_that_multi_task_draws():
    """The same rows of each domain, one domain after the other."""
    _, (plain,), _ = drawn(MultiTask(), Budget(600))
    _, stages, _ = drawn(Sequential(("chat", "math", "code")), Budget(600))
    for name, stage in zip(("chat", "math", "code"), stages, strict=True):
        assert np.array_equal(stage[name], plain[name])
        assert sum(map(len, stage.values())) == len(plain[name])


def test_sequential_replay_is_of_the_first_rows():
    _, stages, counts = drawn(Sequential(("chat", "math", "code"), 0.1), Budget(600))
    assert [len(s["chat"]) for s in stages] == [300, 18, 8]
    assert [len(s["math"]) for s in stages] == [0, 162, 4]
    for stage, count in zip(stages[1:], counts[1:], strict=True):
        n = len(stage["chat"])
        assert np.array_equal(stage["chat"], stages[0]["chat"][:n])
        assert count["chat"].unique_rows == 0
    assert np.array_equal(stages[2]["math"], stages[1]["math"][:4])


def test_promots_model_sees_the_rows_that_the_prompt_saw():
    _, (first, second), counts = drawn(ProMoT("code"), Budget(300))
    assert len(first["code"]) == 150
    assert np.array_equal(second["code"], first["code"][:30])
    assert counts[1]["code"].unique_rows == 0
