"""AdamW, and a learning rate that follows the budget, not a count of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import AdamW
from upath import UPath

from raymix.train import checkpoint
from raymix.train.config import Training
from raymix.train.parts import Part
from raymix.train.prompt import PARAMETER
from raymix.train.shard import World, fill, local, together, whole


def adamw(parameters: Mapping[str, Tensor], training: Training) -> AdamW:
    """AdamW over `parameters`.

    Norms and biases (everything of one dimension) do not decay, nor does a soft prompt. Each group
    says in `part` whether it is the soft prompt's. What has no gradient in a step keeps its values
    and its moments.
    """
    prompt = [p for name, p in parameters.items() if name == PARAMETER]
    others = [p for name, p in parameters.items() if name != PARAMETER]
    groups = [
        {
            "params": [p for p in others if p.ndim >= 2],
            "weight_decay": training.weight_decay,
            "part": Part.WEIGHTS,
        },
        {
            "params": [p for p in others if p.ndim < 2],
            "weight_decay": 0.0,
            "part": Part.WEIGHTS,
        },
        {"params": prompt, "weight_decay": 0.0, "part": Part.PROMPT},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )


def rate(training: Training, progress: float, step: int, steps: int) -> float:
    """Factor on the learning rate for the step that comes next.

    The shapes are transformers' `get_scheduler`, with the share of the budget spent in the place
    of step / steps: the number of steps is not known where the mixture moves or rows differ in
    length.

    Args:
        training: names the shape and the warm-up (below 1: a fraction of the budget).
        progress: share of the job's budget spent before this step, 0 to 1.
        step: optimizer steps taken before this one.
        steps: expected number of steps of the job; places the end of a warm-up counted in steps.
    """
    shape, warmup = training.lr_scheduler_type, training.warmup_steps
    if shape == "constant":
        return 1.0
    if warmup >= 1:
        if step < warmup:
            return step / warmup
        warmup = min(1.0, warmup / steps)
    elif progress < warmup:
        return progress / warmup
    if shape == "constant_with_warmup" or warmup >= 1:
        return 1.0
    done = min(1.0, max(0.0, (progress - warmup) / (1.0 - warmup)))
    return 1.0 - done if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def clip(parameters: Iterable[Tensor], limit: float, world: World) -> Tensor:
    """Scale gradients to a norm of at most `limit` (0: leave them); returns the norm before.

    The norm is over all ranks: a scalar on the device, the same everywhere; nothing waits for it.
    """
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if not gradients:  # of no row that reaches what moves
        return torch.zeros((), device=world.device)
    norms = torch.stack(torch._foreach_norm(gradients))
    norm = world.summed(norms.square().sum()).sqrt()
    if limit > 0:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def moments(optimizer: AdamW, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state as whole tensors in host memory, `<parameter>/<key>`; collective."""
    return {
        f"{name}/{key}": whole(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def set_moments(
    optimizer: AdamW,
    parameters: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    names: Iterable[str],
    world: World,
) -> None:
    """Give `optimizer` the state that `moments` returned, of those parameters that it has.

    Args:
        optimizer: fresh, over `parameters`.
        parameters: by name.
        saved: on rank 0; not looked at elsewhere.
        names: the keys of `saved`, on every rank.
        world: a collective call.
    """
    for entry in names:
        name, key = entry.rsplit("/", 1)
        if name not in parameters:
            continue
        parameter = parameters[name]
        target = (
            torch.zeros((), device=parameter.device)
            if key == "step"
            else torch.zeros_like(parameter, requires_grad=False)
        )
        fill(target, saved.get(entry), world)
        optimizer.state[parameter][key] = target


def recall(optimizer: AdamW, parameters: Mapping[str, Tensor], start: UPath, world: World) -> None:
    """Give `optimizer` the state in the checkpoint `start`, if it is one; a collective call."""
    saved: dict[str, Tensor] = {}
    with together(world):
        if world.first and checkpoint.is_checkpoint(start):
            saved = checkpoint.tensors(start, "optimizer")
    set_moments(optimizer, parameters, saved, world.told(sorted(saved)), world)
