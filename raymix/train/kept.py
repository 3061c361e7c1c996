"""The tensors of a checkpoint: out of a model and its optimizer, and back into them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import AdamW
from upath import UPath

from raymix.core.job import Json, TrainJob
from raymix.train import checkpoint
from raymix.train.identity import previous
from raymix.train.kit import Kit
from raymix.train.model import Model
from raymix.train.optim import moments, set_moments
from raymix.train.shard import fill, together, whole


def tensors(model: Model, optimizer: AdamW) -> Mapping[str, Mapping[str, Tensor]]:
    """What a job moves and its optimizer's state, whole, by file; a collective call."""
    return {
        "model": {name: whole(p) for name, p in model.parameters.items()},
        "optimizer": moments(optimizer, model.parameters),
    }


def take_up(folder: UPath, job: TrainJob, kit: Kit, optimizer: AdamW) -> Json | None:
    """Give model and optimizer what `job` goes on from; its state. A collective call.

    None: there is no whole checkpoint of this very job, and none that it branches off.

    Args:
        folder: of the job's checkpoints.
        job: as it was delivered.
        kit: its model is as the job begins.
        optimizer: fresh, over the model's parameters.
    """
    world, state = kit.model.world, None
    weights: dict[str, Tensor] = {}
    slots: dict[str, Tensor] = {}
    with together(world):
        found = previous(folder, job, kit.setup) if world.first else None
        if found is not None:
            place, state = found
            weights = checkpoint.tensors(place, "model")
            slots = checkpoint.tensors(place, "optimizer")
    state = world.told(state)
    if state is None:
        return None
    # A branch may move what its trunk does not: that is still as it was at the start.
    kept = set(world.told(sorted(weights)))
    for name, parameter in kit.model.parameters.items():
        if name in kept:
            fill(parameter, weights.get(name), world)
    set_moments(optimizer, kit.model.parameters, slots, world.told(sorted(slots)), world)
    return state
