"""What a request will realise, before anything trains: the mixture contract made visible."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raymix.core.job import Drawn
from raymix.core.mixture import Mixture
from raymix.data.batches import foresee
from raymix.data.prepare import Prepared
from raymix.data.sampler import Sampler
from raymix.data.store import open_table
from raymix.experiment.build import space, strategy
from raymix.experiment.config import Experiment


@dataclass(frozen=True)
class Preview:
    """What one training of `mixture` would draw.

    `steps`: optimizer steps. `notes`: what binds, in words.
    """

    mixture: Mixture
    budget: str
    drawn: tuple[Drawn, ...]
    steps: int
    notes: tuple[str, ...]


def preview(experiment: Experiment, prepared: Prepared, mixture: Mixture | None = None) -> Preview:
    """Draw the whole budget at `mixture` (default: the prior) without training.

    Raises:
        MixtureError: the mixture cannot be drawn; names the domains that are short and by how much.
    """
    within = space(experiment, prepared.domains)
    chosen = (mixture or within.prior).ordered(within.names)
    stages = strategy().stages(chosen, within.budget, {})
    pack = experiment.training.max_length if experiment.training.packing else None
    tables = [open_table(prepared.stores[name]["train"]) for name in within.names]
    sampler = Sampler(tables, within, stages[0], experiment.study.seed, pack)
    foreseen = foresee(sampler)
    batch = batch_size(experiment)
    return Preview(
        mixture=chosen,
        budget=f"{within.budget.amount:,} {within.budget.unit}",
        drawn=foreseen.drawn,
        steps=math.ceil(foreseen.items / batch),
        notes=tuple(_notes(foreseen.drawn, within.max_epochs)),
    )


def batch_size(experiment: Experiment) -> int:
    """Rows, or packs, in one optimizer step over all workers."""
    training = experiment.training
    each = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return each * experiment.cluster.num_workers


def _notes(drawn: tuple[Drawn, ...], caps: tuple[float, ...]) -> list[str]:
    notes = []
    for row, cap in zip(drawn, caps, strict=True):
        if row.capped or (math.isfinite(cap) and row.epochs >= cap * (1 - 1e-6)):
            notes.append(f"'{row.domain}' is at its cap of {cap:g} epochs")
        elif row.epochs > 4:
            notes.append(f"'{row.domain}' is repeated {row.epochs:.1f} times")
        if row.asked > 0 and row.rows == 0:
            notes.append(f"'{row.domain}' is asked for {row.asked:.4f} but gets no row")
    return notes
