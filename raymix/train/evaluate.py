"""Loss of every domain's held-out rows, in nats per token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from raymix.core.errors import TrainingError
from raymix.core.simplex import Vector
from raymix.data.batches import Item
from raymix.data.store import Table
from raymix.train.measure import Window, means, micro
from raymix.train.model import Model

_SUBSET_SEED = 20505
"""The rows looked at while searching are the same in every trial, whatever its seed."""


class HeldOut:
    """The rows of one split that are evaluated, in batches of like length.

    A batch holds rows of any domains: losses are summed per domain, and rows of like length need
    the least padding.

    Args:
        tables: one per domain [K].
        rows: at most so many of each domain, a fixed subset; None: all.
        batch: rows per forward pass of one worker.
    """

    def __init__(self, tables: Sequence[Table], rows: int | None, batch: int) -> None:
        items = [
            Item(domain, (int(row),), int(table.tokens[row]), int(table.loss_tokens[row]))
            for domain, table in enumerate(tables)
            for row in _subset(table, rows)
        ]
        items.sort(key=lambda item: (item.tokens, item.domain, item.rows))
        self.tables = tables
        self.batches = [items[i : i + batch] for i in range(0, len(items), batch)]
        self.tokens = np.zeros(len(tables))
        for item in items:
            self.tokens[item.domain] += item.loss_tokens
        for table, tokens in zip(tables, self.tokens, strict=True):
            if not tokens:
                raise TrainingError(f"domain '{table.domain}' has no {table.split} row with loss")


def _subset(table: Table, rows: int | None) -> Sequence[int]:
    usable = np.flatnonzero(table.loss_tokens > 0)
    if rows is None or rows >= len(usable):
        return list(usable)
    chosen = np.random.default_rng(_SUBSET_SEED).permutation(len(usable))[:rows]
    return list(usable[np.sort(chosen)])


def evaluate(model: Model, held: HeldOut) -> Vector:
    """Mean loss per domain [K], nats per token, on all ranks; a collective call."""
    world, module = model.world, model.module
    window = Window(len(held.tables), world.device)
    scale = np.zeros(len(held.tables), dtype=np.float32)
    module.eval()
    with torch.no_grad():
        for first in range(0, len(held.batches), world.size):
            mine = first + world.rank
            items = held.batches[mine] if mine < len(held.batches) else []
            tensors = micro(items, held.tables, scale, world.device)
            window.add(tensors, model.losses(tensors))
    module.train()
    return means(window.sums(world), held.tokens)
