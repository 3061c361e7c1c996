"""A policy over domains: softmax of one logit each, and the gradients that train it (MoS)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raymix.core.simplex import Vector, log_softmax

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8
"""Adam's usual constants (arXiv:1412.6980)."""


def prior_logits(sizes: Vector, tau: float) -> Vector:
    """Logits [K] of the mixture that is proportional to sizes^(1/tau); `tau` inf: uniform.

    The minimum of the fit that MoS pretrains its scorer by, which is 0: no fit is needed.
    """
    return log_softmax(np.log(sizes) / tau)


def descended(start: Vector, gradient: Callable[[Vector], Vector], steps: int, lr: float) -> Vector:
    """Where `steps` of Adam lead from `start` [K], down `gradient`; its moments begin at 0."""
    place, mean, square = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(place)
        mean += (1.0 - _FIRST) * (slope - mean)
        square += (1.0 - _SECOND) * (slope**2 - square)
        size = np.sqrt(square / (1.0 - _SECOND**step)) + _EPSILON
        place -= lr * mean / (1.0 - _FIRST**step) / size
    return place


def scorer_gradient(logits: Vector, rewards: Vector) -> Vector:
    """Gradient [K] of -sum_i R_i log p_i, p = softmax(logits): p sum(R) - R.

    It is 0 where p = R / sum(R).
    """
    found: Vector = np.exp(log_softmax(logits)) * rewards.sum() - rewards
    return found


def policy_gradient(logits: Vector, rewards: Vector, entropy: float = 0.0) -> Vector:
    """Gradient [K] of E_p[R] + `entropy` * H(p), p = softmax(logits): p (A - E_p[A]).

    A = R - `entropy` * log p; it is 0 where p is proportional to exp(R / `entropy`). No baseline:
    an expectation that is taken exactly has no variance to lower.
    """
    logs = log_softmax(logits)
    policy, worth = np.exp(logs), rewards - entropy * logs
    found: Vector = policy * (worth - policy @ worth)
    return found


def sampled_gradient(
    logits: Vector,
    rewards: Vector,
    counts: NDArray[np.int64],
    baseline: float,
    entropy: float = 0.0,
) -> Vector:
    """The same estimated from draws: mean over them of (R_i - baseline) grad log p_i [K].

    `counts` [K]: how often each domain was drawn from softmax(logits). Unbiased (REINFORCE) for
    every `baseline` that does not depend on the draws; the entropy's part is exact.
    """
    policy, total = np.exp(log_softmax(logits)), float(counts.sum())
    worth = counts * (rewards - baseline) / total
    found: Vector = worth - policy * worth.sum()
    return found + policy_gradient(logits, np.zeros_like(rewards), entropy)
