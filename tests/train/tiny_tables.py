"""Tables of a few rows, written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raymix.data.store import Table, write_table

VOCABULARY = 64
DOMAINS = ("ants", "bees", "cats")


def write_rows(path: Path, domain: str, split: str, rows: list[tuple[list[int], list[int]]]) -> str:
    """Write rows of (ids, mask) as a table; returns its path."""
    lengths = [len(ids) for ids, _ in rows]
    table = Table(
        domain=domain,
        split=split,
        path=path,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        ids=np.concatenate([ids for ids, _ in rows]).astype(np.int32),
        mask=np.concatenate([mask for _, mask in rows]).astype(np.uint8),
        hashes=np.arange(len(rows), dtype=np.uint64),
    )
    write_table(table)
    return str(path)
