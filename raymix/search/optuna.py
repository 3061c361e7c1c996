"""Optuna's TPE and GP samplers; the only module that imports Optuna.

The searcher keeps nothing: before each ask the history is replayed into an Optuna study in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.job import Status
from raymix.core.mixture import Mixture, Parameter, Space
from raymix.core.simplex import Vector, cube_to_simplex, simplex_to_cube
from raymix.core.trial import History, Idle, Proposal, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.search.seen import comparable, new, trained

_TRIES = 3
_POINTS = 256
_STEPS = 1000
"""Optuna wants whole steps for a stopped trial's value: thousandths of its budget."""


@dataclass(frozen=True)
class Optuna:
    """Bayesian search by Optuna over the unit cube [K-1], mapped to the simplex [K].

    A uniform cube is a uniform simplex (`core.simplex.cube_to_simplex`), so no domain is favoured
    by its place in the list; domains that may have nothing are not among the K. A parameter of the
    strategy is one more dimension: a range (by its logarithm with `log`), or the place in the
    sorted list of its values. The first `startup` results come from uniform draws (baselines
    count).
    `sampler` "tpe": multivariate, pending trials as bad ones (constant liar), guards before scores,
    stopped trials behind whole ones. "gp": Gaussian process, which loads torch; better with few
    trials, slower per ask.
    """

    sampler: Literal["tpe", "gp"] = "tpe"
    startup: int = 8

    def __post_init__(self) -> None:
        """Refuse an unknown sampler, or too few first results to fit anything."""
        if self.sampler not in ("tpe", "gp"):
            raise SearchError(f"Optuna.sampler must be tpe or gp, got '{self.sampler}'")
        if self.startup < 2:
            raise SearchError(f"Optuna.startup must be at least 2, got {self.startup}")

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The sampler's mixture (the nearest allowed one to it) that was not trained on yet."""
        uniform = Dirichlet("uniform", 1.0)
        within = [t for t in comparable(history) if _inside(space, t)]
        told = sum(t.finished for t in within)
        if told < self.startup or not (_axes(space) or space.params):
            return uniform.propose(space, history, rng)
        seed = int(rng.integers(2**31))
        known = trained(space, history)
        with _quietly() as optuna:
            distributions = _distributions(optuna, space)
            study = optuna.create_study(sampler=self._sampler(optuna, seed))
            guarded = any(t.violation > 0 for t in history.finished)
            for trial in self._fitted(within):
                study.add_trial(self._replayed(optuna, space, trial, distributions, guarded))
            for _ in range(_TRIES):
                found = _proposal(space, study.ask(distributions).params)
                if new(space, found, known):
                    return found
        return uniform.propose(space, history, rng)

    def _sampler(self, optuna: Any, seed: int) -> Any:
        """Start-up is done here, on the allowed simplex; Optuna's own would ignore the bounds."""
        if self.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=1, multivariate=True, constant_liar=True
        )

    def _fitted(self, ranked: Sequence[Trial]) -> Sequence[Trial]:
        """Of `ranked` trials those that the sampler is told of, in the order of their asks.

        TPE: all. A Gaussian process costs the cube of its points, so it gets `_POINTS` of them at
        the most: the pending ones, the best half of what is left, and of the others the newest.
        """
        if self.sampler == "tpe" or len(ranked) <= _POINTS:
            return ranked
        pending = [trial for trial in ranked if trial.pending][-_POINTS:]
        told = sorted(
            (trial for trial in ranked if trial.finished),
            key=lambda trial: (trial.violation > 0, trial.score, trial.number),
        )
        half = (_POINTS - len(pending)) // 2
        rest = sorted(told[half:], key=lambda trial: trial.number)
        newest = rest[len(rest) - (_POINTS - len(pending) - half) :] if len(rest) else []
        return sorted([*pending, *told[:half], *newest], key=lambda trial: trial.number)

    def _replayed(
        self, optuna: Any, space: Space, trial: Trial, distributions: Any, guarded: bool
    ) -> Any:
        """One trial of the history as Optuna's."""
        states = optuna.trial.TrialState
        params = _point(space, trial)
        common = {"params": params, "distributions": distributions}
        if trial.result is None:
            return optuna.trial.create_trial(state=states.RUNNING, **common)
        if not trial.finished or not np.isfinite(trial.violation):
            return optuna.trial.create_trial(state=states.FAIL, **common)
        if guarded:
            common["constraints"] = {"guards": trial.violation}
        if trial.result.status is Status.STOPPED and self.sampler == "tpe":
            # The value of a stopped trial is not that of a whole one; TPE knows how to rank it.
            last = trial.result.curve[-1].progress if trial.result.curve else 1.0
            values = {round(_STEPS * last): trial.score}
            return optuna.trial.create_trial(
                state=states.PRUNED, intermediate_values=values, **common
            )
        return optuna.trial.create_trial(state=states.COMPLETE, value=trial.score, **common)


