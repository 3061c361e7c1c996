"""Tiny data sets on disk, and a tokenizer folder to prepare them with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tiny_rows import Write
from tiny_tokenizers import wrapped

from raymix.data.source import DatasetSpec, DataSpec


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    wrapped("byte_level", "chatml").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as JSONL below the test's folder; the path."""

    def write(name: str, rows: Iterable[Any]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def spec(tmp_path: Path, tokenizer_folder: str, write: Write) -> Callable[..., DataSpec]:
    """A spec over the given domains, its cache in the test's folder."""

    def make(*datasets: DatasetSpec, **settings: Any) -> DataSpec:
        defaults = {"tokenizer": tokenizer_folder, "cache_dir": str(tmp_path / "cache")}
        return DataSpec(datasets=datasets, **{**defaults, **settings})

    return make
