"""Batches on the device, and what is measured on them: sums and counts per domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymix.core.job import Json
from raymix.core.simplex import Vector
from raymix.data.batches import IGNORED, Item, Rows, collate, length
from raymix.train.shard import World


def passes(
    items: Sequence[Item],
    limit: int,
    ranks: int,
    overhead: int,
    slots: Sequence[int] | None = None,
) -> list[list[Item]]:
    """Cut a step's items into forward passes that waste little on padding.

    Items are sorted by length and cut where that costs least (dynamic programming). A step's loss
    is a sum over its tokens, so the cut changes speed and memory, not the gradient.

    Args:
        items: of all ranks.
        limit: most items of one pass, over all ranks.
        ranks: among which each pass is divided.
        overhead: what a pass costs beside its tokens, in tokens of one rank.
        slots: of a soft prompt before each row of a domain [K]; None: there are none.

    Returns:
        Passes, those of the longest items first: what does not fit into memory fails at once.
    """
    ordered = sorted(items, key=lambda item: length(item, slots))
    lengths = np.array([length(item, slots) for item in ordered])
    count = len(ordered)
    if count <= limit and lengths[-1] * count - lengths.sum() <= overhead * ranks:
        return [ordered]
    best, cut = np.zeros(count + 1), [0] * (count + 1)
    sizes = -(-np.arange(count, 0, -1) // ranks)
    for end in range(1, count + 1):
        first = max(0, end - limit)
        cost = best[first:end] + sizes[count - end + first : count] * lengths[end - 1]
        cut[end] = first + int(cost.argmin())
        best[end] = cost[cut[end] - first] + overhead
    result, end = [], count
    while end:
        result.append(ordered[cut[end] : end])
        end = cut[end]
    return result


@dataclass(frozen=True)
class Micro:
    """One forward pass: P items of T tokens, N of which bear loss.

    `index` [N]: places in the flattened [P * T] tokens whose prediction is judged; `targets` [N]:
    the tokens that come next; `domains` [N]: their domains; `scale` [N]: what a token's loss counts
    in the step's loss; `reference` [N]: its loss under the reference weights, where they are asked
    about. `slots` [S]: places in the flattened tokens that the soft prompt fills; None: no soft
    prompt is in use. `adapted`: whether the pass goes through the adapters; None: as they are set.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    index: Tensor
    targets: Tensor
    domains: Tensor
    scale: Tensor
    reference: Tensor | None = None
    slots: Tensor | None = None
    adapted: bool | None = None


def share(part: Sequence[Item], rank: int, ranks: int) -> Sequence[Item]:
    """The contiguous part of a pass that worker `rank` of `ranks` takes; it may be empty."""
    each = -(-len(part) // ranks)
    return part[each * rank : each * (rank + 1)]


def micro(
    items: Sequence[Item],
    tables: Sequence[Rows],
    scale: NDArray[np.float32],
    device: torch.device,
    multiple: int = 1,
    reference: NDArray[np.float32] | None = None,
    slots: Sequence[int] | None = None,
    adapted: bool | None = None,
) -> Micro:
    """The tensors of `items`; of a batch without any loss where there are none.

    Args:
        items: of this rank; [] where it has nothing but must run the pass with the others.
        tables: one per domain.
        scale: weight of a token of each domain in the step's loss [K].
        device: where the tensors go.
        multiple: width is padded to a multiple of this.
        reference: loss of each loss-bearing token under other weights [N], item by item.
        slots: of a soft prompt before each row of a domain [K]; None: no soft prompt is in use.
        adapted: whether the pass goes through the adapters; None: as they are set.
    """
    if not items:
        places = nothing = np.zeros(0, dtype=np.int64)
        ids, positions, index, targets, domains = np.zeros((1, 2), np.int64), None, *[nothing] * 3
    else:
        width = -(-max(length(item, slots) for item in items) // multiple) * multiple
        batch = collate(items, tables, width, slots)
        ids, positions, places = batch.input_ids, batch.position_ids, batch.slots
        following = batch.labels[:, 1:]
        rows, columns = np.nonzero(following != IGNORED)
        index, targets = rows * width + columns, following[rows, columns]
        domains = batch.domains[rows]

    def put(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Micro(
        put(ids),
        None if positions is None else put(positions),
        put(index),
        put(targets),
        put(domains),
        put(scale[domains]),
        None if reference is None else put(reference),
        None if slots is None else put(places),
        adapted,
    )


class Window:
    """Loss summed per domain since `clear`: sums on the device, counts known beforehand."""

    def __init__(self, domains: int, device: torch.device) -> None:
        self._sums = torch.zeros(domains, dtype=torch.float64, device=device)
        self.tokens = np.zeros(domains, dtype=np.float64)

    def add(self, micro: Micro, losses: Tensor) -> None:
        """Take in the token losses [N] of one pass of this rank."""
        self._sums.index_add_(0, micro.domains, losses.detach().double())

    def count(self, tokens: Vector) -> None:
        """Take in the loss tokens [K] of one step, over all ranks."""
        self.tokens += tokens

    def sums(self, world: World) -> Vector:
        """Summed loss per domain [K], over all ranks; a collective call."""
        return np.asarray(world.summed(self._sums.clone()).cpu().numpy(), dtype=np.float64)

    def state(self, world: World) -> Json:
        """Plain JSON: each rank's own sums, so that a resumed training adds up the same bits."""
        return {"sums": world.gathered(self._sums.tolist()), "tokens": self.tokens.tolist()}

    def restore(self, state: Json, world: World) -> None:
        """Go on from `state`; with another number of ranks, rank 0 carries all sums."""
        ranks = np.asarray(state["sums"], dtype=np.float64)
        same = len(ranks) == world.size
        sums = ranks[world.rank] if same else ranks.sum(axis=0) * world.first
        self._sums.copy_(torch.from_numpy(sums))
        self.tokens = np.asarray(state["tokens"], dtype=np.float64)

    def clear(self) -> None:
        """Start a new window."""
        self._sums.zero_()
        self.tokens = np.zeros_like(self.tokens)


def means(sums: Vector, tokens: Vector) -> Vector:
    """`sums / tokens` [K], nats per token; NaN where there are no tokens."""
    mean = np.full(len(sums), np.nan)
    mean[tokens > 0] = sums[tokens > 0] / tokens[tokens > 0]
    return mean


def loss_tokens(items: Sequence[Item], domains: int) -> Vector:
    """Loss tokens of a step's items per domain [K]."""
    counts = np.zeros(domains)
    for item in items:
        counts[item.domain] += item.loss_tokens
    return counts
