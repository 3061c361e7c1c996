"""Fingerprints of files, from their bytes alone: no tokenizer, no data set is loaded for them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from raymix.core.errors import ConfigError
from raymix.core.job import Json
from raymix.data.locate import missing

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_FRESH = 2.0
"""Seconds in which a file may change again without its time stamp telling."""


def content_hash(path: Path, cache: Path) -> str:
    """SHA-256 of a file; read only once while its size and time stamp stay the same.

    Raises:
        OSError: The file cannot be read.
    """
    path = path.absolute()
    memo = cache / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    stat = path.stat()
    seen = [stat.st_size, stat.st_mtime_ns]
    try:
        known = json.loads(memo.read_text("utf-8"))
        if known["seen"] == seen:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no memo, or one cut short: the file itself answers
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - stat.st_mtime > _FRESH:
        # Where the cache cannot be written, the file is just hashed again next time.
        with contextlib.suppress(OSError):
            write_json(memo, {"seen": seen, "sha256": digest})
    return digest


def write_json(path: Path, value: Json) -> None:
    """Write a JSON file so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
    Path(name).replace(path)


def tokenizer_folder(name: str) -> Path | None:
    """Where the files of a tokenizer lie; None: on the hub, not in its local cache.

    Raises:
        ConfigError: `name` is a path at which there is no folder with a tokenizer.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not _files(folder, _TOKENIZER_FILES):
            raise ConfigError(f"tokenizer: the folder '{name}' holds no tokenizer files")
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"tokenizer: {missing(folder)}")
    if "/" in name and folder.parent.is_dir():
        raise ConfigError(f"tokenizer: {missing(folder)}")
    return _hub_snapshot(name)


def tokenizer_hash(folder: Path, cache: Path, *, remote_code: bool) -> Json:
    """The content of all files in `folder` that decide on tokens; None: there are none."""
    patterns = (*_TOKENIZER_FILES, "*.py") if remote_code else _TOKENIZER_FILES
    hashes = [[p.name, content_hash(p, cache)] for p in _files(folder, patterns)]
    return [*hashes, _kind(folder)] if hashes else None


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def _kind(folder: Path) -> Json:
    """What of the model's config chooses the tokenizer's class; the rest may change freely."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return [config.get("model_type"), config.get("tokenizer_class")]


def _hub_snapshot(name: str) -> Path | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    try:
        commit = (cached / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None
    return cached / "snapshots" / commit
