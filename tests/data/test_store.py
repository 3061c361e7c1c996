"""The store: what is written is what is mapped back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymix.core.errors import DataError
from raymix.data.store import Table, open_table, write_table

ROW = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 1)), max_size=8)


def table(rows: list[list[tuple[int, int]]], hashes: list[int], path: Path) -> Table:
    flat = [token for row in rows for token in row]
    return Table(
        domain="math",
        split="train",
        path=path,
        offsets=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        ids=np.array([i for i, _ in flat], dtype=np.int32),
        mask=np.array([m for _, m in flat], dtype=np.uint8),
        hashes=np.array(hashes, dtype=np.uint64),
    )


@settings(deadline=None)
@given(st.lists(st.tuples(ROW, st.integers(0, 2**64 - 1)), max_size=10))
def test_law_round_trip(rows: list[tuple[list[tuple[int, int]], int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = table([r for r, _ in rows], [h for _, h in rows], Path(folder) / "t.arrow")
        write_table(made)
        seen = open_table(made.path)
        assert (seen.domain, seen.split, seen.rows) == ("math", "train", len(rows))
        assert seen.hashes.tolist() == [h for _, h in rows]
        for index, (row, _) in enumerate(rows):
            ids, mask = seen.row(index)
            assert ids.tolist() == [i for i, _ in row]
            assert mask.tolist() == [m for _, m in row]
        assert seen.tokens.tolist() == [len(row) for row, _ in rows]
        assert seen.loss_tokens.tolist() == [sum(m for _, m in row[1:]) for row, _ in rows]


def test_types_and_no_copies(tmp_path: Path) -> None:
    write_table(table([[(1, 0), (2, 1)], [(3, 1)]], [7, 8], tmp_path / "t.arrow"))
    seen = open_table(tmp_path / "t.arrow")
    kinds = (seen.offsets.dtype, seen.ids.dtype, seen.mask.dtype, seen.hashes.dtype)
    assert kinds == (np.int64, np.int32, np.uint8, np.uint64)
    assert not seen.ids.flags.writeable
    ids, _ = seen.row(0)
    assert np.shares_memory(ids, seen.ids)


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_a_file_cut_short_is_an_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.arrow"
    write_table(table([[(1, 0), (2, 1)]] * 50, list(range(50)), path))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"t\.arrow"):
        open_table(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.arrow"):
        open_table(tmp_path / "none.arrow")


def test_another_arrow_file_is_an_error(tmp_path: Path) -> None:
    import pyarrow as pa

    batch = pa.record_batch({"ids": pa.array([1, 2])})
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    with pytest.raises(DataError, match="is not a table of raymix"):
        open_table(tmp_path / "x.arrow")
