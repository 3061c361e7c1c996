"""Draws rows so that realised shares follow the mixture as closely as whole rows allow.

The interleaving is worst-case fair weighted fair queueing (WF2Q, Bennett and Zhang 1996) with
domains as flows and rows as packets: of the domains that are not ahead of their share, draw from
the one whose next row would be completed first in a fluid schedule. With constant weights no domain
is ever further from its share than one longest row, at any prefix.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymix.core.errors import MixtureError, nearest
from raymix.core.job import Json, Stage
from raymix.core.mixture import Budget, Mixture, Space, Unit
from raymix.core.simplex import Vector, largest_remainder
from raymix.data.stream import Earlier, Ints, Lengths, Pass, Stream, earlier

_NEVER = float("inf")
_TOLERANCE = 1e-9
_SPARE = 1e-6
"""By how much a share may exceed what a study allows."""
_SHORT = 0.01
"""Share of a budget that may stay unspent where a mixture that moves runs into epoch caps."""
_MOST = 65535
"""Domains are noted in 16 bits while they are drawn."""


@dataclass(frozen=True)
class Draws:
    """Consecutive draws: item i is of domain `domains[i]`, rows `rows[starts[i]:starts[i + 1]]`."""

    domains: Ints
    rows: Ints
    starts: Ints


class Sampler:
    """The draws of one stage: a pure function of (seed, stage) and of the mixtures set since.

    Args:
        tables: one per domain, in the order of `space.names`.
        space: epoch caps and the replacement policy.
        stage: mixture, budget, pools and which domains are replayed.
        seed: of the row order.
        pack: tokens of a pack, or None to draw single rows.
        before: what the job's earlier stages have drawn.

    Raises:
        MixtureError: the mixture cannot be drawn under the caps; says what is short by how much.
    """

    def __init__(
        self,
        tables: Sequence[Lengths],
        space: Space,
        stage: Stage,
        seed: int,
        pack: int | None = None,
        before: Earlier | None = None,
    ) -> None:
        self.names = space.names
        if len(self.names) > _MOST:
            raise MixtureError(f"at most {_MOST} domains can be sampled, got {len(self.names)}")
        for name in set(stage.replay) - set(self.names):
            raise MixtureError(
                f"unknown domain '{name}' in Stage.replay{nearest(name, self.names)}"
            )
        self.budget = stage.budget
        self._replay = frozenset(stage.replay)
        self.asked = stage.mixture.ordered(self.names)
        pools = stage.pools or tuple(len(t.tokens) for t in tables)
        self.streams = tuple(
            Stream(table, _pool(table, pool), seed, self.budget.unit, space.replacement, pack)
            for table, pool in zip(tables, pools, strict=True)
        )
        self._limits = tuple(
            _cap(cap, stream.pool, space.replacement)
            for cap, stream in zip(space.max_epochs, self.streams, strict=True)
        )
        self._means = tuple(stream.mean() for stream in self.streams)
        count = len(self.names)
        self._full: list[tuple[int, Pass] | None] = [None] * count
        self._rows, self._total = [0] * count, 0
        self._used, self._lag, self._since = [0] * count, [0.0] * count, 0
        self._weights: list[float] = []
        self._place(before or earlier((), (), count), strict=not stage.replay)

    def follow(self, before: Earlier) -> None:
        """Draw what comes after `before`; to be called ahead of the first draw.

        What the caps do not leave of a domain goes to the others.
        """
        self._place(before, strict=False)

    def _place(self, before: Earlier, strict: bool) -> None:
        self._before = before
        self._first = [
            0 if name in self._replay else place
            for name, place in zip(self.names, before.places, strict=True)
        ]
        self._caps = [
            None if limit is None else max(0, limit - rows)
            for limit, rows in zip(self._limits, before.rows, strict=True)
        ]
        self.capped = (False,) * len(self.names)
        self._set(self.asked, strict)

    def unique(self, d: int, rows: int) -> int:
        """How many of the first `rows` draws of domain `d` are of rows never drawn before."""
        stream = self.streams[d]
        known = stream.unique(self._before.places[d])
        return max(0, stream.unique(self._first[d] + rows) - known)

    @property
    def progress(self) -> float:
        """Share of the budget that is drawn, 0 to 1."""
        return min(1.0, self._total / self.budget.amount)

    @property
    def mixture(self) -> Mixture:
        """The mixture in force, as it was asked for."""
        return self._mixture

    @property
    def shares(self) -> Vector:
        """What of it the epoch caps leave [K]: the shares that are drawn."""
        return self._shares

    def set_mixture(self, mixture: Mixture) -> None:
        """Draw by `mixture` from the next draw on.

        A domain that its epoch cap exhausts gives up its share to the others, in proportion.

        Raises:
            MixtureError: the domains of `mixture` together cannot give what is left of the budget,
                within a hundredth of it.
        """
        ordered = mixture.ordered(self.names)
        left = self.budget.amount - self._total
        if ordered == self._mixture or left <= 0:
            return
        short = left - sum(self._room(d) for d, w in enumerate(ordered.weights) if w > 0)
        if short > _SHORT * self.budget.amount:
            raise MixtureError(
                f"the domains of mixture '{mixture}' are exhausted by their epoch caps: "
                f"{short:.0f} of {self.budget.amount} {self.budget.unit} short"
            )
        self._set(ordered, strict=False)

    def _set(self, mixture: Mixture, strict: bool) -> None:
        """Start a new fluid schedule; what a domain is behind or ahead is carried over."""
        remaining = self.budget.amount - self._total
        room = np.array([self._room(d) for d in range(len(self.names))]) / remaining
        weights = mixture.array()
        # A cap is a whole number of rows, so it may be a row short of the share it allows.
        spare = _SPARE + np.asarray(self._means) / remaining
        if strict and (weights > np.where(room > 0, room + spare, 0.0)).any():
            raise MixtureError(_shortage(self.names, self.streams, weights, room, self.budget))
        self._shares, bound = _redistribute(weights, room, mixture)
        self.capped = tuple(bool(a or b) for a, b in zip(self.capped, bound, strict=True))
        if self._since:
            fluid = np.asarray(self._weights) * self._since - self._used + self._lag
            self._lag = [float(lag) for lag in fluid]
        self._ends, weights = list(self._caps), self._shares
        if self.budget.unit is Unit.EXAMPLES:
            weights = self._count(weights, remaining)
        self._mixture, self._weights = mixture, [float(w) for w in weights]
        self._used, self._since = [0] * len(self.names), 0
        self._arm()

    def _count(self, weights: Vector, remaining: int) -> Vector:
        """Round what is left of a budget of rows to whole ones; the rates [K] that lead there.

        What a domain is behind or ahead is part of what it gets, so that a mixture that moves at
        every step is followed in the long run, too.
        """
        lag = np.asarray(self._lag)
        owed = np.maximum(weights * remaining + lag, 0.0)
        shares = owed / owed.sum() if lag.any() and owed.any() else weights
        counts = largest_remainder(shares, remaining)
        for d, (cap, done) in enumerate(zip(self._caps, self._rows, strict=True)):
            if cap is not None:
                counts[d] = min(counts[d], cap - done)
        self._ends = [done + int(n) for done, n in zip(self._rows, counts, strict=True)]
        return np.where(counts > 0, np.maximum(counts - lag, _TOLERANCE), 0.0) / remaining

    def _room(self, d: int) -> float:
        """What domain `d` can still give under its cap, in the budget's unit."""
        cap = self._caps[d]
        if not self._means[d]:
            return 0.0
        return _NEVER if cap is None else self._means[d] * (cap - self._rows[d])

    def _pass(self, d: int, number: int) -> Pass:
        held = self._full[d]
        if held is None or held[0] != number:
            held = (number, self.streams[d].load(number))
            self._full[d] = held
        return held[1]

    def _arm(self) -> None:
        """Set up the tags of each domain's next item: when it may start, when it is due."""
        count = len(self.names)
        nothing = np.empty(0, dtype=np.int64)
        self._heads = [Pass(nothing, np.zeros(1, dtype=np.int64), nothing)] * count
        self._sizes: list[list[int]] = [[]] * count
        self._dues: list[list[float]] = [[_NEVER]] * count
        self._item = [0] * count
        self._start = [
            (self._used[d] - self._lag[d]) / self._weights[d] if self._weights[d] else _NEVER
            for d in range(count)
        ]
        for d in range(count):
            self._load(d)

    def _load(self, d: int) -> None:
        """Line up the items from the place of domain `d` to the end of its pass or draws."""
        pool, end = self.streams[d].pool, self._ends[d]
        if not self._weights[d] or (end is not None and self._rows[d] >= end):
            self._sizes[d], self._dues[d], self._item[d] = [], [_NEVER], 0
            return
        begun = self._first[d]
        number, first = divmod(begun + self._rows[d], pool)
        last = None if end is None else begun + end - number * pool
        head = self._pass(d, number).cut(first, last)
        sizes = head.sizes()
        dues = (self._used[d] + np.cumsum(sizes) - self._lag[d]) / self._weights[d]
        self._heads[d], self._sizes[d], self._item[d] = head, sizes.tolist(), 0
        self._dues[d] = [*dues.tolist(), _NEVER]

    def take(self, limit: int) -> Draws:
        """Draw up to `limit` items; fewer when the budget, or every domain, is spent."""
        picks = array("H")
        parts: list[list[Pass]] = [[] for _ in self.names]
        while len(picks) < limit and self._total < self.budget.amount:
            first = list(self._item)
            ended = self._run(limit - len(picks), picks)
            for d, start in enumerate(first):
                if self._item[d] > start:
                    drawn = _items(self._heads[d], start, self._item[d])
                    parts[d].append(drawn)
                    self._rows[d] += len(drawn.rows)
                    self._used[d] += int(drawn.worth.sum())
            if ended is None:
                break
            self._load(ended)
        return _merge(np.frombuffer(picks, dtype=np.uint16), parts)

    def ahead(self) -> list[Ints]:
        """Rows of each domain [K] that the rest of the budget draws if the mixture stays as it is.

        Nothing is drawn.
        """
        twin = copy(self)
        twin._full = list(self._full)
        twin.restore(self.state())
        draws = twin.take(self.budget.amount)
        owners = np.repeat(draws.domains, np.diff(draws.starts))
        return [draws.rows[owners == d] for d in range(len(self.names))]

    def _run(self, limit: int, picks: array[int]) -> int | None:
        """Draw until `limit`, the budget's end, or the end of a domain's items, which is returned.

        The hot loop: it only compares tags; what was drawn is added up afterwards.
        """
        start, item, sizes, dues = self._start, self._item, self._sizes, self._dues
        due = [dues[d][item[d]] for d in range(len(item))]
        count, never = range(len(item)), _NEVER
        now = self._since + _TOLERANCE
        end = now + self.budget.amount - self._total - 0.5
        best, draw = -1, picks.append
        for _ in range(limit):
            soonest = never
            for d in count:
                if (tag := due[d]) < soonest and start[d] <= now:
                    best = d
                    soonest = tag
            if soonest == never:
                best = _least_ahead(start, due)
                if best < 0:
                    break
                soonest = due[best]
            draw(best)
            place = item[best]
            now += sizes[best][place]
            start[best] = soonest
            item[best] = place = place + 1
            due[best] = soonest = dues[best][place]
            if now > end or soonest == never:
                break
        clock = round(now)
        self._total += clock - self._since
        self._since = clock
        return best if best >= 0 and due[best] == never else None

    def state(self) -> Json:
        """Where the sampler stands, as JSON; with the same arguments, `restore` goes on from it."""
        return {
            "rows": self._rows,
            "total": self._total,
            "used": self._used,
            "lag": self._lag,
            "since": self._since,
            "weights": self._weights,
            "ends": self._ends,
            "capped": list(self.capped),
            "mixture": self._mixture.as_dict(),
            "shares": self._shares.tolist(),
        }

    def restore(self, state: Json) -> None:
        """Go on where `state` was taken; the draws that follow are the same, bit for bit."""
        self._rows, self._total = list(state["rows"]), state["total"]
        self._used, self._lag, self._since = list(state["used"]), list(state["lag"]), state["since"]
        self._weights, self._ends = list(state["weights"]), list(state["ends"])
        self.capped = tuple(state["capped"])
        self._mixture, self._shares = Mixture.of(state["mixture"]), np.asarray(state["shares"])
        self._arm()


