"""DoReMi: raise the loss weight of the domains on which the model is behind a reference model.

Xie et al., arXiv:2305.10429, algorithm 1. Group DRO over domains: min over the model, max over the
weights alpha, of sum_i alpha_i (loss_i - reference loss_i).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raymix.core.errors import ConfigError
from raymix.core.job import Json
from raymix.core.mixture import Space
from raymix.core.signals import Decision, Signal, Signals
from raymix.core.simplex import Vector, tilted
from raymix.reweight.trained import (
    Sampling,
    check_every,
    check_sampling,
    places,
    sampling_of,
    spread,
    trained,
)


@dataclass(frozen=True)
class DoReMi:
    """Multiplies each domain's loss weight by exp(eta * excess), normalises, smooths.

    Excess: the mean over the window's tokens of the loss minus the reference model's, each token's
    clipped below at 0 (`clip`) or not. The step's loss is sum_i alpha_i * (mean loss of domain i).
    Weights begin uniform; their mean over all steps is the result (`TrainResult.mean_mixture`; of a
    step, those of the domains that were in it: see `train.course.Course.mean_mixture`).
    `search.Proxy` runs the whole method: reference, proxy, final training on the mean.

    `sampling`: rows come from the uniform mixture, as in the paper, from shares by size, or (None)
    from the stage's own. The space's bounds and epoch caps hold for what is sampled. A loss weight
    is no share of the budget: of bounds, only an upper one of 0 means anything to it (the domain is
    not trained on and its weight is 0). What is made of the mean obeys them all again.

    Clipping freezes the weights once the model is ahead of the reference on every token: no excess
    is left, and whatever the weights were, smoothing draws them to uniform. Unclipped, the domain
    that is least ahead still gains; its minimax is right for negative excess, too.

    `same_step`: the paper's order, in which the weights of a step come from its own losses. The
    workers then hold each step back for the weights, which costs a second forward pass.

    The model's losses are those of the training pass itself, with dropout where there is some;
    `same_step` and the reference are without.

    Departs from the paper: by default weights act from the next step on. A domain that is absent
    from a window keeps its weight (`core.simplex.tilted`); the released code applies the excess
    again that it had before. Loss weights multiply means over the domain's own tokens.
    """

    eta: float = 1.0
    smoothing: float = 1e-3
    clip: bool = True
    sampling: Sampling = "uniform"
    every: int = 1
    same_step: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if not 0 < self.eta < math.inf:
            raise ConfigError(f"DoReMi.eta must be a number above 0, got {self.eta}")
        if not 0 <= self.smoothing <= 1:
            raise ConfigError(f"DoReMi.smoothing must be between 0 and 1, got {self.smoothing}")
        check_sampling(self.sampling, "DoReMi.sampling")
        check_every(self.every, "DoReMi.every")

    @property
    def needs(self) -> frozenset[Signal]:
        """The excess loss, clipped per token or not."""
        return frozenset({Signal.CLIPPED_EXCESS_LOSS if self.clip else Signal.EXCESS_LOSS})

    @property
    def targets(self) -> tuple[str, ...]:
        """None."""
        return ()

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        """Uniform loss weights over the trained domains; the state is their logarithms."""
        domains = trained(space)
        logs = np.full(len(domains), -math.log(len(domains)))
        weights = spread(space.names, domains, np.exp(logs))
        decision = Decision(sampling_of(space, self.sampling), loss_weights=weights)
        return decision, {"domains": list(domains), "logs": logs.tolist()}

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        """The weights after one window."""
        (signal,) = self.needs
        domains, names = state["domains"], signals.mixture.names
        where = places(names, domains)
        excess = np.where(signals.tokens > 0, signals.values[signal], np.nan)[where]
        logs = reweighted(np.array(state["logs"]), excess, self.eta, self.smoothing)
        decision = Decision(loss_weights=spread(names, domains, np.exp(logs)))
        return decision, {**state, "logs": logs.tolist()}


def reweighted(logs: Vector, excess: Vector, eta: float, smoothing: float) -> Vector:
    """Log weights [K] after `excess` [K] (nats per token; no finite number: absent).

    log((1 - c) * alpha + c / K) with alpha proportional to exp(logs + eta * excess), all of it in
    logarithms: neither a large excess nor a tiny weight is lost.
    """
    present = np.isfinite(excess)
    found = tilted(logs, eta * np.where(present, excess, 0.0), present)
    with np.errstate(divide="ignore"):
        kept, spreading = np.log1p(-smoothing), np.log(smoothing / len(logs))
    smoothed: Vector = np.logaddexp(kept + found, spreading)
    return smoothed
