"""Trials, their history, and the protocol of a searcher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Protocol

import numpy as np

from raymix.core.job import Diagnostic, Json, Spec, Status, TrainResult
from raymix.core.mixture import Budget, Mixture, Space


class Role(StrEnum):
    """What a trial is for. Only SEARCH may stop early; REFERENCE to MEASURE are not ranked."""

    BASELINE = "baseline"
    SEARCH = "search"
    REFERENCE = "reference"
    PROXY = "proxy"
    MEASURE = "measure"
    FINAL = "final"
    CONFIRM = "confirm"


RANKED = frozenset({Role.BASELINE, Role.SEARCH, Role.FINAL})
STOPPABLE = frozenset({Role.SEARCH})
"""Not CONFIRM: a verdict compares whole trainings, a stopped one would be cost for nothing."""


@dataclass(frozen=True)
class Proposal:
    """What a searcher wants trained.

    `budget` None: the study's. `model`: "target" or the name of a proxy. `start`: number of the
    trial whose checkpoint it starts from. `reference`: number of the trial whose model gives
    `Signal.REFERENCE_LOSS`. Either trial must have been proposed with `keep`: its trained weights
    are kept. `turn`: others may branch off once that share of the budget is spent; `branch`: number
    of a trial whose training, up to its turn, is this one's too: it is not paid for again, and only
    the rest of the budget is spent on `mixture`. `repeat`: is added to the study's seed; trials of
    equal repeat share their randomness. `strategy` None: the study's; `params`: the strategy's
    (DMT's k), those left out are as the strategy has them. `note`: JSON that the searcher wants to
    find again in the history.
    """

    mixture: Mixture
    budget: Budget | None = None
    pools: tuple[int, ...] | None = None
    model: str = "target"
    reweighter: Spec | None = None
    measure: frozenset[Diagnostic] = frozenset()
    start: int | None = None
    reference: int | None = None
    turn: float | None = None
    branch: int | None = None
    role: Role = Role.SEARCH
    strategy: Spec | None = None
    params: Mapping[str, float] = field(default_factory=dict)
    note: Json = None
    keep: bool = False
    repeat: int = 0


@dataclass(frozen=True)
class Trial:
    """A proposal with its number, its seed and, once told, its result and score.

    `method` names the searcher that asked for it. `score` is minimised; `violation` > 0 says by how
    much the objective's guards are broken (nats per token). `result` None: still pending.
    """

    number: int
    method: str
    proposal: Proposal
    seed: int
    result: TrainResult | None = None
    score: float = float("nan")
    violation: float = 0.0

    @property
    def pending(self) -> bool:
        """Asked and not yet told."""
        return self.result is None

    @property
    def finished(self) -> bool:
        """Told, with a usable score."""
        return (
            self.result is not None
            and self.result.status is not Status.FAILED
            and bool(np.isfinite(self.score))
        )

    @property
    def mixture(self) -> Mixture:
        """The proposed mixture."""
        return self.proposal.mixture

    @property
    def role(self) -> Role:
        """What the trial is for."""
        return self.proposal.role

    @property
    def stoppable(self) -> bool:
        """Whether it may end early: not where its last weights are wanted."""
        asked = self.proposal
        wanted = asked.measure or asked.keep or asked.turn is not None
        return self.role in STOPPABLE and not wanted


@dataclass(frozen=True)
class History:
    """Trials in the order in which they were asked, as one method may see them."""

    trials: tuple[Trial, ...] = ()
    method: str = ""
    base: TrainResult | None = None
    """The model before training, once it has been evaluated."""

    def __iter__(self) -> Iterator[Trial]:
        """All trials, oldest first."""
        return iter(self.trials)

    def __len__(self) -> int:
        """How many trials were asked."""
        return len(self.trials)

    @property
    def own(self) -> tuple[Trial, ...]:
        """The trials that `method` itself asked for, pending ones included."""
        return tuple(t for t in self.trials if t.method == self.method)

    @property
    def finished(self) -> tuple[Trial, ...]:
        """Trials with a usable score."""
        return tuple(t for t in self.trials if t.finished)

    def seen_by(self, method: str) -> History:
        """What `method` may see: its own trials and the baselines."""
        seen = (t for t in self.trials if t.method == method or t.role is Role.BASELINE)
        return History(tuple(seen), method, self.base)

    def ranking(self) -> tuple[Trial, ...]:
        """Ranked trials, best first: those that keep the guards before those that do not."""
        ranked = (t for t in self.finished if t.role in RANKED)
        return tuple(sorted(ranked, key=lambda t: (t.violation > 0, t.score, t.number)))


class Idle(Enum):
    """A searcher's answers when it proposes nothing."""

    WAIT = "wait"
    """Nothing before a pending trial is told."""
    DONE = "done"
    """Nothing ever again."""


class Searcher(Protocol):
    """Says how much of each domain to train on next. Has no state but its settings."""

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The next proposal; the same space, history and generator give the same one."""
        ...