def _pool(table: Lengths, pool: int) -> int:
    size = len(table.tokens)
    if not min(1, size) <= pool <= size:
        raise MixtureError(f"pool of '{table.domain}' must be 1 to its {size} rows, got {pool}")
    return pool


def _cap(epochs: float, pool: int, replacement: bool) -> int | None:
    """Rows that an epoch cap allows."""
    return None if replacement or not np.isfinite(epochs) else int(epochs * pool + _TOLERANCE)


def _shortage(
    names: Sequence[str], streams: Sequence[Stream], weights: Vector, room: Vector, budget: Budget
) -> str:
    return "; ".join(
        f"'{name}' is asked for {w * budget.amount:.0f} {budget.unit} but its {stream.pool} rows "
        f"give {c * budget.amount:.0f} within the epoch cap: {(w - c) * budget.amount:.0f} short"
        for name, stream, w, c in zip(names, streams, weights, room, strict=True)
        if w > c
    )


def _redistribute(weights: Vector, room: Vector, mixture: Mixture) -> tuple[Vector, Vector]:
    """Cap `weights` [K] at `room` [K] and give the rest to the others in proportion.

    Returns the shares and which of them are capped (0 or 1).
    """
    capped = np.zeros(len(weights))
    result = weights.copy()
    for _ in weights:
        over = (result > room * (1 + _TOLERANCE)) & (capped == 0)
        if not over.any():
            break
        capped[over] = 1.0
        result[over] = room[over]
        free = weights[capped == 0].sum()
        if free > 0:
            left = max(0.0, 1.0 - result[capped == 1].sum())
            result[capped == 0] = weights[capped == 0] * left / free
    if result.sum() <= 0:
        raise MixtureError(f"every domain of mixture '{mixture}' is exhausted by its epoch cap")
    return result / result.sum(), capped


