"""From a `datasets:` entry to the files (or hub splits) that hold its rows; reads none of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raymix.core.errors import ConfigError, DataError, nearest
from raymix.data.formats import Layout
from raymix.data.source import DatasetSpec, Patterns

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")

_GLOB = re.compile(r"[*?\[]")
_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Files:
    """Data files of one split, in reading order."""

    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Disk:
    """A folder that `Dataset.save_to_disk` made, and the Arrow files in it."""

    folder: Path
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Hub:
    """A split of a data set on the Hugging Face hub."""

    id: str
    split: str
    name: str | None = None
    revision: str | None = None
    data_files: Patterns | Mapping[str, Patterns] | None = None


Source = Files | Disk | Hub


@dataclass(frozen=True)
class Plan:
    """Where the three splits of a domain come from.

    A number instead of a source: that many rows (below 1: that share of them) are taken out of
    train. `test` None: there is no test data.
    """

    domain: str
    layout: Layout
    train: Source
    eval: Source | int | float
    test: Source | int | float | None


@dataclass(frozen=True)
class Place:
    """Where to look for splits: a path or hub id with what narrows it down."""

    path: str
    name: str | None = None
    revision: str | None = None
    data_files: Patterns | Mapping[str, Patterns] | None = None

    def find(self, split: str) -> Source:
        """The rows of `split`.

        Raises:
            DataError: Nothing is there; the message names what is, as far as it is known.
        """
        path = Path(self.path).expanduser()
        if path.is_file():
            return Files((_readable(path, split),))
        if path.is_dir():
            return _in_folder(path, split, self.data_files)
        if _GLOB.search(self.path):
            return Files(tuple(_readable(p, split) for p in _matches(str(path))))
        if not _HUB.fullmatch(self.path) or path.suffix in SUFFIXES or _parent_exists(path):
            raise DataError(missing(path))
        return Hub(self.path, split, self.name, self.revision, self.data_files)


def plan(dataset: DatasetSpec, place: Place, layout: Layout) -> Plan:
    """Find the three splits of a domain whose train data lie at `place`.

    Raises:
        DataError: A file, folder or split is missing; names the domain.
    """
    try:
        test = None
        if dataset.test_split is not None or dataset.test_path is not None:
            test = _held_out(place, dataset.test_split, dataset.test_path)
        return Plan(
            domain=dataset.domain,
            layout=layout,
            train=place.find(dataset.split),
            eval=_held_out(place, dataset.eval_split, dataset.eval_path),
            test=test,
        )
    except DataError as error:
        raise DataError(f"domain '{dataset.domain}': {error}") from error


def _held_out(
    place: Place, split: str | int | float | None, path: str | None
) -> Source | int | float:
    if path is not None:
        return Place(path).find("train" if split is None else str(split))
    if isinstance(split, int | float):
        return split
    return place.find(str(split))


def _readable(path: Path, split: str) -> Path:
    if split != "train":
        raise DataError(
            f"{path} is one file without splits, so it has no split '{split}'; set eval_path or "
            "test_path to a file, or the split to a number of rows"
        )
    if path.suffix not in SUFFIXES:
        raise DataError(f"cannot read {path}: known endings are {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    return path


def _matches(pattern: str) -> list[Path]:
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if _GLOB.search(part)), len(parts) - 1)
    found = Path(*parts[:fixed]).glob("/".join(parts[fixed:]))
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise DataError(f"'{pattern}' matches no file")
    return files


def _in_folder(
    folder: Path, split: str, data_files: Patterns | Mapping[str, Patterns] | None
) -> Source:
    if (folder / "dataset_dict.json").is_file():
        known = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        if split not in known:
            raise DataError(_no_split(folder, split, known))
        folder, split = folder / split, "train"
    if (folder / "state.json").is_file():
        return _saved(folder, split)
    if data_files is not None:
        return Files(tuple(_chosen(folder, split, data_files)))
    by_split = _split_files(folder)
    if split not in by_split:
        raise DataError(_no_split(folder, split, sorted(by_split)))
    return Files(tuple(_readable(path, "train") for path in by_split[split]))


def _saved(folder: Path, split: str) -> Disk:
    if split != "train":
        raise DataError(f"{folder} holds one saved data set without splits, so no split '{split}'")
    state = json.loads((folder / "state.json").read_text("utf-8"))
    paths = tuple(folder / file["filename"] for file in state["_data_files"])
    for path in paths:
        if not path.is_file():
            raise DataError(missing(path))
    return Disk(folder, paths)


def _chosen(folder: Path, split: str, data_files: Patterns | Mapping[str, Patterns]) -> list[Path]:
    if not isinstance(data_files, Mapping):
        data_files = {"train": data_files}
    if split not in data_files:
        raise DataError(_no_split(folder, split, sorted(data_files)))
    patterns = data_files[split]
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    found: list[Path] = []
    for pattern in patterns:
        exact = folder / pattern
        found += [exact] if exact.is_file() else _matches(str(exact))
    return [_readable(path, "train") for path in found]


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Files by the split in their names: `train.jsonl`, `data/train-00000-of-2.parquet`."""
    splits: dict[str, list[Path]] = {}
    inside = [p for place in (folder, folder / "data") if place.is_dir() for p in place.iterdir()]
    for path in sorted(p for p in inside if p.suffix in SUFFIXES and p.is_file()):
        splits.setdefault(re.split(r"-\d", path.stem)[0], []).append(path)
    return splits


def _no_split(place: Path, split: str, known: list[str]) -> str:
    names = ", ".join(known) or "none"
    return f"{place} has no split '{split}'{nearest(split, known)}; its splits: {names}"


def _parent_exists(path: Path) -> bool:
    return path.parent != Path() and path.parent.is_dir()


def missing(path: Path) -> str:
    """That `path` is missing, and what stands there that it may have meant."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    near = nearest(path.name, [p.name for p in parent.iterdir()]) if parent.is_dir() else ""
    return f"no file or folder '{path}'{near}"


def existing_file(path: str, key: str) -> Path:
    """`path`, which must be a file that the setting `key` names.

    Raises:
        ConfigError: It is not.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise ConfigError(f"{key}: {missing(found)}")
    return found
