"""The prepared rows of one domain's split: a memory-mapped Arrow file that all processes share."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymix.core.errors import DataError

_SCHEMA = pa.schema(
    [
        pa.field("ids", pa.large_list(pa.int32()), nullable=False),
        pa.field("mask", pa.large_list(pa.uint8()), nullable=False),
        pa.field("hash", pa.uint64(), nullable=False),
    ]
)


@dataclass(frozen=True, eq=False)
class Table:
    """The N rows of one split as flat arrays; row i is `[offsets[i]:offsets[i + 1]]` of `ids`.

    `offsets` int64 [N + 1]; `ids` int32 [tokens]; `mask` uint8 [tokens], 1 where a token is a loss
    target; `hashes` uint64 [N], equal for rows whose content is equal (see `data.formats`). The
    arrays of an opened table are read-only views of the mapped file: nothing is read until used.
    """

    domain: str
    split: str
    path: Path
    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    mask: NDArray[np.uint8]
    hashes: NDArray[np.uint64]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.offsets) - 1

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """Length of each row in tokens [N]."""
        return np.diff(self.offsets)

    @cached_property
    def loss_tokens(self) -> NDArray[np.int64]:
        """Loss targets of each row [N]; a row's first token has nothing before it: never one."""
        counts = np.zeros(self.rows, dtype=np.int64)
        filled = self.tokens > 0
        if filled.any():
            starts = self.offsets[:-1][filled]
            sums = np.add.reduceat(self.mask, starts, dtype=np.int64)
            counts[filled] = sums - self.mask[starts]
        return counts

    @cached_property
    def digest(self) -> str:
        """8 hexadecimal digits that change with the rows: reads all of the table."""
        crc = 0
        for array in (self.offsets, self.ids, self.mask):
            crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc)
        return f"{crc:08x}"

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Token ids and mask of one row: views, both of the row's length."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.ids[start:stop], self.mask[start:stop]


def write_table(table: Table) -> None:
    """Write `table` to `table.path`, as one Arrow record batch.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    offsets = pa.array(table.offsets, type=pa.int64())
    ids = pa.LargeListArray.from_arrays(offsets, pa.array(table.ids, type=pa.int32()))
    mask = pa.LargeListArray.from_arrays(offsets, pa.array(table.mask, type=pa.uint8()))
    hashes = pa.array(table.hashes, type=pa.uint64())
    schema = _SCHEMA.with_metadata({"domain": table.domain, "split": table.split})
    batch = pa.record_batch([ids, mask, hashes], schema=schema)
    with pa.OSFile(str(table.path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def open_table(path: str | Path) -> Table:
    """Map a file that `write_table` wrote.

    Raises:
        DataError: The file is missing, cut short or no table of this package.
    """
    path = Path(path)
    try:
        with pa.memory_map(str(path), "r") as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches != 1 or not reader.schema.equals(_SCHEMA):
                raise DataError(f"{path} is not a table of raymix; delete it, it is made again")
            table = _view(path, reader.schema.metadata, reader.get_batch(0))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"cannot read the prepared table {path}: {error}; delete its folder, it is made again"
        ) from error
    _check(table)
    return table


def _view(path: Path, metadata: dict[bytes, bytes], batch: Any) -> Table:
    ids, mask, hashes = batch.columns
    return Table(
        domain=metadata[b"domain"].decode(),
        split=metadata[b"split"].decode(),
        path=path,
        offsets=ids.offsets.to_numpy(zero_copy_only=True),
        ids=ids.values.to_numpy(zero_copy_only=True),
        mask=mask.values.to_numpy(zero_copy_only=True),
        hashes=hashes.to_numpy(zero_copy_only=True),
    )


def _check(table: Table) -> None:
    """Refuse offsets that point outside the file: later reads would be garbage, not an error."""
    offsets, tokens = table.offsets, len(table.ids)
    whole = (
        len(table.hashes) == table.rows
        and len(table.mask) == tokens
        and offsets[0] == 0
        and offsets[-1] == tokens
        and bool((np.diff(offsets) >= 0).all())
    )
    if not whole:
        raise DataError(f"the prepared table {table.path} is damaged; delete its folder")
