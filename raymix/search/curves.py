"""Trainings for scaling curves: each domain alone, all together, one beside another, by amount."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from raymix.core.errors import SearchError, nearest
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.core.trial import History, Idle, Proposal, Role

ALONE, TOGETHER, PAIR, BASE = "alone", "together", "pair", "base"
"""What a trial is of: `note["curve"]`."""

FRACTIONS = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
LEAST = 3
"""Fractions; with fewer no law can be fitted."""


@dataclass(frozen=True)
class Curves:
    """Trains on nested parts of the data, each for the same number of epochs; nothing is searched.

    The scaling studies of DMT's source (arXiv 2310.05492): (a) each domain alone at `fractions` of
    its rows, (b) all together at the same fractions of all, (c) for each of `pairs` the first
    domain at the largest fraction with the second at each of them. A part is a pool, so that a
    smaller one is inside a larger one, and with equal `repeat` (the seed) a domain's rows are the
    same in (a), (b) and (c). The budget is `epochs` times the rows, in examples: a short training
    takes few steps, and the learning rate has its whole schedule in them.

    All of it with `repeats` seeds on each of `models`; of models other than the first the base is
    evaluated, too. Where a fraction of a domain is less than one row, the point is left out. What a
    trial is of stands in its note: `{"curve": "alone", "domain": "math", "fraction": 0.25, "rows":
    {"math": 120}}`, or "together", or "pair" with "fixed" and "varied", or "base".
    """

    fractions: tuple[float, ...] = FRACTIONS
    epochs: int = 3
    pairs: tuple[tuple[str, str], ...] = ()
    repeats: int = 3
    models: tuple[str, ...] = ("target",)

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise SearchError(f"Curves.fractions must be above 0 and at most 1, got {fraction}")
        if len(set(self.fractions)) < max(LEAST, len(self.fractions)):
            raise SearchError(
                f"Curves.fractions must be at least {LEAST} that differ, or no law can be fitted; "
                f"got {', '.join(f'{fraction:g}' for fraction in self.fractions) or 'none'}"
            )
        for what, number in (("epochs", self.epochs), ("repeats", self.repeats)):
            if number < 1:
                raise SearchError(f"Curves.{what} must be at least 1, got {number}")
        if not self.models:
            raise SearchError("Curves.models is empty: name at least one model")

    def check(self, space: Space) -> None:
        """Refuse pairs that are none of the domains; raises SearchError."""
        for pair in self.pairs:
            if len(pair) != 2 or pair[0] == pair[1]:
                raise SearchError(
                    f"Curves.pairs must be of two different domains, got {', '.join(pair)}"
                )
            for name in pair:
                if name not in space.names:
                    raise SearchError(
                        f"Curves.pairs: unknown domain '{name}'{nearest(name, space.names)}; "
                        f"known: {', '.join(space.names)}"
                    )

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The next of `proposals`."""
        wanted, own = self.proposals(space), history.own
        return wanted[len(own)] if len(own) < len(wanted) else Idle.DONE

    def proposals(self, space: Space) -> list[Proposal]:
        """All that is to be trained, repeat by repeat; what only evaluates comes first."""
        self.check(space)
        bases = [
            Proposal(space.prior, model=model, role=Role.MEASURE, note={"curve": BASE})
            for model in self.models[1:]
        ]
        trained = [
            replace(proposal, model=model, repeat=repeat)
            for repeat in range(self.repeats)
            for model in self.models
            for proposal in self._once(space)
        ]
        return bases + trained

    def left_out(self, space: Space) -> list[tuple[str, float]]:
        """Domains and fractions that come to less than one row."""
        return [(d.name, f) for d in space.domains for f in self.fractions if not rows_at(d, f)]

    def _once(self, space: Space) -> Iterator[Proposal]:
        known = {domain.name: domain for domain in space.domains}
        ordered = sorted(self.fractions, reverse=True)
        for domain in space.domains:
            for fraction in ordered:
                note = {"curve": ALONE, "domain": domain.name, "fraction": fraction}
                yield from self._of(space, {domain.name: rows_at(domain, fraction)}, note, 1)
        for fraction in ordered:
            rows = {domain.name: rows_at(domain, fraction) for domain in space.domains}
            note = {"curve": TOGETHER, "fraction": fraction}
            yield from self._of(space, {n: count for n, count in rows.items() if count}, note, 2)
        for fixed, varied in self.pairs:
            for fraction in ordered:
                rows = {
                    fixed: rows_at(known[fixed], ordered[0]),
                    varied: rows_at(known[varied], fraction),
                }
                note = {"curve": PAIR, "fixed": fixed, "varied": varied, "fraction": fraction}
                yield from self._of(space, rows, note, 2)

    def _of(
        self, space: Space, rows: Mapping[str, int], note: Mapping[str, object], least: int
    ) -> Iterator[Proposal]:
        """The training on so many rows by domain; none with fewer than `least` domains in it."""
        if len(rows) < least or not all(rows.values()):
            return
        counts = [rows.get(domain.name, 0) for domain in space.domains]
        yield Proposal(
            Mixture.normalised(space.names, counts),
            budget=Budget(self.epochs * sum(counts), Unit.EXAMPLES),
            # A pool is at least a row; of a domain without a share none is drawn.
            pools=tuple(n or d.rows for n, d in zip(counts, space.domains, strict=True)),
            note={**note, "rows": dict(rows)},
        )


def rows_at(domain: Domain, fraction: float) -> int:
    """Rows in that fraction of the domain, to the nearest; 0 where it is less than one."""
    exact = fraction * domain.rows
    # A third of three rows is one, though floats may say a little less.
    return max(1, math.floor(exact + 0.5)) if exact >= 1 - 1e-9 else 0