def _least_ahead(start: list[float], due: list[float]) -> int:
    """Rounding can leave no domain that is behind; then the one least ahead is drawn. -1: none."""
    alive = [d for d in range(len(start)) if due[d] < _NEVER]
    return min(alive, key=lambda d: start[d], default=-1)


def _items(head: Pass, first: int, last: int) -> Pass:
    rows = slice(int(head.starts[first]), int(head.starts[last]))
    starts = head.starts[first : last + 1] - head.starts[first]
    return Pass(head.rows[rows], starts, head.worth[rows])


def _merge(domains: NDArray[np.uint16], parts: list[list[Pass]]) -> Draws:
    """Bring the domains' items into the order of `domains` [n]."""
    passes = [part for domain in parts for part in domain]
    order = np.argsort(domains, kind="stable")
    if not passes:
        nothing = np.empty(0, dtype=np.int64)
        return Draws(nothing, nothing, np.zeros(1, dtype=np.int64))
    rows = np.concatenate([p.rows for p in passes])
    lengths = np.empty(len(domains), dtype=np.int64)
    lengths[order] = np.concatenate([np.diff(p.starts) for p in passes])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if len(rows) > len(domains):
        order = np.argsort(np.repeat(domains, lengths), kind="stable")
    placed = np.empty_like(rows)
    placed[order] = rows
    return Draws(domains.astype(np.int64), placed, starts)
