"""Runs a function on several ranks of one gloo group, each in a process of its own.

The processes are forked from a server that has the imports behind it, seconds of them.
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raymix.train.shard import World, current, leave

IMPORTS = ["raymix.train.worker", "peft", "transformers.models.llama.modeling_llama"]


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(world, *args)` returned on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        # It counts only before the first call, with which the server starts.
        multiprocessing.set_forkserver_preload(IMPORTS)
        args = (size, folder, function, args)
        mp.start_processes(_rank, args, nprocs=size, start_method="forkserver")
        return [pickle.loads((Path(folder) / f"rank-{r}").read_bytes()) for r in range(size)]


def _rank(rank: int, size: int, folder: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    world: World = current()
    result = function(world, *args)
    (Path(folder) / f"rank-{rank}").write_bytes(pickle.dumps(result))
    leave(world)
    dist.destroy_process_group()
