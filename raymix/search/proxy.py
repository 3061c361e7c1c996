"""Learn a mixture by a reweighter on a proxy, then train on it: how DoReMi and DoGE are run."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from raymix.core.codec import encode
from raymix.core.errors import SearchError
from raymix.core.job import Spec, Status
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.search.counts import Start, check_start, starting
from raymix.search.nested import compares, reweighter_of

Script = Generator[Proposal, Trial, None]


@dataclass(frozen=True)
class Proxy:
    """Trains a proxy with a reweighter, then the target model on the proxy's mean mixture.

    1. REFERENCE, where the reweighter compares with one (DoReMi): a training on `start` (None: the
       prior), kept.
    2. PROXY: the same model and budget again, with `reweighter`. What came out is the mean over its
       steps of loss weights, gradient weights or sampling (`TrainResult.mean_mixture`), projected
       into the space's bounds and epoch caps.
    3. Up to `rounds` times: 1 and 2 again on that mixture, until no share moves by `tolerance`.
    4. FINAL: the target model with the study's budget, on the last mixture. Only this is ranked,
       but all that went before is on the method's bill.

    `model`: of reference and proxy, "target" or the name of a smaller one. `budget`: of each of
    their trainings, in the study's unit; None: the study's. A failed training ends the search.
    """

    reweighter: Spec
    model: str = "target"
    budget: int | None = None
    start: Start | None = None
    rounds: int = 1
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        reweighter_of(self.reweighter, "Proxy.reweighter")
        if self.budget is not None and self.budget < 1:
            raise SearchError(f"Proxy.budget must be positive, got {self.budget}")
        if self.rounds < 1:
            raise SearchError(f"Proxy.rounds must be at least 1, got {self.rounds}")
        if not 0 <= self.tolerance < math.inf:
            raise SearchError(f"Proxy.tolerance must be a number >= 0, got {self.tolerance}")
        check_start(self.start, "Proxy.start")

    @property
    def compares(self) -> bool:
        """Whether the proxy is held against a reference."""
        return compares(reweighter_of(self.reweighter, "Proxy.reweighter"))

    @property
    def most(self) -> int:
        """The most trainings that it asks for."""
        return self.rounds * (1 + self.compares) + 1

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The next proposal of the script, which is replayed on the method's trials so far."""
        script = self._script(space)
        proposal = next(script)
        for trial in history.own:
            _same(proposal, trial)
            if trial.pending:
                return Idle.WAIT
            try:
                proposal = script.send(trial)
            except StopIteration:
                return Idle.DONE
        return proposal

    def _script(self, space: Space) -> Script:
        """The whole search: yields what is to be trained, is sent what came of it."""
        own = None if self.budget is None else Budget(self.budget, space.budget.unit)
        within = replace(space, budget=own or space.budget)
        mixture = found = starting(within, self.start)
        for number in range(1, self.rounds + 1):
            note = {"round": number, "parent": []}
            plain = Proposal(mixture, own, model=self.model)
            reference = None
            if self.compares:
                note = {"kind": "reference", **note}
                told = yield replace(plain, role=Role.REFERENCE, keep=True, note=note)
                if not _whole(told) or told.result is None or told.result.checkpoint is None:
                    return
                reference = told.number
            parent = [] if reference is None else [reference]
            told = yield replace(
                plain,
                reweighter=self.reweighter,
                reference=reference,
                role=Role.PROXY,
                note={**note, "kind": "proxy", "parent": parent},
            )
            if not _whole(told) or told.result is None or told.result.mean_mixture is None:
                return
            found = told.result.mean_mixture.ordered(space.names)
            before, mixture = mixture, within.project(found.array())
            moved = _distance(before, mixture)
            if moved < self.tolerance:
                break
        yield Proposal(
            space.project(found.array()),
            role=Role.FINAL,
            note={
                "kind": "final",
                "round": number,
                "parent": [told.number],
                "mean": found.as_dict(),
                "moved": moved,
            },
        )


def _whole(trial: Trial) -> bool:
    """Whether it was trained to its end: half a proxy has half a mean."""
    return trial.result is not None and trial.result.status is Status.DONE


def _distance(a: Mixture, b: Mixture) -> float:
    """The largest difference of a share."""
    return float(np.abs(a.array() - b.array()).max())


def _same(proposal: Proposal, trial: Trial) -> None:
    """Raise SearchError where the history is that of other settings."""
    asked = trial.proposal.note if isinstance(trial.proposal.note, Mapping) else {}
    same = all(asked.get(slot) == proposal.note[slot] for slot in ("kind", "round"))
    if not same or encode(trial.proposal.reweighter) != encode(proposal.reweighter):
        raise SearchError(
            f"trial {trial.number} of '{trial.method}' was asked with other settings than now: "
            "give the method another name to begin anew"
        )
