"""What a reweighter's signals are read from, between one of its updates and the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from upath import UPath

from raymix.core.errors import TrainingError, nearest
from raymix.core.job import Json, TrainJob
from raymix.core.signals import PROBED, REFERENCED, SUMMED, Reweighter, Signal
from raymix.core.simplex import Vector
from raymix.data.aside import Aside
from raymix.data.batches import Batches, Item
from raymix.storage.place import place
from raymix.train.kit import Kit
from raymix.train.measure import Micro, Window, means
from raymix.train.meter import Meter
from raymix.train.probe import Probe
from raymix.train.reference import Floats, TokenLosses


class Instruments:
    """A reweighter's windows, the rows of its targets, and what it probes.

    Args:
        reweighter: says what it needs, and which domains are targets.
        kit: model and tables.
        job: names domains, bounds and the reference.
        batches: of the stage.
        kept: gives the losses of train rows under weights that do not move.
        meter: counts what probes and losses under other weights take.
    """

    def __init__(
        self,
        reweighter: Reweighter[Any],
        kit: Kit,
        job: TrainJob,
        batches: Batches,
        kept: Callable[[UPath | None], TokenLosses],
        meter: Meter,
    ) -> None:
        self.needs = reweighter.needs
        self.gram: Vector | None = None
        _refuse(reweighter, job)
        self._batches, self._world, self._meter = batches, kit.model.world, meter
        self._reference: TokenLosses | None = None
        kinds = ["loss"]
        if self.needs & REFERENCED:
            assert job.reference is not None
            self._reference = kept(place(job.reference))
            kinds += ["reference", "clipped"]
        self._windows = {kind: Window(len(kit.train), self._world.device) for kind in kinds}
        self._targets = _targets(reweighter, job, batches)
        self._each = max(1, round(batches.size / max(1, int((job.space.ceiling() > 0).sum()))))
        start = place(job.start) if job.start else None
        base = kept(start) if Signal.PERPLEXITY_RATIO in self.needs else None
        probes, streams = self.needs & PROBED, batches.sampler.streams
        self._probe = Probe(kit, streams, base, meter) if probes else None

    def cover(self, items: Sequence[Item]) -> None:
        """See that the reference losses of a step's items are known; a collective call."""
        if self._reference is not None:
            self._reference.cover(items, self._batches.sampler.ahead)

    def reference(self, items: Sequence[Item]) -> Floats | None:
        """Reference losses of the items' loss-bearing tokens [N], where they are asked about."""
        return None if self._reference is None else self._reference.of(items)

    def targets(self) -> list[list[Item]]:
        """The next rows of each target: as many items as a step has of an average domain."""
        return [target.take(self._each) for target in self._targets]

    def add(self, micro: Micro, losses: Tensor) -> None:
        """Take in the token losses [N] of one pass of this rank."""
        self._windows["loss"].add(micro, losses)
        if micro.reference is not None:
            self._windows["reference"].add(micro, micro.reference)
            excess = losses.detach() - micro.reference
            self._windows["clipped"].add(micro, excess.clamp(min=0.0))

    def count(self, tokens: Vector) -> None:
        """Take in the loss tokens [K] of one step, over all ranks."""
        self._windows["loss"].count(tokens)

    def read(self, foreseen: int, validation: Vector | None) -> tuple[Vector, dict[Signal, Vector]]:
        """Loss tokens [K] and the signals of the window, which starts anew; a collective call.

        Args:
            foreseen: updates still expected, this one included.
            validation: eval losses [K], where they are asked for.
        """
        tokens = self._windows["loss"].tokens.copy()
        found: dict[Signal, Vector] = {}
        if self.needs & SUMMED:
            found |= self._means(tokens)
        if validation is not None:
            found[Signal.VALIDATION_LOSS] = validation
        if self.gram is not None:
            found[Signal.GRADIENT_GRAM], self.gram = self.gram, None
        if self._probe is not None:
            found |= self._probe.measure(foreseen)
        for window in self._windows.values():
            window.clear()
        return tokens, {signal: found[signal] for signal in found if signal in self.needs}

    def _means(self, tokens: Vector) -> dict[Signal, Vector]:
        sums = {kind: window.sums(self._world) for kind, window in self._windows.items()}
        found = {Signal.DOMAIN_LOSS: means(sums["loss"], tokens)}
        if "reference" in sums:
            found[Signal.REFERENCE_LOSS] = means(sums["reference"], tokens)
            found[Signal.EXCESS_LOSS] = means(sums["loss"] - sums["reference"], tokens)
            found[Signal.CLIPPED_EXCESS_LOSS] = means(sums["clipped"], tokens)
        return found

    def state(self) -> Json:
        """Plain JSON for the checkpoint; a collective call."""
        return {
            "windows": {kind: w.state(self._world) for kind, w in self._windows.items()},
            "targets": [target.state() for target in self._targets],
            "probe": self._probe and self._probe.state(),
        }

    def restore(self, state: Json) -> None:
        """Go on from `state`."""
        for kind, window in self._windows.items():
            window.restore(state["windows"][kind], self._world)
        for target, kept in zip(self._targets, state["targets"], strict=True):
            target.restore(kept)
        if self._probe is not None:
            self._probe.restore(state["probe"])


def _targets(reweighter: Reweighter[Any], job: TrainJob, batches: Batches) -> list[Aside]:
    """Draws of the domains that are measured and not trained on.

    Raises:
        TrainingError: one does not exist, has no rows, or may be trained on.
    """
    name, names = type(reweighter).__name__, job.space.names
    made = []
    for target in reweighter.targets:
        if target not in names:
            hint = nearest(target, names) or f"; known: {', '.join(names)}"
            raise TrainingError(
                f"reweighter {name} has target '{target}', which is no domain{hint}"
            )
        d = names.index(target)
        if job.space.upper[d] > 0 or batches.mixture.weights[d] > 0:
            raise TrainingError(
                f"reweighter {name} has target '{target}', which may be trained on: give it an "
                "upper bound of 0"
            )
        aside = Aside(batches.sampler.streams[d], d)
        if aside.empty:
            raise TrainingError(f"reweighter {name} has target '{target}', which has no train rows")
        made.append(aside)
    return made


def _refuse(reweighter: Reweighter[Any], job: TrainJob) -> None:
    """Say at the start what cannot be."""
    name, needs = type(reweighter).__name__, reweighter.needs
    if reweighter.every < 1:
        raise TrainingError(f"{name}.every must be at least 1, got {reweighter.every}")
    asked = sorted(needs & REFERENCED)
    if asked and job.reference is None:
        raise TrainingError(
            f"reweighter {name} needs signal '{asked[0]}', but the job names no reference model "
            "(job.reference)"
        )
    if asked and reweighter.targets and Signal.GRADIENT_GRAM in needs:
        raise TrainingError(
            f"reweighter {name} needs '{asked[0]}' and gradients of targets: reference losses of "
            "targets are not measured"
        )


def rows_of(values: Vector) -> Vector:
    """One number a domain [K]: `values` [K] themselves, or the row means of a matrix [K, K].

    A row mean is over the domains that are not NaN: the mean similarity, the inner product with
    the mean gradient.
    """
    if values.ndim == 1:
        return values
    there = np.isfinite(values)
    return means(np.where(there, values, 0.0).sum(axis=1), there.sum(axis=1).astype(np.float64))
