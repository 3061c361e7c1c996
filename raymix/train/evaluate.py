"""Loss and accuracy of every domain's held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymix.core.errors import TrainingError
from raymix.core.simplex import Vector
from raymix.data.batches import Item, length
from raymix.data.store import Table
from raymix.train.measure import Micro, Window, means, micro
from raymix.train.model import Model
from raymix.train.use import PLAIN, Use

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
        self.tables, self._batch = tables, batch
        self.batches = [items[i : i + batch] for i in range(0, len(items), batch)]
        self.tokens, self.rows = np.zeros(len(tables)), np.zeros(len(tables))
        for item in items:
            self.tokens[item.domain] += item.loss_tokens
            self.rows[item.domain] += 1
        for table, tokens in zip(tables, self.tokens, strict=True):
            if not tokens:
                raise TrainingError(f"domain '{table.domain}' has no {table.split} row with loss")

    def parted(self, use: Use) -> list[tuple[list[Item], bool | None]]:
        """The batches, and whether each goes through the adapters (see `Micro.adapted`).

        None holds rows that do and rows that do not; rows are as long as `use` makes them.
        """
        if use == PLAIN:
            return [(items, None) for items in self.batches]
        parted: list[tuple[list[Item], bool | None]] = []
        for group, adapted in use.groups([item for items in self.batches for item in items]):
            group.sort(key=lambda item: length(item, use.slots))
            each = self._batch
            parted += [(group[i : i + each], adapted) for i in range(0, len(group), each)]
        return parted


def _subset(table: Table, rows: int | None) -> Sequence[int]:
    usable = np.flatnonzero(table.loss_tokens > 0)
    if rows is None or rows >= len(usable):
        return list(usable)
    chosen = np.random.default_rng(_SUBSET_SEED).permutation(len(usable))[:rows]
    return list(usable[np.sort(chosen)])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one look at the held-out rows has found, by domain [K].

    `losses`: means over judged tokens, nats. `accuracies`: the share of rows that are right to the
    last token, 0 to 1. A row is right where each judged token is the model's greedy choice after
    the tokens before it in the row. By induction that is what greedy decoding from the prompt gives
    back, end of turn included, each assistant turn after the true turns before it. (Where prompts
    bear loss, with `assistant_only_loss` off, they have to be right, too.)
    """

    losses: Vector
    accuracies: Vector

    def metrics(self, names: Sequence[str], split: str) -> dict[str, float]:
        """`<split>/<domain>/loss` and `<split>/<domain>/accuracy`."""
        columns = {"loss": self.losses, "accuracy": self.accuracies}
        return {
            f"{split}/{name}/{column}": float(value)
            for column, values in columns.items()
            for name, value in zip(names, values, strict=True)
        }


def evaluate(model: Model, held: HeldOut, use: Use = PLAIN) -> Evaluation:
    """Losses and accuracies of all domains, on all ranks; a collective call.

    `use` says with what of the model the rows of each domain are looked at.
    """
    world, module = model.world, model.module
    window = Window(len(held.tables), world.device)
    exact = torch.zeros(len(held.tables), dtype=torch.float64, device=world.device)
    scale = np.zeros(len(held.tables), dtype=np.float32)
    module.eval()
    with torch.no_grad():
        batches = held.parted(use)
        for first in range(0, len(batches), world.size):
            mine = first + world.rank
            items, adapted = batches[mine] if mine < len(batches) else ([], None)
            tensors = micro(
                items, held.tables, scale, world.device, slots=use.slots, adapted=adapted
            )
            losses, right = model.judged(tensors)
            window.add(tensors, losses)
            if items:
                owners = torch.tensor([item.domain for item in items], device=world.device)
                exact.index_add_(0, owners, whole_rows(tensors, right))
    module.train()
    accuracies = means(np.asarray(world.summed(exact).cpu()), held.rows)
    return Evaluation(means(window.sums(world), held.tokens), accuracies)


def whole_rows(micro: Micro, right: Tensor) -> Tensor:
    """1 for each row [P] of which every judged token is `right` [N], else 0; fp64."""
    places, width = micro.input_ids.shape
    wrong = torch.bincount(micro.index[~right] // width, minlength=places)
    return (wrong == 0).double()
