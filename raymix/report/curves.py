"""Scaling curves of a study: what was measured, the laws, and what mixing and size change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from raymix.core.codec import decode
from raymix.core.mixture import Space
from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.report.law import LEVEL, Fitted, fit
from raymix.report.paired import Difference, differences
from raymix.search.curves import ALONE, BASE, PAIR, TOGETHER
from raymix.study.objective import Objective
from raymix.study.record import Record

SIDES = ("fixed", "varied")


@dataclass(frozen=True)
class Taken:
    """One training of the study: what it was on (`note`) and the eval metrics at its end."""

    model: str
    repeat: int
    note: Mapping[str, object]
    steps: int
    metrics: Mapping[str, float]

    @property
    def curve(self) -> str:
        """Alone, together or pair."""
        return str(self.note["curve"])

    @property
    def fraction(self) -> float:
        """Of the data that is varied."""
        return float(str(self.note["fraction"]))

    def rows(self, domain: str) -> int:
        """Of the domain, in the pool; 0 where it took no part."""
        found = self.note["rows"]
        return int(found.get(domain, 0)) if isinstance(found, Mapping) else 0

    def loss(self, domain: str) -> float:
        """Eval loss, in nats per token."""
        return self.metrics.get(f"eval/{domain}/loss", math.nan)

    def accuracy(self, domain: str) -> float:
        """Share of eval rows that are right to the last token."""
        return self.metrics.get(f"eval/{domain}/accuracy", math.nan)


@dataclass(frozen=True, eq=False)
class Curve:
    """The loss of one domain by rows: a point [P] for each training, the base at 0 rows.

    `domain`: whose loss it is; `rows` are its own but on the fixed side of a pair, where they are
    the varied domain's. `base`: before training, or of a pair the mean of the trainings without the
    varied domain, which is taken as known, though it has their noise.
    """

    domain: str
    base: float
    base_accuracy: float
    fractions: Vector
    repeats: Vector
    rows: Vector
    losses: Vector
    accuracies: Vector

    @cached_property
    def fitted(self) -> Fitted | None:
        """The law; None with too few amounts."""
        return fit(self.rows, self.losses, self.base)

    def at(self, fraction: float) -> tuple[float, float]:
        """Mean loss and accuracy over seeds; NaN where there is none."""
        here = self.fractions == fraction
        if not here.any():
            return math.nan, math.nan
        return float(self.losses[here].mean()), float(self.accuracies[here].mean())

    def slopes(self) -> dict[int, float]:
        """Nats gained by a doubling, on average over the curve, by repeat.

        Least squares of the loss on the logarithm of rows.
        """
        found = {}
        for repeat in np.unique(self.repeats):
            own = self.repeats == repeat
            if len(np.unique(self.rows[own])) > 1:
                slope = np.polyfit(np.log2(self.rows[own]), self.losses[own], 1)[0]
                found[int(repeat)] = -float(slope)
        return found


@dataclass(frozen=True)
class Steeper:
    """Whether another model's curves are steeper than the first's, in nats for each doubling.

    By domain: mean slopes of both, their difference over seeds. `mean`: of the differences over
    domains, with the interval over domains (t, K - 1 degrees); NaN with one domain.
    """

    model: str
    kind: str
    first: Mapping[str, float]
    other: Mapping[str, float]
    each: Mapping[str, Difference]
    mean: Difference

    @property
    def word(self) -> str:
        """Steeper, flatter, or not distinguishable."""
        if not (self.mean.low > 0 or self.mean.high < 0):
            return "not distinguishable"
        return "steeper" if self.mean.low > 0 else "flatter"


@dataclass(frozen=True)
class Compared:
    """Mean paired differences by fraction; negative: a lower loss, so it helps."""

    model: str
    domain: str
    by_fraction: Mapping[float, Difference]
    pair: tuple[str, str] = ("", "")
    side: str = ""

    def told(self, helps: bool) -> list[float]:
        """Fractions at which it helps (or hurts) for certain."""
        return [f for f, d in self.by_fraction.items() if d.real and (d.value < 0) == helps]


@dataclass(frozen=True, eq=False)
class Scaling:
    """The trainings of a scaling study.

    `counted`: domains of the objective (weight above 0), over which models are compared. `failed`:
    trainings without a result.
    """

    space: Space
    models: tuple[str, ...]
    fractions: tuple[float, ...]
    pairs: tuple[tuple[str, str], ...]
    counted: tuple[str, ...]
    bases: Mapping[str, Mapping[str, float]]
    taken: tuple[Taken, ...]
    failed: int
    _known: dict[tuple[object, ...], Curve] = field(default_factory=dict)

    def alone(self, model: str, domain: str) -> Curve:
        """The domain trained by itself."""
        own = (t for t in self._of(model, ALONE) if t.note["domain"] == domain)
        return self._curve((model, ALONE, domain), own, domain, domain)

    def together(self, model: str, domain: str) -> Curve:
        """The domain trained with the same fraction of all others."""
        return self._curve((model, TOGETHER, domain), self._of(model, TOGETHER), domain, domain)

    def pair(self, model: str, pair: tuple[str, str], side: str) -> Curve:
        """The loss of a pair's `side` by rows of the varied domain, the fixed one in full."""
        fixed, varied = pair
        own = [t for t in self._of(model, PAIR) if (t.note["fixed"], t.note["varied"]) == pair]
        domain = fixed if side == SIDES[0] else varied
        zero = self._full(model, fixed)
        base = [
            float(np.mean([m(t, domain) for t in zero])) if zero else math.nan
            for m in (Taken.loss, Taken.accuracy)
        ]
        return self._curve((model, PAIR, pair, side), own, domain, varied, (base[0], base[1]))

    def mixing(self) -> list[Compared]:
        """Together less alone, at equal rows of the domain and equal seeds; one family of tests."""
        keys = [(model, name) for model in self.models for name in self.space.names]
        tables = [self._table(self.together(*key), self.alone(*key)) for key in keys]
        tested = differences(tables)
        return [
            Compared(model, name, self._by(row))
            for (model, name), row in zip(keys, tested, strict=True)
        ]

    def beside(self) -> list[Compared]:
        """What a pair's sides do to each other; one family of tests.

        "fixed": its loss less that without the varied domain. "varied": its loss less that of the
        same rows of it alone.
        """
        keys = [(m, pair, side) for m in self.models for pair in self.pairs for side in SIDES]
        tables = []
        for model, pair, side in keys:
            own = self.pair(model, pair, side)
            other = self.alone(model, pair[1])
            if side == SIDES[0]:
                zero = {t.repeat: t.loss(pair[0]) for t in self._full(model, pair[0])}
                tables.append(
                    self._cells(own) - np.array([zero.get(r, np.nan) for r in self.repeats])
                )
            else:
                tables.append(self._table(own, other))
        tested = differences(tables)
        return [
            Compared(model, pair[side == SIDES[1]], self._by(row), pair, side)
            for (model, pair, side), row in zip(keys, tested, strict=True)
        ]

    def steeper(self, model: str, kind: str = ALONE) -> Steeper:
        """The curves of `model` against the first model's, over the counted domains."""
        of = self.alone if kind == ALONE else self.together
        first, other, gaps = {}, {}, {}
        for name in self.counted:
            curves = [of(m, name).slopes() for m in (self.models[0], model)]
            shared = sorted(set(curves[0]) & set(curves[1]))
            if shared:
                first[name], other[name] = (float(np.mean([c[r] for r in shared])) for c in curves)
                gaps[name] = [
                    curves[1].get(r, np.nan) - curves[0].get(r, np.nan) for r in self.repeats
                ]
        each = (
            differences([np.array(list(gaps.values())).reshape(len(gaps), -1)])[0] if gaps else []
        )
        return Steeper(model, kind, first, other, dict(zip(gaps, each, strict=True)), _over(each))

    @property
    def repeats(self) -> tuple[int, ...]:
        """Seeds, counted from 0."""
        return tuple(sorted({t.repeat for t in self.taken}))

    @property
    def left_out(self) -> list[tuple[str, float]]:
        """Domains and fractions without a point of the domain alone."""
        known = {(t.note["domain"], t.fraction) for t in self.taken if t.curve == ALONE}
        return [(n, f) for n in self.space.names for f in self.fractions if (n, f) not in known]

    def _of(self, model: str, curve: str) -> list[Taken]:
        return [t for t in self.taken if t.model == model and t.curve == curve]

    def _full(self, model: str, domain: str) -> list[Taken]:
        """The trainings of the domain alone at the largest fraction."""
        own = [t for t in self._of(model, ALONE) if t.note["domain"] == domain]
        return [t for t in own if t.fraction == self.fractions[0]]

    def _curve(
        self,
        key: tuple[object, ...],
        trainings: Iterable[Taken],
        domain: str,
        counted: str,
        base: tuple[float, float] | None = None,
    ) -> Curve:
        if key not in self._known:
            own = [t for t in trainings if t.rows(counted)]
            known = self.bases.get(str(key[0]), {})
            before = base or tuple(
                known.get(f"eval/{domain}/{m}", math.nan) for m in ("loss", "accuracy")
            )
            columns = (
                [t.fraction for t in own],
                [t.repeat for t in own],
                [t.rows(counted) for t in own],
            )
            results = ([t.loss(domain) for t in own], [t.accuracy(domain) for t in own])
            arrays = [np.array(column, dtype=float) for column in (*columns, *results)]
            self._known[key] = Curve(domain, before[0], before[1], *arrays)
        return self._known[key]

    def _cells(self, curve: Curve) -> Vector:
        """Losses [F, S] by fraction and repeat; NaN where there is none."""
        cells = np.full((len(self.fractions), len(self.repeats)), np.nan)
        for fraction, repeat, loss in zip(
            curve.fractions, curve.repeats, curve.losses, strict=True
        ):
            cells[self.fractions.index(fraction), self.repeats.index(int(repeat))] = loss
        return cells

    def _table(self, one: Curve, other: Curve) -> Vector:
        return np.asarray(self._cells(one) - self._cells(other))

    def _by(self, row: Sequence[Difference]) -> dict[float, Difference]:
        return dict(zip(self.fractions, row, strict=True))


