"""What a request will realise, before anything trains: the mixture contract made visible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymix.core.job import Drawn, Prompt, Stage, Strategy, Trainable
from raymix.core.mixture import Mixture
from raymix.data.batches import foresee, joined, samplers
from raymix.data.prepare import Prepared
from raymix.data.store import open_table
from raymix.experiment import algorithm
from raymix.experiment.build import space, strategy
from raymix.experiment.config import Experiment

_NONE: Mapping[str, float] = {}


@dataclass(frozen=True)
class Leg:
    """What one stage of a training would draw, in `steps` optimizer steps."""

    stage: Stage
    drawn: tuple[Drawn, ...]
    steps: int


@dataclass(frozen=True)
class Preview:
    """What one training of `mixture` would draw.

    `steps`: optimizer steps. `notes`: what binds, in words. `legs`: the same stage by stage.
    """

    mixture: Mixture
    budget: str
    drawn: tuple[Drawn, ...]
    steps: int
    notes: tuple[str, ...]
    legs: tuple[Leg, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it is multi-task training."""
        return _plain([leg.stage for leg in self.legs])


def preview(
    experiment: Experiment,
    prepared: Prepared,
    mixture: Mixture | None = None,
    order: Strategy | None = None,
    params: Mapping[str, float] = _NONE,
) -> Preview:
    """Draw the whole budget at `mixture` (default: the prior) without training.

    `order` None: the experiment's strategy; `params` are the strategy's.

    Raises:
        MixtureError: the mixture cannot be drawn; names the domains that are short and by how much.
        ConfigError: the strategy cannot order these domains.
    """
    within = space(experiment, prepared.domains)
    chosen = (mixture or within.prior).ordered(within.names)
    stages = (order or strategy(experiment)).stages(chosen, within.budget, params)
    pack = experiment.training.max_length if experiment.training.packing else None
    tables = [open_table(prepared.stores[name]["train"]) for name in within.names]
    batch, legs = batch_size(experiment), []
    for stage, sampler in zip(
        stages, samplers(tables, within, stages, experiment.study.seed, pack), strict=True
    ):
        foreseen = foresee(sampler)
        legs.append(Leg(stage, foreseen.drawn, math.ceil(foreseen.items / batch)))
    drawn = joined([leg.drawn for leg in legs], [stage.budget.unit for stage in stages])
    return Preview(
        mixture=chosen,
        budget=f"{within.budget.amount:,} {within.budget.unit}",
        drawn=drawn,
        steps=sum(leg.steps for leg in legs),
        notes=tuple(_notes(drawn, within.max_epochs)),
        legs=tuple(legs),
    )


def orders(experiment: Experiment, prepared: Prepared) -> dict[str, Preview]:
    """What each strategy that is not plain multi-task makes of the prior, by its words."""
    asked = {"strategy": experiment.strategy}
    for place, settings in enumerate(experiment.search.searchers):
        if settings.strategy is not None:
            asked[f"search.searchers.{place}.strategy"] = settings.strategy
    within = space(experiment, prepared.domains)
    found: dict[str, Preview] = {}
    for key, written in asked.items():
        made = algorithm.strategy(written, key)
        stages = made.stages(within.prior, within.budget, {})
        if str(made) not in found and not _plain(stages):
            found[str(made)] = preview(experiment, prepared, order=made)
    return found


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


def _plain(stages: Sequence[Stage]) -> bool:
    """Whether this is multi-task training: one stage, without prompt or adapters of its own."""
    first = stages[0]
    return len(stages) == 1 and first.trainable is Trainable.WEIGHTS and first.prompt is Prompt.OFF
