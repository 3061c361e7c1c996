"""IDEAL: train, ask how each domain's count moves the eval losses, rescale the counts, repeat.

arXiv:2505.12762 (ICLR 2026). Measuring the influence is worker code; here it is only consumed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from raymix.core.codec import encode
from raymix.core.errors import SearchError
from raymix.core.job import Diagnostic, Json
from raymix.core.mixture import Budget, Space
from raymix.core.simplex import Vector
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.search.counts import Start, Total, check_start, counts_of, pools, starting
from raymix.search.measured import UNSCALED, check_estimator, influences
from raymix.search.step import Key, Place, Target, target
from raymix.search.trust import SHRINK, Verdict, best, judge

_INFLUENCE = frozenset({Diagnostic.INFLUENCE})

_HALVINGS = 8
"""How often a step that leads to no new mixture is halved before the search ends."""

Script = Generator[list[Proposal], tuple[Trial, ...], None]


@dataclass(frozen=True)
class Rules:
    """What `Ideal.mode` stands for; see there."""

    step: float
    rounds: int
    total: Total
    weighted: bool
    resize: bool
    keep_best: bool


MODES = {
    "fixed": Rules(0.5, 3, "fixed", weighted=True, resize=False, keep_best=True),
    "paper": Rules(0.15, 2, "free", weighted=False, resize=True, keep_best=False),
}


@dataclass(frozen=True)
class Ideal:
    """Rescales the domains' counts by 1 + beta, beta = -step * influence / max|influence|.

    Round 0 trains `start` (None: the prior); each of `rounds` rounds after it rescales the counts
    of the round it goes on from. `mode` gives the defaults of the fields that are None:

    ============  =======  =======
    field         "fixed"  "paper"
    ============  =======  =======
    `step`        .5       .15
    `rounds`      3        2
    `total`       "fixed"  "free"
    `weighted`    True     False
    `resize`      False    True
    `keep_best`   True     False
    ============  =======  =======

    `total` "free" lets the budget follow the counts; "fixed" keeps the study's, with influences
    centred. `weighted`: a domain's mean gradient counts by the domain's size, as the derivative
    demands. `resize`: a domain that shrinks loses rows for good and one that grows gets fresh ones,
    so that each row is seen as often as at the start (`counts.pools`); else a count only says how
    much is drawn from all rows. Bounds and epoch caps hold throughout.

    `keep_best` and `trust_region` are one rule (`trust.judge`): what is held against a round sends
    the search back to the round's parent, whose influence is used again with half the step.

    `budget` None: the study's, else this for the start (and, with a fixed total, for all rounds).
    `control` (None: where the total is free): at the end the start's mixture is trained at the size
    of the last round, or all that was gained might be more data.

    `line_search` trains all `widths` of a step at once (negative: the opposite direction, a control
    that is never gone on from); the best goes on, and only its influence is measured, from its
    checkpoint. `repeats`: seeds that each mixture is trained with; influences and scores are their
    means. `noise`: see `judge`.

    Departs from the paper: "paper" has the right inverse of the curvature and its damping, which
    the released code has not; in "fixed", gradients are weighted by size and influences centred.
    """

    mode: Literal["fixed", "paper"] = "fixed"
    step: float | None = None
    rounds: int | None = None
    total: Total | None = None
    weighted: bool | None = None
    resize: bool | None = None
    keep_best: bool | None = None
    start: Start | None = None
    budget: int | None = None
    control: bool | None = None
    estimator: str = "ekfac"
    repeats: int = 1
    line_search: bool = False
    widths: tuple[float, ...] = (0.5, 1.0, 2.0, -1.0)
    trust_region: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.mode not in MODES:
            raise SearchError(f"Ideal.mode must be {' or '.join(MODES)}, got '{self.mode}'")
        rules = self.rules()
        if not 0 < rules.step <= 1:
            raise SearchError(f"Ideal.step must be above 0 and at most 1, got {rules.step}")
        if rules.rounds < 0:
            raise SearchError(f"Ideal.rounds must not be negative, got {rules.rounds}")
        if rules.total not in ("fixed", "free"):
            raise SearchError(f"Ideal.total must be fixed or free, got '{rules.total}'")
        if self.repeats < 1:
            raise SearchError(f"Ideal.repeats must be at least 1, got {self.repeats}")
        if self.budget is not None and self.budget < 1:
            raise SearchError(f"Ideal.budget must be positive, got {self.budget}")
        widths = self.widths
        if not all(w and math.isfinite(w) for w in widths) or not any(w > 0 for w in widths):
            raise SearchError(
                f"Ideal.widths must be numbers other than 0, one above it, got {widths}"
            )
        if not 0 <= self.noise < math.inf:
            raise SearchError(f"Ideal.noise must be a number >= 0, got {self.noise}")
        check_start(self.start, "Ideal.start")
        check_estimator(self.estimator, "Ideal.estimator")

    def rules(self) -> Rules:
        """The settings, with those of the mode where None was given."""
        own = {field.name: getattr(self, field.name) for field in fields(Rules)}
        return replace(MODES[self.mode], **{k: v for k, v in own.items() if v is not None})

    @property
    def most(self) -> int:
        """The most trainings that it asks for."""
        rules = self.rules()
        each = len(self.widths) if self.line_search else 1
        control = rules.total == "free" if self.control is None else self.control
        return self.repeats * (1 + rules.rounds * each + control)

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The next proposal of the script, which is replayed on the method's trials so far."""
        within = space
        if self.budget is not None:
            within = replace(space, budget=Budget(self.budget, space.budget.unit))
        script, own, place = self._script(within), history.own, 0
        batch = next(script)
        while True:
            asked = own[place : place + len(batch)]
            place += len(asked)
            for proposal, trial in zip(batch, asked, strict=False):
                _same(proposal, trial)
            if len(asked) < len(batch):
                return batch[len(asked)]
            if any(trial.pending for trial in asked):
                return Idle.WAIT
            try:
                batch = script.send(asked)
            except StopIteration:
                return Idle.DONE

    def _script(self, space: Space) -> Script:
        """The whole search: yields what is to be trained at once, is sent what came of it."""
        rules, first = self.rules(), starting(space, self.start)
        counts = first.array() * space.budget.amount
        start = Target(0.0, np.zeros(len(space.names)), first, space.budget)
        note: dict[str, Json] = {"kind": "start", "round": 0, "step": rules.step, "parent": []}
        tried = yield self._proposals(space, counts, [start], note)
        place = Place(_finished(tried), influences(tried))
        step, seen, verdict = rules.step, {start.key}, Verdict(True, 1.0)
        size = space.budget
        for number in range(1, rules.rounds + 1):
            step, targets = self._targets(space, place, step, seen)
            if not targets:
                break
            seen |= {target.key for target in targets}
            note = {"kind": "step", "round": number, "step": step, "verdict": encode(verdict)}
            note["keep_best"] = rules.keep_best
            tried = yield self._proposals(space, counts, targets, note, place)
            child = best([_finished(tried, t.width) for t in targets if t.width > 0])
            verdict = judge(place.trials, child, rules.keep_best, self.trust_region, self.noise)
            if verdict.accepted and number < rules.rounds:
                measured = (yield _measures(child, number)) if self.line_search else child
                if found := influences(measured):
                    place = Place(child, found)
                else:
                    verdict = Verdict(False, SHRINK, "its influence could not be measured")
            step = min(rules.step, step * verdict.factor)
            size = targets[0].budget
        controls = rules.total == "free" if self.control is None else self.control
        if controls and size != space.budget:
            larger = replace(space, budget=size).project(first.array())
            control = Target(0.0, np.zeros(len(space.names)), larger, size)
            note = {"kind": "control", "round": rules.rounds, "step": 0.0, "parent": []}
            yield self._proposals(space, counts, [control], note)

    def _targets(
        self, space: Space, place: Place, step: float, seen: set[Key]
    ) -> tuple[float, list[Target]]:
        """Where to go from `place`, for each width, and the step that leads there.

        Bounds, caps or a shorter step may lead to what was asked before: that is left out, and the
        step halved where nothing is left. None where that does not help, or there is no influence.
        """
        rules = self.rules()
        if not place.influences or not place.trials:
            return step, []
        counts = counts_of(space, place.trials[0].proposal)
        influence = place.direction(space, self.estimator, rules.weighted, rules.total)
        for _ in range(_HALVINGS):
            found: dict[Key, Target] = {}
            for width in self.widths if self.line_search else (1.0,):
                to = target(space, counts, influence, step, width, rules.total)
                if to.key not in seen:
                    found.setdefault(to.key, to)
            if any(to.width > 0 for to in found.values()):
                return step, list(found.values())
            step *= 0.5
        return step, []

    def _proposals(
        self,
        space: Space,
        start: Vector,
        targets: Sequence[Target],
        note: Mapping[str, Json],
        place: Place | None = None,
    ) -> list[Proposal]:
        """All repeats of all `targets`; `start` [K] are the counts of round 0."""
        rules = self.rules()
        # The influence of the last round would lead nowhere.
        going_on = note["round"] < rules.rounds
        later = going_on and self.line_search and place is not None
        measure = _INFLUENCE if going_on and not later else frozenset[Diagnostic]()
        found = []
        for to in targets:
            rows = pools(space, to.counts, start) if rules.resize else None
            plain = Proposal(
                to.mixture,
                budget=None if self.budget is None and to.budget == space.budget else to.budget,
                pools=None if rows == tuple(d.rows for d in space.domains) else rows,
                measure=measure,
                keep=later and to.width > 0,
            )
            for repeat in range(self.repeats):
                own = {**note, "width": to.width, "repeat": repeat}
                if place is not None:
                    forecast = place.forecast(space, self.estimator, to.counts, repeat)
                    own["parent"] = [trial.number for trial in place.trials]
                    own["beta"] = dict(zip(space.names, to.beta.tolist(), strict=True))
                    own["scaled"] = self.estimator not in UNSCALED
                    own["forecast"] = encode(forecast)
                found.append(replace(plain, note=own, repeat=repeat))
        return found


def _measures(winner: Sequence[Trial], number: int) -> list[Proposal]:
    """What measures the influence of a round's winner, from the checkpoint of each repeat."""
    return [
        replace(
            trial.proposal,
            role=Role.MEASURE,
            start=trial.number,
            measure=_INFLUENCE,
            keep=False,
            note={
                "kind": "measure",
                "round": number,
                "width": trial.proposal.note["width"],
                "repeat": trial.proposal.repeat,
                "parent": [trial.number],
            },
        )
        for trial in winner
    ]


def _finished(trials: Sequence[Trial], width: float | None = None) -> tuple[Trial, ...]:
    """The trials that came to a score, of one width."""
    return tuple(
        t for t in trials if t.finished and (width is None or t.proposal.note["width"] == width)
    )


def _same(proposal: Proposal, trial: Trial) -> None:
    """Raise SearchError where the history is that of other settings."""
    slots = ("kind", "round", "width", "repeat")
    asked = trial.proposal.note if isinstance(trial.proposal.note, Mapping) else {}
    if [proposal.note[slot] for slot in slots] != [asked.get(slot) for slot in slots]:
        raise SearchError(
            f"trial {trial.number} of '{trial.method}' was asked with other settings than now: "
            "give the method another name to begin anew"
        )
