"""The whole measurement: layers in groups, as few passes as the mathematics allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor
from upath import UPath

from raymix.influence.batch import Batch, Network, Peers
from raymix.influence.curvature import (
    Corrections,
    Factors,
    Fisher,
    covariances,
    eigenvectors,
)
from raymix.influence.gradients import Gradients, correct, gradients, gradients_and_corrections
from raymix.influence.layers import Layer
from raymix.influence.memory import plan_groups
from raymix.influence.score import Scores, scores
from raymix.storage.place import drafted, read_whole

Progress = Callable[[float], None]


class Diagonal(Protocol):
    """A diagonal preconditioner of the model's parameters."""

    def __call__(self, layer: Layer) -> tuple[Tensor, ...]:
        """This worker's shards for the layer's tensors, in host memory."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """How it is measured.

    `memory`: bytes that curvature may take on one worker. `shelf`: folder in which the curvature
    of finished layer groups outlives this process; None: it does not.
    """

    domains: int
    damping: float = 0.1
    fisher: Fisher = "true"
    seed: int = 0
    memory: int = 2**62
    shelf: UPath | None = None


@dataclass
class Measured:
    """What was found, and its cost by phase: seconds, and passes that were made.

    `passes` are over the training rows, "eval gradients" over the eval rows; a pass forward and
    back, as a training makes it, is 1. What was recalled from the shelf has made none.
    """

    scores: Scores
    train: Gradients
    held: Gradients
    layers: tuple[Layer, ...]
    groups: int
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)


def measure(
    network: Network,
    layers: Sequence[Layer],
    train: Sequence[Batch],
    held: Sequence[Batch],
    peers: Peers,
    plan: Plan,
    diagonal: Diagonal | None = None,
    progress: Progress = lambda done: None,
) -> Measured:
    """Influence of the domains in `train` on the losses in `held`; a collective call.

    Passes: over the eval rows one, for their gradients; over the training rows, for each group of
    layers, one for covariances and one for eigenvalues, with the first of which the domains'
    gradients are taken from the same forward passes.

    Args:
        network: in eval mode.
        layers: to look at.
        train: this worker's batches, domain by domain and half by half; every worker has as many.
        held: the same of the eval rows.
        peers: the workers.
        plan: how.
        diagonal: for "adam"; None: without.
        progress: is told the fraction done, 0 to 1.
    """
    groups = _grouped(layers, plan.memory)
    clock = _Clock(progress, len(held) + 2 * len(groups) * len(train))
    with clock.phase("eval gradients", _GRADIENTS):
        seen = gradients(network, layers, held, peers, clock.step)
    taken: Gradients | None = None
    found: list[Scores] = []
    for number, group in enumerate(groups):
        factors = _recalled(plan.shelf, number, group, peers)
        if factors is None:
            factors, taken = _fitted(network, layers, group, train, peers, plan, clock, taken)
            _shelved(plan.shelf, number, factors, peers)
        if taken is None:
            with clock.phase("gradients", _GRADIENTS):
                taken = gradients(network, layers, train, peers, clock.step)
        with clock.phase("scores"):
            shards = {layer.name: diagonal(layer) for layer in group} if diagonal else None
            found.append(
                scores(group, factors, taken, seen, plan.domains, plan.damping, peers, shards)
            )
    assert taken is not None
    return Measured(
        _together(found),
        taken,
        seen,
        tuple(layers),
        len(groups),
        clock.seconds,
        {name: thirds / 3 for name, thirds in clock.thirds.items()},
    )


_GRADIENTS, _CURVATURE = 3, 2
"""Thirds of a training pass: a backward pass to the activations alone is half of a whole one.

