"""Encoded rows of a split, and how eval and test rows are taken out of train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymix.core.errors import DataError
from raymix.data.encode import Ids, Mask
from raymix.data.prepared import Counts
from raymix.data.store import Table


@dataclass(frozen=True)
class Rows:
    """Encoded rows of a split, in reading order; `cut` [N]: which of them lost their end.

    `read` and `dropped` are as in `Counts`: `read == N + sum(dropped.values())`.
    """

    ids: tuple[Ids, ...]
    masks: tuple[Mask, ...]
    hashes: NDArray[np.uint64]
    cut: NDArray[np.bool_]
    read: int
    dropped: Mapping[str, int]

    def table(self, domain: str, split: str, path: Path) -> Table:
        """The rows as flat arrays."""
        lengths = np.array([0, *(len(ids) for ids in self.ids)], dtype=np.int64)
        return Table(
            domain=domain,
            split=split,
            path=path,
            offsets=np.cumsum(lengths),
            ids=np.concatenate(self.ids),
            mask=np.concatenate(self.masks),
            hashes=self.hashes,
        )

    def counts(self) -> Counts:
        """What became of the rows."""
        return Counts(
            read=self.read,
            kept=len(self.ids),
            dropped=dict(self.dropped),
            truncated=int(self.cut.sum()),
            tokens=sum(len(ids) for ids in self.ids),
            loss_tokens=sum(int(mask.sum()) for mask in self.masks),
        )

    def where(self, chosen: NDArray[np.bool_], read: int, dropped: Mapping[str, int]) -> Rows:
        """Only the chosen rows [N]."""
        places = np.flatnonzero(chosen)
        return Rows(
            ids=tuple(self.ids[i] for i in places),
            masks=tuple(self.masks[i] for i in places),
            hashes=self.hashes[chosen],
            cut=self.cut[chosen],
            read=read,
            dropped=dropped,
        )


def carve(rows: Rows, amount: int, seed: int, split: str) -> tuple[Rows, Rows]:
    """Take `amount` rows out for `split`: what is left, and what was taken.

    Rows are chosen by their content and `seed` alone, so the same row goes the same way in every
    domain and wherever it stands in a file; a row's repeats never stay behind.

    Raises:
        DataError: There are not enough different rows.
    """
    distinct, first = np.unique(rows.hashes, return_index=True)
    if amount >= len(distinct):
        raise DataError(
            f"{split}_split asks for {amount} rows, but train has {len(distinct)} different rows "
            "in all, and must keep some"
        )
    order = np.argsort(_mixed(distinct, seed), kind="stable")[:amount]
    taken = np.zeros(len(rows.ids), dtype=np.bool_)
    taken[first[order]] = True
    gone = np.isin(rows.hashes, distinct[order])
    dropped = dict(rows.dropped)
    dropped[f"taken out for {split}"] = amount
    if repeats := int(gone.sum()) - amount:
        dropped[f"repeats a row of {split}"] = repeats
    return rows.where(~gone, rows.read, dropped), rows.where(taken, amount, {})


def _mixed(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A random order of content that is a function of (content, seed): SplitMix64's finaliser."""
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    mixed = hashes + start
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)
