"""Reads rows from files, saved data sets and the hub; every row knows its place, for errors."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from raymix.core.errors import DataError
from raymix.data.locate import Disk, Files, Hub, Source
from raymix.data.messages import Row, short


class Placed(NamedTuple):
    """A row and where it stands, `data/math.jsonl:17`."""

    place: str
    row: Row


def read_rows(source: Source, commit: str | None = None) -> Iterator[Placed]:
    """Every row of `source`, in order; `commit` fixes the hub's version.

    Raises:
        DataError: Something cannot be read; names file and line.
    """
    match source:
        case Files(paths):
            for path in paths:
                yield from _READERS[path.suffix](path)
        case Disk(folder):
            yield from _saved(folder)
        case Hub():
            yield from _hub(source, commit)


def _lines(path: Path) -> Iterator[Placed]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            text = _decode(line, place)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{place}: not JSON ({error.msg} at column {error.colno}): {short(text)}"
                ) from error
            yield Placed(place, _object(row, place))


def _json(path: Path) -> Iterator[Placed]:
    """A list of rows; a file of that ending with one row per line is read as such."""
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):
        yield from _lines(path)
        return
    try:
        rows = json.loads(_whole(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})"
        ) from error
    for number, row in enumerate(rows, start=1):
        place = f"{path}, row {number}"
        yield Placed(place, _object(row, place))


def _csv(path: Path) -> Iterator[Placed]:
    # The module's limit of 128 KiB for a cell is below the length of real answers.
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(_whole(path), newline=""), strict=True)
    try:
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                width = len(reader.fieldnames or ())
                raise DataError(f"{place}: the row does not have the header's {width} cells")
            yield Placed(place, row)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num}: not CSV ({error})") from error


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Placed(f"{path}, row {number}", row)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not Parquet, or damaged, after row {number}: {error}") from error


_READERS = {".jsonl": _lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _saved(folder: Path) -> Iterator[Placed]:
    import datasets

    try:
        rows = datasets.load_from_disk(str(folder))
    except Exception as error:
        # Whatever is wrong with the folder, the user must hear which folder it was.
        raise DataError(f"cannot read the saved data set {folder}: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield Placed(f"{folder}, row {number}", row)


def _hub(source: Hub, commit: str | None) -> Iterator[Placed]:
    import datasets

    where = f"{source.id}[{source.split}]"
    try:
        builder = _builder(source, commit)
        builder.download_and_prepare()
        known = list(builder.info.splits or ())
        if source.split not in known:
            raise DataError(
                f"{source.id} has no split '{source.split}'; its splits: {', '.join(known)}"
            )
        rows: Any = builder.as_dataset(split=datasets.Split(source.split))
    except DataError:
        raise
    except Exception as error:
        # The hub's errors are of many kinds; the user must hear which data set it was.
        raise DataError(f"cannot load '{source.id}' from the hub: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield Placed(f"{where}, row {number}", row)


def hub_commit(source: Hub) -> str:
    """The commit that the hub (or its local cache, offline) has for `source` now.

    Raises:
        DataError: There is no such data set, or the hub cannot be reached.
    """
    try:
        return str(_builder(source, source.revision).hash)
    except Exception as error:
        # The hub's errors are of many kinds; the user must hear which data set it was.
        raise DataError(
            f"'{source.id}' is no local file or folder, and the hub does not give it: {error}"
        ) from error


def _builder(source: Hub, revision: str | None) -> Any:
    import datasets

    return datasets.load_dataset_builder(
        source.id, source.name, revision=revision, data_files=source.data_files
    )


def _decode(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8-sig" if place.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8; "
            "save the file as UTF-8"
        ) from error


def _whole(path: Path) -> str:
    """The text of a file, with the line of the first byte that is none."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        number = before.count(b"\n") + 1
        line = raw[before.rfind(b"\n") + 1 :]
        return _decode(line, f"{path}:{number}")


def _object(row: object, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row must be a JSON object, got {short(row)}")
    return row
