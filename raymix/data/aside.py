"""Rows that are drawn beside the sampler, for a measurement: they are never trained on."""

from __future__ import annotations

from copy import copy

import numpy as np

from raymix.core.job import Json
from raymix.data.batches import Item, item_of
from raymix.data.stream import Ints, Pass, Stream

UNTRAINED = 1 << 30
"""From this pass on no training comes by: rows in an order of their own, from the same pool."""


class Aside:
    """Items of one domain in the order of its stream, from pass `first` on; those without loss not.

    A function of (seed, domain, pass) as the draws that are trained on, but realised counts, epoch
    caps and the sampler know nothing of it.
    """

    def __init__(self, stream: Stream, domain: int, first: int = 0) -> None:
        self._stream, self._domain = stream, domain
        self._number, self._place = first, 0
        self._pass: Pass | None = None
        rows = stream.order(first) if stream.pool else np.zeros(0, dtype=np.int64)
        self.empty = not bool((stream.table.loss_tokens[rows] > 0).any())

    def take(self, count: int) -> list[Item]:
        """The next `count` items; [] where the domain has no row with loss."""
        items: list[Item] = []
        while len(items) < count and not self.empty:
            held = self._pass = self._pass or self._stream.load(self._number)
            if self._place + 1 >= len(held.starts):
                self._number, self._place, self._pass = self._number + 1, 0, None
                continue
            rows = held.rows[held.starts[self._place] : held.starts[self._place + 1]]
            item = item_of(self._domain, rows.tolist(), self._stream.table)
            self._place += 1
            if item.loss_tokens:
                items.append(item)
        return items

    def ahead(self, count: int) -> Ints:
        """Rows that the next `count` items hold; nothing is drawn."""
        items = copy(self).take(count)
        return np.array([row for item in items for row in item.rows], dtype=np.int64)

    def state(self) -> Json:
        """How far it has come, as JSON."""
        return [self._number, self._place]

    def restore(self, state: Json) -> None:
        """Go on where `state` was taken."""
        self._number, self._place = state
        self._pass = None
