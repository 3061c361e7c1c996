"""DoGE: raise the gradient weight of the domains whose gradient helps the targets most.

Fan et al., arXiv:2310.15393, algorithms 1 (universal generalization) and 2 (out of domain).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymix.core.errors import ConfigError
from raymix.core.job import Json
from raymix.core.mixture import Space
from raymix.core.signals import Decision, Signal, Signals
from raymix.core.simplex import Vector, tilted
from raymix.reweight.trained import (
    Sampling,
    check_every,
    check_sampling,
    check_target,
    places,
    sampling_of,
    spread,
    trained,
)

_EPSILON = 1e-6


@dataclass(frozen=True)
class DoGE:
    """Multiplies each domain's gradient weight by exp(score / mu) and normalises.

    With g_j the gradient of domain j's mean loss in the step, lr the step's learning rate and W_j =
    <g_j, sum of g_i over the targets>, the score is clip(lr W_j / mean_j |g_j|, 0, `most` * lr).
    The step follows sum_j alpha_j g_j. Weights begin uniform; their mean over all steps (of a step,
    those of the domains that were in it) is the result (`TrainResult.mean_mixture`), which
    `search.Proxy` trains on. `target` None: all trained domains are targets; else that domain
    alone, which has an upper bound of 0 and is never trained on. Its gradient is measured only.

    The term of a domain with itself counts (W_j holds |g_j|^2), as in algorithm 1. The released
    code means to leave it out; the comparison it does so by is never true, so it counts there too.

    The logarithm of a ratio of two weights moves by `most` * lr / mu a step at the most: .05 at a
    learning rate of 5e-4, .002 at 2e-5. Fine-tuning may ask for a smaller `mu`. (The released
    configurations have .01 in domain, .05 out of domain.) Since scores are never negative, a domain
    that works against the targets loses by the gains of others only.

    `sampling`: rows come from the uniform mixture, from shares by size, or (None) from the stage's
    own; bounds and epoch caps hold for it. A gradient weight is no share of the budget: of bounds,
    only an upper one of 0 means anything to it.

    `same_step`: the weights act on the very gradients they were taken from, as in the paper. Costs
    a backward pass and a copy of the gradient for each domain. Without, they act a step later.

    Departs from the paper: gradients are not clipped domain by domain before they are compared, as
    the released code does (the step's own is, by `training.max_grad_norm`); a domain that is
    absent from a window keeps its weight and is no target in it, where the released code takes its
    last gradient again.
    """

    mu: float = 0.05
    target: str | None = None
    most: float = 5.0
    sampling: Sampling = "uniform"
    every: int = 1
    same_step: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if not 0 < self.mu < math.inf:
            raise ConfigError(f"DoGE.mu must be a number above 0, got {self.mu}")
        if not self.most > 0:
            raise ConfigError(f"DoGE.most must be above 0, got {self.most}")
        check_sampling(self.sampling, "DoGE.sampling")
        check_every(self.every, "DoGE.every")

    @property
    def needs(self) -> frozenset[Signal]:
        """Inner products of the domains' gradients."""
        return frozenset({Signal.GRADIENT_GRAM})

    @property
    def targets(self) -> tuple[str, ...]:
        """The domain that is measured but not trained on, if there is one."""
        return () if self.target is None else (self.target,)

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        """Uniform gradient weights over the trained domains; the state is their logarithms.

        Raises:
            ConfigError: there is no such target, or it may be trained on.
        """
        if self.target is not None:
            check_target(space, self.target, True, "DoGE.target")
        domains = trained(space)
        logs = np.full(len(domains), -math.log(len(domains)))
        weights = spread(space.names, domains, np.exp(logs))
        decision = Decision(sampling_of(space, self.sampling), gradient_weights=weights)
        return decision, {"domains": list(domains), "logs": logs.tolist()}

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        """The weights after one window."""
        domains, names = state["domains"], signals.mixture.names
        gram = signals.values[Signal.GRADIENT_GRAM]
        measured = np.isfinite(np.diag(gram))
        sources = places(names, domains)
        present = measured[sources] & (signals.tokens[sources] > 0)
        aims = sources[present] if self.target is None else places(names, self.targets)
        logs = np.array(state["logs"])
        if present.any() and measured[aims].all():
            gains = np.zeros(len(domains))
            gains[present] = scores(gram, sources[present], aims, signals.lr, self.most) / self.mu
            logs = tilted(logs, gains, present)
        decision = Decision(gradient_weights=spread(names, domains, np.exp(logs)))
        return decision, {**state, "logs": logs.tolist()}


def scores(
    gram: Vector, sources: NDArray[np.int64], aims: NDArray[np.int64], lr: float, most: float
) -> Vector:
    """How much each of `sources` [J] helps `aims`, from inner products [K, K] of gradients.

    clip(lr W_j / (mean_j |g_j| + 1e-6), 0, most * lr), W_j = sum over aims i of <g_j, g_i>.
    """
    aligned = gram[np.ix_(sources, aims)].sum(axis=1)
    norm = float(np.sqrt(np.diag(gram)[sources]).mean())
    found: Vector = np.clip(lr * aligned / (norm + _EPSILON), 0.0, most * lr)
    return found