With a forward pass of 1 the two cost about 1 and 2.
"""


def _grouped(layers: Sequence[Layer], memory: int) -> list[tuple[Layer, ...]]:
    by_name = {layer.name: layer for layer in layers}
    groups = plan_groups([layer.shape for layer in layers], memory)
    return [tuple(by_name[shape.name] for shape in group) for group in groups]


def _fitted(
    network: Network,
    layers: Sequence[Layer],
    group: Sequence[Layer],
    train: Sequence[Batch],
    peers: Peers,
    plan: Plan,
    clock: _Clock,
    taken: Gradients | None,
) -> tuple[dict[str, Factors], Gradients]:
    """The curvature of `group`, and the gradients of all `layers` if they are not known yet."""
    fisher, seed = plan.fisher, plan.seed
    with clock.phase("covariances", _CURVATURE):
        found = covariances(network, group, train, peers, fisher, seed, clock.step)
    with clock.phase("eigenvectors"):
        rotations = eigenvectors(found, group, peers)
    corrections = Corrections(group, rotations, peers.device)
    if taken is None:
        # One forward pass for the two.
        with clock.phase("eigenvalues and gradients", _GRADIENTS + _CURVATURE - 1):
            taken = gradients_and_corrections(
                network, layers, train, peers, corrections, group, fisher, seed, clock.step
            )
    else:
        with clock.phase("eigenvalues", _CURVATURE):
            correct(network, train, corrections, group, fisher, seed, clock.step)
    return corrections.factors(group, peers), taken


def _together(found: Sequence[Scores]) -> Scores:
    return Scores(
        {name: torch.cat([f.matrices[name] for f in found]) for name in found[0].matrices},
        torch.cat([f.norms for f in found]),
        torch.cat([f.eval_norms for f in found]),
        torch.cat([f.means for f in found]),
        torch.cat([f.spread for f in found]),
    )


_FIELDS = ("inputs", "outputs", "eigenvalues", "kronecker")


def _shelved(
    shelf: UPath | None, number: int, factors: Mapping[str, Factors], peers: Peers
) -> None:
    """Keep a group's curvature, whole or not at all; worker 0 writes.

    A full disk costs what is kept, not the measurement.
    """
    if shelf is None or peers.rank:
        return
    tensors = {
        f"{name}/{field_}": getattr(factor, field_).cpu().contiguous().clone()
        for name, factor in factors.items()
        for field_ in _FIELDS
    }
    with suppress(OSError), drafted(_place(shelf, number)) as draft:
        save_file(tensors, draft)


def _recalled(
    shelf: UPath | None, number: int, group: Sequence[Layer], peers: Peers
) -> dict[str, Factors] | None:
    """A group's curvature as it was kept; None where any worker does not find it whole."""
    tensors: dict[str, Tensor] = {}
    try:
        if shelf is not None:
            tensors = _loaded(_place(shelf, number), peers.device)
    except (OSError, SafetensorError):
        tensors = {}
    wanted = {f"{layer.name}/{field_}" for layer in group for field_ in _FIELDS}
    if not all(peers.gathered(tensors.keys() == wanted)):
        return None
    return {
        layer.name: Factors(*(tensors[f"{layer.name}/{field_}"] for field_ in _FIELDS))
        for layer in group
    }


def _loaded(path: UPath, device: torch.device) -> dict[str, Tensor]:
    if isinstance(path, Path):
        return load_file(path, device=str(device))
    return {name: value.to(device) for name, value in load(read_whole(path)).items()}


def _place(shelf: UPath, number: int) -> UPath:
    return shelf / f"group-{number:03d}.safetensors"


class _Clock:
    """Seconds and thirds of a pass by phase, steps done, progress told at each hundredth."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self.seconds: dict[str, float] = {}
        self.thirds: dict[str, int] = {}
        self._progress, self._steps = progress, max(1, steps)
        self._done, self._told = 0, 0.0

    @contextmanager
    def phase(self, name: str, thirds: int = 0) -> Iterator[None]:
        begun = time.monotonic()
        if thirds:
            self.thirds[name] = self.thirds.get(name, 0) + thirds
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun

    def step(self) -> None:
        self._done += 1
        fraction = min(1.0, self._done / self._steps)
        if fraction - self._told >= 0.01:
            self._told = fraction
            self._progress(fraction)
