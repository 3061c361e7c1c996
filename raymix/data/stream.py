"""One domain's rows in the order in which they are drawn, row by row or pack by pack.

The order is a pure function of (seed, domain, pass): it does not depend on the mixture, so two
trials with near mixtures see nearly the same rows in nearly the same order (common random numbers).
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raymix.core.job import Drawn, Stage
from raymix.core.mixture import Unit

Ints = NDArray[np.int64]

_WINDOW = 64
"""Packs are filled from this many packs' worth of rows at a time."""


class Lengths(Protocol):
    """What the sampler must know of a domain's table."""

    @property
    def domain(self) -> str:
        """Name."""
        ...

    @property
    def tokens(self) -> Ints:
        """Tokens of each row [N]."""
        ...

    @property
    def loss_tokens(self) -> Ints:
        """Loss tokens of each row [N]."""
        ...


@dataclass(frozen=True)
class Pass:
    """A pass over a domain: item i holds `rows[starts[i]:starts[i + 1]]`; `worth` is per row."""

    rows: Ints
    starts: Ints
    worth: Ints

    def cut(self, first: int, end: int | None) -> Pass:
        """The items between two places in `rows`; an item that the cut divides is shortened."""
        last = len(self.rows) if end is None else min(end, len(self.rows))
        inside = self.starts[(self.starts > first) & (self.starts < last)]
        edges = [first, *inside.tolist(), last] if last > first else [first]
        starts = np.asarray(edges, dtype=np.int64) - first
        return Pass(self.rows[first:last], starts, self.worth[first:last])

    def sizes(self) -> Ints:
        """What each item is worth in the budget's unit."""
        if len(self.starts) == len(self.rows) + 1:
            return self.worth
        return np.asarray(np.add.reduceat(self.worth, self.starts[:-1]), dtype=np.int64)


@dataclass(frozen=True)
class Stream:
    """The draws of one domain.

    `pool`: rows available, a seeded prefix that is nested (a larger pool contains a smaller one).
    `pack`: None for single rows, else the number of tokens that a pack holds.
    """

    table: Lengths
    pool: int
    seed: int
    unit: Unit
    replacement: bool = False
    pack: int | None = None

    def _rng(self, number: int) -> np.random.Generator:
        name = zlib.crc32(self.table.domain.encode())
        return np.random.default_rng([self.seed, name, number])

    def order(self, number: int) -> Ints:
        """Row indices of pass `number`: every row of the pool once, or draws with replacement.

        The permutation is of all rows, and rows outside the pool are left out, so that trials with
        different pools see what they share in the same order.
        """
        size, rng = len(self.table.tokens), self._rng(1 + number)
        if self.replacement:
            return self._members()[rng.integers(0, self.pool, self.pool)]
        order = rng.permutation(size)
        if self.pool == size:
            return order
        inside = np.zeros(size, dtype=np.bool_)
        inside[self._members()] = True
        return order[inside[order]]

    def _members(self) -> Ints:
        """The rows of the pool, ascending."""
        return np.sort(self._rng(0).permutation(len(self.table.tokens))[: self.pool])

    def load(self, number: int) -> Pass:
        """Pass `number`, whole."""
        rows = self.order(number)
        worth = self._worth(rows)
        if self.pack is None:
            return Pass(rows, np.arange(len(rows) + 1), worth)
        packs = pack_rows(self.table.tokens[rows].tolist(), self.pack)
        places = np.array([place for pack in packs for place in pack], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum([len(pack) for pack in packs])]).astype(np.int64)
        return Pass(rows[places], starts, worth[places])

    def _worth(self, rows: Ints) -> Ints:
        if self.unit is Unit.EXAMPLES:
            return np.ones(len(rows), dtype=np.int64)
        column = self.table.tokens if self.unit is Unit.TOKENS else self.table.loss_tokens
        return np.asarray(column[rows], dtype=np.int64)

    def mean(self) -> float:
        """What a row of the pool is worth on average in the budget's unit."""
        rows = np.arange(self.pool) if self.pool == len(self.table.tokens) else self._members()
        return float(np.mean(self._worth(rows))) if self.pool else 0.0

    def unique(self, drawn: int) -> int:
        """How many distinct rows are among the first `drawn` draws."""
        if not self.replacement:
            return min(drawn, self.pool)
        seen: set[int] = set()
        for number in range(-(-drawn // self.pool)):
            # As drawn: packing moves rows about within a pass.
            seen.update(self.load(number).rows[: drawn - number * self.pool].tolist())
        return len(seen)


@dataclass(frozen=True)
class Earlier:
    """What the stages before have drawn of each domain.

    `rows` [K] count towards the epoch caps; `places` [K] are how far they came in its order.
    """

    rows: tuple[int, ...]
    places: tuple[int, ...]


def earlier(stages: Sequence[Stage], drawn: Sequence[Sequence[Drawn]], domains: int) -> Earlier:
    """What `stages`, each of which drew `drawn` [K], leave to the stage after them."""
    rows, places = [0] * domains, [0] * domains
    for stage, parts in zip(stages, drawn, strict=False):
        for d, part in enumerate(parts):
            rows[d] += part.rows
            begun = 0 if part.domain in stage.replay else places[d]
            places[d] = max(places[d], begun + part.rows)
    return Earlier(tuple(rows), tuple(places))


def pack_rows(lengths: list[int], capacity: int) -> list[list[int]]:
    """Fill packs of `capacity` tokens: best fit, longest first, window by window.

    Args:
        lengths: tokens of each row; a row longer than `capacity` gets a pack of its own.
        capacity: tokens of a pack.

    Returns:
        For each pack the places of its rows, ascending; packs in the order of their first row, so
        that packing does not sort a pass by length.
    """
    packs: list[list[int]] = []
    start, filled = 0, 0
    for place, length in enumerate(lengths):
        filled += length
        if filled >= _WINDOW * capacity or place == len(lengths) - 1:
            packs += _fill(lengths, range(start, place + 1), capacity)
            start, filled = place + 1, 0
    return packs


def _fill(lengths: list[int], places: range, capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for place in sorted(places, key=lambda p: -lengths[p]):
        at = bisect_left(room, (lengths[place], -1))
        if at < len(room):
            left, pack = room.pop(at)
            packs[pack].append(place)
        else:
            left, pack = capacity, len(packs)
            packs.append([place])
        insort(room, (left - lengths[place], pack))
    return sorted(sorted(pack) for pack in packs)
