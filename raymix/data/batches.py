"""Steps of items for the training loop, what of them entered, and their arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raymix.core.job import Drawn, Json, Stage
from raymix.core.mixture import Mixture, Space, Unit
from raymix.core.simplex import Vector
from raymix.data.sampler import Sampler
from raymix.data.stream import Lengths, earlier

IGNORED = -100
"""Label of a token that bears no loss."""


class Rows(Lengths, Protocol):
    """A table whose rows can be read."""

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Token ids and loss mask of one row."""
        ...


@dataclass(frozen=True)
class Item:
    """What fills one place of a batch: a row, or a pack of rows of one domain."""

    domain: int
    rows: tuple[int, ...]
    tokens: int
    loss_tokens: int


def item_of(domain: int, rows: Sequence[int], table: Lengths) -> Item:
    """The item that holds `rows` of the table of `domain`."""
    tokens = sum(int(table.tokens[row]) for row in rows)
    return Item(domain, tuple(rows), tokens, sum(int(table.loss_tokens[row]) for row in rows))


@dataclass(frozen=True)
class Batch:
    """Right-padded arrays of P items, T tokens wide.

    `labels` stand at the place of their token (not shifted) and are `IGNORED` where no loss is
    borne. `position_ids` is None where each item is one row; else positions restart with each row,
    from which transformers builds a block-diagonal mask. `slots` [S] are the places in the
    flattened [P * T] tokens that a soft prompt fills, row after row: a row's positions begin with
    them, they bear no loss, and token 0 stands in for them.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64] | None
    domains: NDArray[np.int64]
    slots: NDArray[np.int64]


class Batches:
    """The optimizer steps of a stage: each takes the next `size` items of the sampler."""

    def __init__(self, sampler: Sampler, size: int) -> None:
        self.sampler, self.size = sampler, size
        self._tables = [stream.table for stream in sampler.streams]
        count = len(self._tables)
        self._rows, self._tokens, self._loss = [0] * count, [0] * count, [0] * count

    @property
    def progress(self) -> float:
        """Share of the stage's budget in the steps so far, 0 to 1."""
        return self.sampler.progress

    @property
    def mixture(self) -> Mixture:
        """The mixture in force."""
        return self.sampler.mixture

    @property
    def shares(self) -> Vector:
        """What of it the epoch caps leave [K]."""
        return self.sampler.shares

    def set_mixture(self, mixture: Mixture) -> None:
        """Draw by `mixture` from the next step on."""
        self.sampler.set_mixture(mixture)

    def next_step(self) -> list[Item]:
        """The items of the next optimizer step, over all workers; [] when the budget is spent."""
        draws = self.sampler.take(self.size)
        rows, starts = draws.rows.tolist(), draws.starts.tolist()
        items = []
        for i, domain in enumerate(draws.domains.tolist()):
            item = item_of(domain, rows[starts[i] : starts[i + 1]], self._tables[domain])
            items.append(item)
            self._rows[domain] += len(item.rows)
            self._tokens[domain] += item.tokens
            self._loss[domain] += item.loss_tokens
        return items

    def realised(self) -> tuple[Drawn, ...]:
        """What entered optimizer steps so far, per domain."""
        return _drawn(self.sampler, self._rows, self._tokens, self._loss)

    def state(self) -> Json:
        """Where the steps stand, as JSON."""
        counts = {"rows": self._rows, "tokens": self._tokens, "loss": self._loss}
        return {"sampler": self.sampler.state(), **counts}

    def restore(self, state: Json) -> None:
        """Go on where `state` was taken."""
        self.sampler.restore(state["sampler"])
        self._rows, self._tokens = list(state["rows"]), list(state["tokens"])
        self._loss = list(state["loss"])


@dataclass(frozen=True)
class Foreseen:
    """What a stage will draw: items (rows or packs) in all, and per domain."""

    items: int
    drawn: tuple[Drawn, ...]


def foresee(sampler: Sampler) -> Foreseen:
    """Draw all that is left of a fresh sampler's budget and add it up; nothing is trained."""
    draws = sampler.take(sampler.budget.amount)
    owners = np.repeat(draws.domains, np.diff(draws.starts))
    rows, tokens, loss = [], [], []
    for d, stream in enumerate(sampler.streams):
        own = draws.rows[owners == d]
        rows.append(len(own))
        tokens.append(int(stream.table.tokens[own].sum()))
        loss.append(int(stream.table.loss_tokens[own].sum()))
    return Foreseen(len(draws.domains), _drawn(sampler, rows, tokens, loss))