def _over(each: Sequence[Difference]) -> Difference:
    """The mean over domains, with its interval over them."""
    from scipy import stats

    values = np.array([d.value for d in each])
    if not len(values):
        return Difference(math.nan, math.nan, math.nan, math.nan)
    mean = float(values.mean())
    if len(values) < 2:
        return Difference(mean, math.nan, math.nan, math.nan)
    error, freedom = float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1
    width = float(stats.t.isf(LEVEL / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error > 0 else math.nan
    return Difference(mean, mean - width, mean + width, p)


def scaling_of(record: Record) -> Scaling:
    """Read a scaling study off its history; trainings that are still to be told are left out."""
    identity = record.header["identity"]
    objective, space = decode(Objective, identity["objective"]), decode(Space, identity["space"])
    asked = [
        t
        for t in record.history
        if isinstance(t.proposal.note, dict) and "curve" in t.proposal.note
    ]
    trained = [t for t in asked if t.proposal.note["curve"] != BASE]
    first = [trial for number, trial in record.trials.items() if number == 0]
    untrained = (*first, *(t for t in asked if t.proposal.note["curve"] == BASE))
    bases = {t.proposal.model: t.result.metrics for t in untrained if t.finished and t.result}
    pairs = (
        (t.proposal.note["fixed"], t.proposal.note["varied"])
        for t in trained
        if t.proposal.note["curve"] == PAIR
    )
    return Scaling(
        space=space,
        models=tuple(dict.fromkeys(t.proposal.model for t in trained)),
        fractions=tuple(sorted({t.proposal.note["fraction"] for t in trained}, reverse=True)),
        pairs=tuple(dict.fromkeys(pairs)),
        counted=tuple(name for name in space.names if objective.weights.get(name, 1.0) > 0),
        bases=bases,
        taken=tuple(_taken(t) for t in trained if t.finished),
        failed=sum(not (t.pending or t.finished) for t in trained),
    )


def _taken(trial: Trial) -> Taken:
    result = trial.result
    if result is None:
        raise ValueError(f"trial {trial.number} has no result")
    note = trial.proposal.note
    return Taken(
        trial.proposal.model, trial.proposal.repeat, note, result.spent.steps, result.metrics
    )
