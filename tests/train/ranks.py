"""Runs a function on several ranks of one gloo group, each in a process of its own."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raymix.train.shard import World, current, leave


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(world, *args)` returned on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (size, folder, function, args), nprocs=size)
        return [pickle.loads((Path(folder) / f"rank-{r}").read_bytes()) for r in range(size)]


def _rank(rank: int, size: int, folder: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    world: World = current()
    result = function(world, *args)
    (Path(folder) / f"rank-{rank}").write_bytes(pickle.dumps(result))
    leave(world)
    dist.destroy_process_group()
