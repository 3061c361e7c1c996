"""Rows that stand where they should not: held-out rows in train, one domain's rows in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from raymix.data.prepared import Counts, Part
from raymix.data.store import open_table

Hashes = NDArray[np.uint64]

_SHARED = 0.05
"""Share of the smaller domain's train rows above which two domains are worth a warning."""


def with_overlap(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same parts, their eval and test rows that stand in any domain's train rows counted."""
    trains = {part.domain: _hashes(part, "train") for part in parts}
    return tuple(replace(part, counts=_counts(part, trains)) for part in parts)


def shared_rows(parts: Sequence[Part]) -> tuple[str, ...]:
    """A warning for each two domains that train on the same rows."""
    warnings = []
    trains = {part.domain: np.unique(_hashes(part, "train")) for part in parts}
    for (one, left), (other, right) in combinations(trains.items(), 2):
        shared = len(np.intersect1d(left, right, assume_unique=True))
        if shared > _SHARED * min(len(left), len(right)):
            warnings.append(
                f"domains '{one}' ({len(left)} different train rows) and '{other}' ({len(right)}) "
                f"share {shared} of them: what one teaches the other does, too, so their weights "
                "can hardly be told apart"
            )
    return tuple(warnings)


def _hashes(part: Part, split: str) -> Hashes:
    return open_table(part.paths[split]).hashes


def _counts(part: Part, trains: Mapping[str, Hashes]) -> dict[str, Counts]:
    counts = dict(part.counts)
    for split in counts:
        if split == "train":
            continue
        held_out = _hashes(part, split)
        found = {domain: np.isin(held_out, train) for domain, train in trains.items()}
        anywhere = np.logical_or.reduce(list(found.values()))
        where = tuple(domain for domain, hits in found.items() if hits.any())
        counts[split] = replace(counts[split], overlap=int(anywhere.sum()), overlap_with=where)
    return counts
