"""Which domains a reweighter weights: those that may be trained on at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raymix.core.errors import ConfigError, MixtureError, nearest
from raymix.core.mixture import Mixture, Space
from raymix.core.simplex import Vector

Sampling = Literal["uniform", "proportional"] | None
"""What is sampled from while losses or gradients are weighted; None: the stage's own mixture."""


def trained(space: Space) -> tuple[str, ...]:
    """Domains that a step may draw: bound and epoch cap leave them more than nothing."""
    pairs = zip(space.names, space.ceiling(), strict=True)
    return tuple(name for name, most in pairs if most > 0)


def sampling_of(space: Space, sampling: Sampling) -> Mixture | None:
    """The mixture that `sampling` names over the trained domains, or the nearest allowed."""
    if sampling is None:
        return None
    plain = space.uniform() if sampling == "uniform" else space.proportional()
    within = np.where(space.ceiling() > 0, plain.array(), 0.0)
    return space.project(within / within.sum())


def places(names: Sequence[str], domains: Sequence[str]) -> NDArray[np.int64]:
    """Places of `domains` in `names`."""
    return np.array([names.index(domain) for domain in domains], dtype=np.int64)


def spread(names: Sequence[str], domains: Sequence[str], weights: Vector) -> Mixture:
    """The mixture of all `names` in which `domains` have `weights` and the others nothing."""
    if not np.isfinite(weights).all():
        bad = domains[int(np.argmin(np.isfinite(weights)))]
        raise MixtureError(f"weight of '{bad}' must be a number, got {weights.tolist()}")
    full = np.zeros(len(names))
    full[places(names, domains)] = weights
    return Mixture.normalised(names, full)


def check_sampling(sampling: Sampling, where: str) -> None:
    """Refuse a name that means nothing."""
    if sampling not in ("uniform", "proportional", None):
        raise ConfigError(f"{where} must be uniform, proportional or None, got {sampling!r}")


def check_every(every: int, where: str) -> None:
    """Refuse a window without steps."""
    if every < 1:
        raise ConfigError(f"{where} must be at least 1, got {every}")


def check_target(space: Space, target: str, held_out: bool, where: str) -> None:
    """Refuse a target that is not there, or that is trained on where it must not be (or not)."""
    if target not in space.names:
        hint = nearest(target, space.names) or f"; known: {', '.join(space.names)}"
        raise ConfigError(f"{where}: no domain '{target}'{hint}")
    may = target in trained(space)
    if held_out and may:
        raise ConfigError(
            f"{where} '{target}' is to be measured, never trained on: give it an upper bound of 0 "
            f"(mixture.bounds: {{{target}: [0, 0]}})"
        )
    if not held_out and not may:
        raise ConfigError(f"{where} '{target}' is not trained on: set held_out")
