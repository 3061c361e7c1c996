"""The workers of one training: who they are, what they say to each other, how a model is split.

FSDP2 (`fully_shard`) on GPU and on CPU alike. Nothing here asks for more than one worker: a world
of one has no process group, and every function then works on whole tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from raymix.core.errors import CheckpointError, RaymixError, TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The workers that train one model together, seen from one of them.

    `control` carries messages (decisions, reports) between CPUs, apart from the gradients' group;
    None for a worker on its own.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which reports, decides and writes."""
        return self.rank == 0

    def told(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank."""
        if self.control is None:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return [value for value in values if value is not None]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over ranks, in place, on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.control is not None:
            dist.barrier(group=self.control)


def current(device: torch.device | str = "cpu") -> World:
    """The world that `torch.distributed` describes; a world of one where it is not initialised.

    A collective call: every rank makes it once, after `init_process_group`.
    """
    device = torch.device(device)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return World(device=device)
    control = dist.new_group(backend="gloo")
    return World(dist.get_rank(), dist.get_world_size(), device, control)


@contextmanager
def together(world: World) -> Iterator[None]:
    """A stretch without collective calls in which ranks may fail apart; if one does, all raise.

    Raises:
        TrainingError: what went wrong on the first rank that failed, on every rank;
            CheckpointError, where that is what it was.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if world.size == 1:
        if failure is not None:
            raise failure
        return
    said, outside = next(filter(lambda each: each[0], world.gathered(_said(failure))), ("", False))
    if said:
        raise (CheckpointError if outside else TrainingError)(said) from failure


def _said(failure: Exception | None) -> tuple[str, bool]:
    """The failure in words, and whether it is a checkpoint's."""
    if failure is None:
        return "", False
    named = isinstance(failure, RaymixError)
    words = str(failure) if named else f"{type(failure).__name__}: {failure}"
    return words, isinstance(failure, CheckpointError)


def leave(world: World) -> None:
    """Wait for all ranks: gloo may abort where one tears down while another still talks."""
    world.barrier()


def split(module: nn.Module, blocks: Iterable[nn.Module], world: World, bf16: bool) -> None:
    """Shard `module` over the world, one all-gather per block; gradients are summed over ranks.

    The loop divides losses by counts over the whole step, so FSDP2's average over ranks is off.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32
    )
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            # gloo has no PREMUL_SUM, which FSDP2 would use for a factor of its own.
            part.set_force_sum_reduction_for_comms(True)


def reshard(module: nn.Module) -> None:
    """Let go of gathered weights: FSDP2 keeps the root's after a forward without a backward.

    To be called before shards are written to, else the next forward does not see it.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this rank holds, sharing its memory."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """What is sharded as `tensor` is, of which this rank holds `part`, sharing its memory."""
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, in host memory; a collective call where it is sharded."""
    with torch.no_grad():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        return full.cpu()


def fill(target: Tensor, source: Tensor | None, world: World) -> None:
    """Copy rank 0's `source`, whole, into `target`; other ranks' source is not looked at."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            if source is None:
                source = torch.empty(target.shape, dtype=target.dtype)
            mesh = target.device_mesh
            source = source.to(mesh.device_type, target.dtype)
            shared = distribute_tensor(source, mesh, target.placements, src_data_rank=0)
            local(target).copy_(shared.to_local())
            return
        if source is not None:
            target.copy_(source)
        if world.size > 1:
            dist.broadcast(target, src=0)