def samplers(
    tables: Sequence[Lengths],
    space: Space,
    stages: Sequence[Stage],
    seed: int,
    pack: int | None = None,
) -> list[Sampler]:
    """The samplers of a job's stages, each after what the earlier ones will draw.

    Raises:
        MixtureError: a stage's mixture cannot be drawn under the caps.
    """
    made: list[Sampler] = []
    drawn: list[tuple[Drawn, ...]] = []
    for stage in stages:
        before = earlier(stages, drawn, len(tables))
        made.append(Sampler(tables, space, stage, seed, pack, before))
        if len(made) < len(stages):
            drawn.append(foresee(Sampler(tables, space, stage, seed, pack, before)).drawn)
    return made


def joined(stages: Sequence[tuple[Drawn, ...]], units: Sequence[Unit]) -> tuple[Drawn, ...]:
    """What entered the steps of all stages together, per domain.

    Shares are in the stages' unit, in tokens where they differ.
    """
    if len(stages) == 1:
        return stages[0]
    unit = units[0] if len(set(units)) == 1 else Unit.TOKENS
    column = {Unit.EXAMPLES: "rows", Unit.TOKENS: "tokens", Unit.LOSS_TOKENS: "loss_tokens"}[unit]
    amounts = [[float(getattr(drawn, column)) for drawn in stage] for stage in stages]
    totals = [sum(stage) for stage in amounts]
    whole = max(1.0, sum(totals))
    result = []
    for d, parts in enumerate(zip(*stages, strict=True)):
        asked = sum(part.asked * total for part, total in zip(parts, totals, strict=True))
        result.append(
            Drawn(
                domain=parts[0].domain,
                asked=asked / whole,
                share=sum(stage[d] for stage in amounts) / whole,
                rows=sum(part.rows for part in parts),
                unique_rows=sum(part.unique_rows for part in parts),
                epochs=sum(part.epochs for part in parts),
                tokens=sum(part.tokens for part in parts),
                loss_tokens=sum(part.loss_tokens for part in parts),
                capped=any(part.capped for part in parts),
            )
        )
    return tuple(result)


def _drawn(
    sampler: Sampler, rows: Sequence[int], tokens: Sequence[int], loss: Sequence[int]
) -> tuple[Drawn, ...]:
    columns = {Unit.EXAMPLES: rows, Unit.TOKENS: tokens, Unit.LOSS_TOKENS: loss}
    amounts = columns[sampler.budget.unit]
    total = max(1, sum(amounts))
    return tuple(
        Drawn(
            domain=name,
            asked=sampler.asked.weights[d],
            share=amounts[d] / total,
            rows=rows[d],
            unique_rows=sampler.unique(d, rows[d]),
            epochs=rows[d] / max(1, stream.pool),
            tokens=tokens[d],
            loss_tokens=loss[d],
            capped=sampler.capped[d],
        )
        for d, (name, stream) in enumerate(zip(sampler.names, sampler.streams, strict=True))
    )


def length(item: Item, slots: Sequence[int] | None = None) -> int:
    """Tokens that `item` is long with the `slots` [K] that each row of a domain has before it."""
    return item.tokens + (len(item.rows) * slots[item.domain] if slots else 0)


def collate(
    items: Sequence[Item],
    tables: Sequence[Rows],
    width: int | None = None,
    slots: Sequence[int] | None = None,
) -> Batch:
    """The arrays of `items`, padded with token 0.

    Args:
        items: of any domains.
        tables: one per domain [K].
        width: in tokens; None: of the longest item.
        slots: places for a soft prompt before each row of a domain [K]; None: there are none.
    """
    longest = max((length(item, slots) for item in items), default=1)
    shape = (len(items), width or longest)
    ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    packed = any(len(item.rows) > 1 for item in items)
    positions = np.zeros(shape, dtype=np.int64) if packed else None
    places = [np.zeros(0, dtype=np.int64)]
    for place, item in enumerate(items):
        at = 0
        for row in item.rows:
            tokens, mask = tables[item.domain].row(row)
            first = at + (slots[item.domain] if slots else 0)
            end = first + len(tokens)
            ids[place, first:end] = tokens
            labels[place, first + 1 : end] = np.where(mask[1:], tokens[1:], IGNORED)
            places.append(place * shape[1] + np.arange(at, first))
            if positions is not None:
                positions[place, at:end] = np.arange(end - at)
            at = end
        if positions is not None:
            positions[place, at:] = np.arange(shape[1] - at)
    domains = np.array([item.domain for item in items], dtype=np.int64)
    return Batch(ids, labels, positions, domains, np.concatenate(places))
