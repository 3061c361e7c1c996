"""The rewards of MoS (arXiv:2406.08811): what a domain is worth to the model as it now is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from raymix.core.signals import Signal
from raymix.core.simplex import Vector
from raymix.reweight.trained import places

Reward = Literal["transferability", "difficulty", "trajectory"]

MEASURED: Mapping[str, Signal] = {
    "transferability": Signal.HIDDEN_SIMILARITY,
    "difficulty": Signal.PERPLEXITY_RATIO,
}
"""The signal that a reward is made of; "trajectory" is made of other rewards."""


def measure(
    reward: Reward,
    values: Mapping[Signal, Vector],
    names: Sequence[str],
    domains: Sequence[str],
    target: str | None,
) -> Vector:
    """One reward of each of `domains` [K']; NaN where it was not measured.

    `values` are of all `names`. Transferability: mean over j of cos(h_i, h_j), i itself included
    and j over the trained domains that were measured; with a target, cos(h_i, h_target).
    Difficulty: perplexity over the base model's; that of a target among `domains` counts twice.
    """
    where, found = places(names, domains), values[MEASURED[reward]]
    if reward == "difficulty":
        twice = np.array([2.0 if domain == target else 1.0 for domain in domains])
        ratio: Vector = np.asarray(found, dtype=np.float64)[where] * twice
        return ratio
    if target is not None:
        cosine: Vector = np.asarray(found[where, names.index(target)], dtype=np.float64)
        return cosine
    present = np.isfinite(np.diag(found))[where]
    mean = np.full(len(domains), np.nan)
    if present.any():
        seen = where[present]
        mean[present] = found[np.ix_(seen, seen)].mean(axis=1)
    return mean


def combined(rewards: Sequence[Vector]) -> Vector:
    """Several rewards [K] as one: their mean, each over its own mean size first.

    A cosine and a ratio of perplexities have no common scale. One alone stays as it is.
    """
    if len(rewards) == 1:
        return rewards[0]
    scaled = []
    for reward in rewards:
        present = np.isfinite(reward)
        size = float(np.abs(reward[present]).mean()) if present.any() else 0.0
        scaled.append(reward / size if size > 0 else np.full_like(reward, np.nan))
    mean: Vector = np.mean(scaled, axis=0)
    return mean


def remembered(rewards: Vector, before: Vector, fresh: float) -> Vector:
    """Moving average [K]: `fresh` of the new `rewards`, the rest of those `before`.

    What was not measured stays as it was; what was never measured before is taken as it is. The
    published `fresh` is .9, the new reward's: little is smoothed.
    """
    mixed = np.where(np.isfinite(before), fresh * rewards + (1.0 - fresh) * before, rewards)
    return np.where(np.isfinite(rewards), mixed, before)
