"""Optuna's TPE and GP samplers; the only module that imports Optuna.

The searcher keeps nothing: before each ask the history is replayed into an Optuna study in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.job import Status
from raymix.core.mixture import Mixture, Space
from raymix.core.simplex import Vector, cube_to_simplex, simplex_to_cube
from raymix.core.trial import RANKED, History, Idle, Proposal, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.search.seen import key, trained

_TRIES = 3
_STEPS = 1000
"""Optuna wants whole steps for a stopped trial's value: thousandths of its budget."""


@dataclass(frozen=True)
class Optuna:
    """Bayesian search by Optuna over the unit cube [K-1], mapped to the simplex [K].

    A uniform cube is a uniform simplex (`core.simplex.cube_to_simplex`), so no domain is favoured
    by its place in the list. The first `startup` results come from uniform draws (baselines count).
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
        told = sum(t.role in RANKED for t in history.finished)
        if told < self.startup or _free(space) <= 0 or len(space.names) < 2:
            return uniform.propose(space, history, rng)
        seed = int(rng.integers(2**31))
        known = trained(space.names, history)
        with _quietly() as optuna:
            distributions = {
                name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in _axes(space)
            }
            study = optuna.create_study(sampler=self._sampler(optuna, seed))
            for trial in history:
                if trial.role in RANKED:
                    study.add_trial(self._replayed(optuna, space, trial, distributions, history))
            for _ in range(_TRIES):
                asked = study.ask(distributions)
                mixture = _mixture(space, [asked.params[name] for name in _axes(space)])
                if key(mixture) not in known:
                    return Proposal(mixture)
        return uniform.propose(space, history, rng)

    def _sampler(self, optuna: Any, seed: int) -> Any:
        """Start-up is done here, on the allowed simplex; Optuna's own would ignore the bounds."""
        if self.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=1, multivariate=True, constant_liar=True
        )

    def _replayed(
        self, optuna: Any, space: Space, trial: Trial, distributions: Any, history: History
    ) -> Any:
        """One trial of the history as Optuna's."""
        states = optuna.trial.TrialState
        cube = _cube(space, trial.mixture)
        params = dict(zip(_axes(space), map(float, cube), strict=True))
        common = {"params": params, "distributions": distributions}
        if trial.result is None:
            return optuna.trial.create_trial(state=states.RUNNING, **common)
        if not trial.finished or not np.isfinite(trial.violation):
            return optuna.trial.create_trial(state=states.FAIL, **common)
        if any(t.violation > 0 for t in history.finished):
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
    return tuple(f"u{i}" for i in range(1, len(space.names)))


def _free(space: Space) -> float:
    """The part of the budget that lower bounds leave to be shared out."""
    return 1.0 - float(np.sum(space.lower))


def _mixture(space: Space, cube: list[float]) -> Mixture:
    """The cube covers the simplex above the lower bounds; what exceeds upper ones is projected."""
    above = cube_to_simplex(cube)
    return space.project(np.asarray(space.lower) + _free(space) * above)


def _cube(space: Space, mixture: Mixture) -> Vector:
    above = (mixture.ordered(space.names).array() - np.asarray(space.lower)) / _free(space)
    above = np.maximum(above, 0.0)
    return np.clip(simplex_to_cube(above / above.sum()), 0.0, 1.0)


@contextmanager
def _quietly() -> Iterator[Any]:
    """Optuna, imported late (it costs 0.2 s), without its line per study on stderr."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(before)
