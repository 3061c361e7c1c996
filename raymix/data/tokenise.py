"""Turns the rows of one domain into tables: parsed, rendered, encoded, carved, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from raymix.core.errors import DataError
from raymix.data.carve import Rows, carve
from raymix.data.chat import Chat, Rendered
from raymix.data.encode import Encoder, Ids, Mask
from raymix.data.formats import Layout, parse
from raymix.data.locate import Plan, Source
from raymix.data.prepared import Counts
from raymix.data.rows import Placed
from raymix.data.store import open_table, write_table

CUT = "no loss token within max_length"
ALONE = "no loss token"
"""A text of one token: nothing stands before it."""

_CHUNK = 1024

Read = Callable[[Source], Iterable[Placed]]
Progress = Callable[[str, str, int], None]
"""Hears domain, split and how many rows of it were read so far."""


@dataclass(frozen=True)
class Tokeniser:
    """Makes tables. `read` gives the rows of a source; `seed` chooses carved rows."""

    chat: Chat
    encoder: Encoder
    read: Read
    seed: int
    progress: Progress

    def write(self, plan: Plan, folder: Path) -> dict[str, Counts]:
        """Write `<split>.arrow` for each split of a domain into `folder`.

        Raises:
            DataError: A row is unreadable or teaches nothing, or a split is left without rows.
        """
        splits = {"train": self._rows(plan, "train", plan.train)}
        total = len(splits["train"].ids)
        for name, source in (("eval", plan.eval), ("test", plan.test)):
            if isinstance(source, int | float):
                amount = source if isinstance(source, int) else max(1, round(source * total))
                try:
                    left, taken = carve(splits["train"], amount, self.seed, name)
                except DataError as error:
                    raise DataError(f"domain '{plan.domain}': {error}") from error
                splits |= {"train": left, name: taken}
            elif source is not None:
                splits[name] = self._rows(plan, name, source)
        for name, rows in splits.items():
            write_table(rows.table(plan.domain, name, folder / f"{name}.arrow"))
        return {name: rows.counts() for name, rows in splits.items()}

    def sample(self, folder: Path) -> tuple[tuple[str, bool], ...]:
        """The first train row in `folder` as text, in stretches with or without loss."""
        ids, mask = open_table(folder / "train.arrow").row(0)
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
        stretches = pairwise(edges)
        decode = self.encoder.tokenizer.decode
        return tuple((str(decode(ids[a:b].tolist())), bool(mask[a])) for a, b in stretches)

    def _rows(self, plan: Plan, split: str, source: Source) -> Rows:
        kept: list[tuple[Ids, Mask, bool]] = []
        hashes: list[int] = []
        dropped: Counter[str] = Counter()
        read = 0
        for chunk in _chunks(self.read(source)):
            read += len(chunk)
            texts = []
            contents = []
            for placed in chunk:
                text, content = self._render(placed, plan.layout)
                texts.append(text)
                contents.append(content)
            for content, row in zip(contents, self.encoder.encode(texts), strict=True):
                if row[1].any():
                    kept.append(row)
                    hashes.append(content)
                else:
                    dropped[CUT if row[2] else ALONE] += 1
            self.progress(plan.domain, split, read)
        if not kept:
            raise DataError(self._nothing_left(plan.domain, split, read, dropped))
        return Rows(
            ids=tuple(ids for ids, _, _ in kept),
            masks=tuple(mask for _, mask, _ in kept),
            hashes=np.array(hashes, dtype=np.uint64),
            cut=np.array([cut for _, _, cut in kept], dtype=np.bool_),
            read=read,
            dropped=dropped,
        )

    def _render(self, placed: Placed, layout: Layout) -> tuple[Rendered, int]:
        try:
            example = parse(placed.row, layout)
            return self.chat.render(example), example.content_hash()
        except DataError as error:
            raise DataError(f"{placed.place}: {error}") from error

    def _nothing_left(self, domain: str, split: str, read: int, dropped: Counter[str]) -> str:
        if not read:
            return f"domain '{domain}': its {split} data have no rows"
        return (
            f"domain '{domain}': none of its {read} {split} rows has a loss token within "
            f"max_length {self.encoder.max_length} ({dropped[CUT]} cut off); raise max_length"
        )


def _chunks(rows: Iterable[Placed]) -> Iterator[list[Placed]]:
    left = iter(rows)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk
