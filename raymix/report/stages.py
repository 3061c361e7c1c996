"""What trainings in several stages came to, stage by stage: losses, changes, forgetting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymix.core.codec import from_spec, to_json
from raymix.core.errors import RaymixError
from raymix.core.forgetting import ended, forgotten, read, several
from raymix.core.job import Spec, Stage, Status
from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.report.facts import Facts, label
from raymix.report.facts import rows as confirmed_rows
from raymix.study.job import space_of
from raymix.study.plan import METHODS


@dataclass(frozen=True, eq=False)
class Staged:
    """One training at the end of each of its S stages that came to one; K domains.

    `numbers`: of these stages, from 0. `progress` [S + 1]: share of the budget spent by then.
    `losses`, `accuracies` [S + 1, K]: eval, in nats per token and in rows that are right; row 0 is
    the model before training. `swapped` [S + 1, K]: the losses with the soft prompt (the adapters)
    where it is left out in use, and without it where it is used. Unknown is NaN. `planned`: the
    strategy's stages; empty where they cannot be known. `whole`: it was trained to its end.
    """

    numbers: tuple[int, ...]
    progress: Vector
    losses: Vector
    accuracies: Vector
    swapped: Vector
    planned: tuple[Stage, ...]
    whole: bool

    @property
    def change(self) -> Vector:
        """Losses less those of the model before training [S + 1, K]."""
        found: Vector = self.losses - self.losses[0]
        return found

    @property
    def forgotten(self) -> Vector:
        """See `core.forgetting.forgotten` [K]; NaN where the training did not come to its end."""
        if not self.whole:
            return np.full(self.losses.shape[1], np.nan)
        return forgotten(self.losses[1:])

    @property
    def parts(self) -> tuple[Stage, ...]:
        """The strategy's stages that are among the S; empty where they cannot be known."""
        return tuple(self.planned[number] for number in self.numbers) if self.planned else ()


@dataclass(frozen=True, eq=False)
class Course:
    """A method, or one mixture, trained under one strategy with one or several seeds.

    `runs` have the same stages. `left_out`: trainings of it that had other ones.
    """

    name: str
    domains: tuple[str, ...]
    strategy: Spec | None
    trials: tuple[Trial, ...]
    runs: tuple[Staged, ...]
    left_out: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the stages, from 0."""
        return self.runs[0].numbers

    @property
    def whole(self) -> bool:
        """Whether its trainings came to their end."""
        return self.runs[0].whole

    def stack(self, name: str) -> Vector:
        """A matrix or row of every run, by its name in `Staged` [n, ...]."""
        return np.stack([getattr(run, name) for run in self.runs])

    def ends(self, name: str) -> Vector:
        """The last row of a matrix of every run [n, K]; NaN where they came to no end."""
        last = self.stack(name)[:, -1]
        return last if self.whole else np.full_like(last, np.nan)

    def shares(self) -> Vector | None:
        """Mean shares that the strategy gave each stage [S, K]; None where that is not known."""
        if not all(run.planned for run in self.runs):
            return None
        each = [
            [stage.mixture.ordered(self.domains).array() for stage in run.parts]
            for run in self.runs
        ]
        found: Vector = np.mean(each, axis=0)
        return found


def staged(known: Facts, trial: Trial) -> Staged:
    """A told trial, stage by stage."""
    points = ended(trial)
    # The model before training is only looked at where it is the target.
    base = known.base if trial.proposal.model == "target" else {}
    seen = [base, *(point.metrics for point in points.values())]

    def rows(what: str) -> Vector:
        return np.stack([read(metrics, known.domains, what) for metrics in seen])

    return Staged(
        numbers=tuple(points),
        progress=np.array([0.0, *(point.progress for point in points.values())]),
        losses=rows("eval/{}/loss"),
        accuracies=rows("eval/{}/accuracy"),
        swapped=rows("swap/{}/loss"),
        planned=planned(known, trial),
        whole=trial.result is not None and trial.result.status is Status.DONE,
    )


def strategy_of(known: Facts, trial: Trial) -> Spec | None:
    """The strategy that a trial was trained by; None: the history does not tell."""
    return trial.proposal.strategy or known.strategy


def planned(known: Facts, trial: Trial) -> tuple[Stage, ...]:
    """The stages of a told trial as its strategy has them.

    Empty where that cannot be known: a strategy of the user's that is not there any more, or that
    has changed since.
    """
    spec, curve = strategy_of(known, trial), trial.result.curve if trial.result else ()
    if spec is None or not curve:
        return ()
    asked, budget = trial.proposal, space_of(known.space, trial.proposal).budget
    try:
        found = tuple(from_spec(spec).stages(asked.mixture, budget, asked.params))
        shares = [stage.mixture.ordered(known.domains) for stage in found]
    except (RaymixError, ValueError, TypeError):
        return ()
    seen = 1 + max(point.stage for point in curve)
    done = trial.result is not None and trial.result.status is Status.DONE
    fits = len(shares) == seen if done else len(shares) >= seen
    return found if fits else ()


def courses(known: Facts) -> tuple[Course, ...]:
    """What there is to tell by stages, best first; empty unless a trial has several of them.

    Where methods are compared: each by its confirmations, those of one stage too. Else for each
    strategy the best mixture by its confirmations. Of a strategy that none of these has been
    trained by, the best trial of the search.
    """
    if not any(several(trial) for trial in known.history):
        return ()
    confirmed = sorted(
        confirmed_rows(known),
        key=lambda row: (not row.best, float(np.mean([t.score for t in row.trials]))),
    )
    every = known.confirm.of == METHODS
    found: list[Course] = []
    told: set[str] = set()
    for row in confirmed:
        kind = _kind(known, row.trials[0])
        if every or kind not in told:
            told.add(kind)
            found.append(course(known, row.name, row.trials))
    ranked = sorted(known.history.ranking(), key=_stopped)
    for trial in ranked:
        kind = _kind(known, trial)
        if kind not in told and ended(trial):
            told.add(kind)
            found.append(course(known, label(trial), (trial,)))
    # What has one stage is only of interest beside what has several.
    return tuple(found) if any(several(t) for each in found for t in each.trials) else ()


def _kind(known: Facts, trial: Trial) -> str:
    spec = strategy_of(known, trial)
    return "" if spec is None else to_json(spec)


def _stopped(trial: Trial) -> bool:
    return trial.result is None or trial.result.status is not Status.DONE


def course(known: Facts, name: str, trials: Sequence[Trial]) -> Course:
    """The trainings of one method or mixture; those whose stages differ from most are left out."""
    runs = [staged(known, trial) for trial in trials]
    (numbers, _), *_ = Counter(run.numbers for run in runs).most_common(1)
    kept = [place for place, run in enumerate(runs) if run.numbers == numbers]
    return Course(
        name=name,
        domains=known.domains,
        strategy=strategy_of(known, trials[0]),
        trials=tuple(trials[place] for place in kept),
        runs=tuple(runs[place] for place in kept),
        left_out=len(runs) - len(kept),
    )
