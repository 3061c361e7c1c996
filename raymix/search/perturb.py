"""Retraining with one domain's count moved up and down: the truth that influence estimates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.job import Diagnostic
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.simplex import Vector
from raymix.core.trial import History, Idle, Proposal, Trial
from raymix.search.counts import Start, Total, check_start, starting

_TOLERANCE = 1e-9
_LEAST = 0.1
"""Of `step`: a smaller change would measure noise."""

SIDES = {"plus": 1.0, "minus": -1.0}


@dataclass(frozen=True)
class Perturb:
    """Trains `start` (None: the prior), and that with each domain's count moved by +- `step`.

    All of it with `repeats` seeds; on the unmoved mixtures influence is measured. Nothing waits for
    anything, and nothing is searched. `total` "fixed": the other domains make room, in
    proportion to their shares; "free": the budget moves. Where bounds or epoch caps forbid a whole
    step, it is cut to what they allow (left out below a tenth), and the note says how far it went.

    `branch` > 0 is the cheaper check: the moved mixtures share the unmoved training up to that
    share of the budget and go on from its checkpoint, so that each costs the rest only. Their
    change is taken to be of the whole count, `1 - branch` times that of the part.
    """

    step: float = 0.3
    repeats: int = 3
    start: Start | None = None
    total: Total = "fixed"
    branch: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if not 0 < self.step < 1:
            raise SearchError(f"Perturb.step must be between 0 and 1, got {self.step}")
        if self.repeats < 1:
            raise SearchError(f"Perturb.repeats must be at least 1, got {self.repeats}")
        if self.total not in ("fixed", "free"):
            raise SearchError(f"Perturb.total must be fixed or free, got '{self.total}'")
        if not 0 <= self.branch < 1:
            raise SearchError(f"Perturb.branch must be 0 or a share below 1, got {self.branch}")
        if self.branch and self.total == "free":
            raise SearchError("Perturb.branch needs a fixed total: its rest of the budget is one")
        check_start(self.start, "Perturb.start")

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The next of `proposals`; a branch when what it branches off has been told."""
        wanted, own = self.proposals(space), history.own
        if len(own) >= len(wanted):
            return Idle.DONE
        proposal = wanted[len(own)]
        if not self.branch or proposal.note["kind"] == "parent":
            return proposal
        trunk = next(t for t in own if t.proposal.repeat == proposal.repeat)
        if trunk.pending:
            return Idle.WAIT
        # Where it has failed there is nothing to branch off, and nothing to compare with.
        if not trunk.finished:
            return Idle.DONE
        return replace(proposal, branch=trunk.number)

    def proposals(self, space: Space) -> list[Proposal]:
        """All that is to be trained: `repeats` times at most 1 + 2 K.

        Repeat by repeat; with branches, what they branch off comes first.
        """
        found = [
            replace(proposal, repeat=repeat, note={**proposal.note, "repeat": repeat})
            for repeat in range(self.repeats)
            for proposal in self._once(space)
        ]
        if self.branch:
            found.sort(key=lambda proposal: proposal.note["kind"] != "parent")
        return found

    def _once(self, space: Space) -> Iterator[Proposal]:
        begin = starting(space, self.start)
        measure = frozenset({Diagnostic.INFLUENCE})
        turn = self.branch or None
        yield Proposal(begin, measure=measure, turn=turn, note={"kind": "parent"})
        for number, name in enumerate(space.names):
            for side, sign in SIDES.items():
                change = _widest(space, begin, number, sign * self.step, self.total)
                if abs(change) < _LEAST * self.step or not begin.weights[number]:
                    continue
                mixture, budget = _moved(space, begin, number, change, self.total)
                # What comes after the branch is that part of all that is drawn of the domain.
                whole = change * (1.0 - self.branch)
                note = {"kind": side, "domain": name, "change": whole}
                own = None if budget == space.budget else budget
                yield Proposal(mixture, budget=own, note=note)


def _moved(
    space: Space, begin: Mixture, number: int, change: float, total: Total
) -> tuple[Mixture, Budget]:
    """The mixture with domain `number` at 1 + change times its count, and its budget."""
    counts = begin.array() * space.budget.amount
    counts[number] *= 1.0 + change
    mixture = Mixture.normalised(space.names, counts)
    if total == "fixed":
        return mixture, space.budget
    return mixture, Budget(max(1, round(float(counts.sum()))), space.budget.unit)


def _widest(space: Space, begin: Mixture, number: int, change: float, total: Total) -> float:
    """The largest part of `change` that bounds and epoch caps allow.

    The mixture is cut short on its way rather than projected, so that it remains the change of one
    domain; by bisection, as the allowed changes reach from 0 to a largest one.
    """

    def allowed(part: float) -> bool:
        mixture, budget = _moved(space, begin, number, part * change, total)
        shares = mixture.array()
        high = np.minimum(np.asarray(space.upper), space.room() / budget.amount)
        low = np.asarray(space.lower)
        return bool(np.all((shares >= low - _TOLERANCE) & (shares <= high + _TOLERANCE)))

    if allowed(1.0):
        return change
    inside, outside = 0.0, 1.0
    for _ in range(40):
        middle = 0.5 * (inside + outside)
        inside, outside = (middle, outside) if allowed(middle) else (inside, middle)
    return inside * change


def truth(trials: Iterable[Trial], domains: Sequence[str]) -> Vector:
    """Realised derivative of eval loss i by the relative change of domain j's count [R, K', K].

    (L_i(plus) - L_i(minus)) / (change of plus - change of minus), by repeat, of the trials that
    `Perturb` asked for; rows and columns in the order of `domains`. Where one side is missing the
    parent stands in for it; NaN where there are no two trainings to compare.
    """
    told: dict[int, dict[tuple[str, str], tuple[float, Vector]]] = {}
    for trial in trials:
        note = trial.proposal.note
        where = told.setdefault(trial.proposal.repeat, {})
        if trial.finished and trial.result is not None:
            metrics = trial.result.metrics
            losses = np.array([metrics.get(f"eval/{name}/loss", np.nan) for name in domains])
            where[note["kind"], note.get("domain", "")] = (note.get("change", 0.0), losses)
    size = len(domains)
    found = np.full((len(told), size, size), np.nan)
    for matrix, (_, known) in zip(found, sorted(told.items()), strict=True):
        parent = known.get(("parent", ""))
        for j, name in enumerate(domains):
            up, down = (known.get((side, name), parent) for side in SIDES)
            if up is not None and down is not None and up[0] > down[0]:
                matrix[:, j] = (up[1] - down[1]) / (up[0] - down[0])
    return found
