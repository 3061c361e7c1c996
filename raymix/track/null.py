"""What a tracker hears, and the tracker that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from raymix.core.job import Json, Point, Spec
from raymix.core.trial import Trial


class Ending(StrEnum):
    """How a study ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True)
class About:
    """A study as its tracker is told of it.

    `id` names this very study: the same when it is resumed, another when it is run again. `data`
    is the fingerprint of the prepared data. `config`: the experiment as plain JSON. `groups`: of
    methods, by name. `units`: what a told trial has cost, in trainings on the study's budget.
    `strategy`: of the trials that have none of their own. `stages`: how many a trial is trained in.
    """

    id: str
    name: str
    seed: int
    data: str = ""
    config: Json = None
    groups: Mapping[str, str] = field(default_factory=dict)
    units: Callable[[Trial], float] | None = None
    strategy: Spec | None = None
    stages: Callable[[Trial], int] | None = None


class Tracker(Protocol):
    """Hears every event of a study and decides nothing; no call waits for a network."""

    def study_started(self, about: About, told: Sequence[Trial] = ()) -> None:
        """A study starts; when it is resumed, `told` are the trials that it has already."""
        ...

    def trial_started(self, trial: Trial) -> None:
        """A training was launched; again, if it is a further attempt."""
        ...

    def reported(self, trial: Trial, point: Point) -> None:
        """A running training reported `point`."""
        ...

    def trial_ended(self, trial: Trial) -> None:
        """A trial was told."""
        ...

    def artifact(self, path: Path) -> None:
        """A file to keep with the study."""
        ...

    def study_ended(self, ending: Ending) -> None:
        """The study is over; everything heard so far is written, or given up, before it returns."""
        ...


@dataclass(frozen=True)
class NoTracker:
    """Keeps nothing: the study's history has everything."""

    def study_started(self, about: About, told: Sequence[Trial] = ()) -> None:
        """Nothing."""

    def trial_started(self, trial: Trial) -> None:
        """Nothing."""

    def reported(self, trial: Trial, point: Point) -> None:
        """Nothing."""

    def trial_ended(self, trial: Trial) -> None:
        """Nothing."""

    def artifact(self, path: Path) -> None:
        """Nothing."""

    def study_ended(self, ending: Ending) -> None:
        """Nothing."""