def _axes(space: Space) -> tuple[str, ...]:
    """Dimensions of the mixture; none where bounds leave no choice."""
    size = int(space.free().sum()) if _left(space) > 0 else 1
    return tuple(f"u{i}" for i in range(1, size))


def _left(space: Space) -> float:
    """The part of the budget that lower bounds leave to be shared out."""
    return 1.0 - float(np.sum(space.lower))


def _distributions(optuna: Any, space: Space) -> dict[str, Any]:
    """Every dimension; parameters go by their place, so that their names change nothing."""
    kinds = optuna.distributions
    found = {name: kinds.FloatDistribution(0.0, 1.0) for name in _axes(space)}
    for place, each in enumerate(space.params, start=1):
        if each.values:
            found[f"p{place}"] = kinds.IntDistribution(0, len(each.values) - 1)
        else:
            found[f"p{place}"] = kinds.FloatDistribution(each.low, each.high, log=each.log)
    return found


def _proposal(space: Space, point: Mapping[str, float]) -> Proposal:
    """What a point of the search space stands for."""
    cube = [point[name] for name in _axes(space)]
    mixture = _mixture(space, cube) if cube else space.project(space.prior.array())
    pairs = enumerate(space.params, start=1)
    params = {each.name: _said(each, point[f"p{place}"]) for place, each in pairs}
    return Proposal(mixture, params=params)


def _said(parameter: Parameter, number: float) -> float:
    """A parameter's number; of values the one at that place of the sorted list."""
    return sorted(parameter.values)[int(number)] if parameter.values else float(number)


def _point(space: Space, trial: Trial) -> dict[str, float]:
    """The point that stands for a trial."""
    axes = _axes(space)
    point: dict[str, float] = {}
    if axes:
        point = dict(zip(axes, map(float, _cube(space, trial.mixture)), strict=True))
    told = space.settings(trial.proposal.params)
    for place, each in enumerate(space.params, start=1):
        number = told[each.name]
        point[f"p{place}"] = sorted(each.values).index(number) if each.values else number
    return point


def _inside(space: Space, trial: Trial) -> bool:
    """Whether the trial's parameters are among what may be said (a default need not be)."""
    if trial.proposal.params.keys() - {each.name for each in space.params}:
        return False  # of a study that was resumed with others
    told = space.settings(trial.proposal.params)
    return all(each.allows(told[each.name]) for each in space.params)


def _mixture(space: Space, cube: list[float]) -> Mixture:
    """The cube covers the simplex above the lower bounds; what exceeds upper ones is projected."""
    above = np.zeros(len(space.names))
    above[space.free()] = cube_to_simplex(cube)
    return space.project(np.asarray(space.lower) + _left(space) * above)


def _cube(space: Space, mixture: Mixture) -> Vector:
    above = (mixture.ordered(space.names).array() - np.asarray(space.lower)) / _left(space)
    above = np.maximum(above, 0.0)[space.free()]
    return np.clip(simplex_to_cube(above / above.sum()), 0.0, 1.0)


@contextmanager
def _quietly() -> Iterator[Any]:
    """Optuna, imported late (it costs 0.2 s), without its lines and warnings on stderr."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        # Where no point promises more than the best, its GP divides 0 by 0, and goes on from there.
        with np.errstate(invalid="ignore"):
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)
