"""Under which names prepared data are kept: fingerprints of all that decides on tokens.

A key depends on the bytes of the data, not on where they lie. What is on the hub is fixed to the
commit that it had when it was first prepared (`<cache>/hub`), so that a study does not change under
its user's feet; deleting that file takes the newest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from raymix.core.codec import encode, fingerprint
from raymix.core.errors import ConfigError, DataError
from raymix.core.job import Json
from raymix.data.content import content_hash, tokenizer_folder, tokenizer_hash, write_json
from raymix.data.formats import Layout
from raymix.data.llamafactory import read_entry
from raymix.data.locate import Disk, Files, Hub, Place, Plan, Source, existing_file, plan
from raymix.data.source import DatasetSpec, DataSpec

_VERSION = 1
"""Raise this when the same data would give other tokens, masks or hashes than before."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def plans(spec: DataSpec) -> tuple[Plan, ...]:
    """Where the rows of each domain lie.

    Raises:
        ConfigError, DataError: Something that `spec` names is not there.
    """
    return tuple(_plan(dataset) for dataset in spec.datasets)


def _plan(dataset: DatasetSpec) -> Plan:
    if dataset.dataset_info is not None:
        place, layout, split = read_entry(dataset.dataset_info)
        if dataset.split == "train":
            dataset = dataset.model_copy(update={"split": split})
        return plan(dataset, place, layout)
    place = Place(str(dataset.path), dataset.name, dataset.revision, dataset.data_files)
    return plan(dataset, place, Layout(dataset.type, dataset.columns or {}))


def template_text(spec: DataSpec) -> str | None:
    """The text of `chat_template`.

    Raises:
        ConfigError: There is no such file, or it is no text.
    """
    if spec.chat_template is None:
        return None
    file = existing_file(spec.chat_template, "chat_template")
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: cannot read '{file}': {error}") from None


def domain_keys(spec: DataSpec, found: tuple[Plan, ...]) -> tuple[str, ...] | None:
    """The key of each domain; None: something is on the hub that was never fetched.

    Raises:
        ConfigError: The tokenizer or template is not there.
        DataError: A file cannot be read.
    """
    cache = spec.cache()
    template = template_text(spec)
    folder = tokenizer_folder(spec.tokenizer)
    try:
        tokenizer = folder and tokenizer_hash(folder, cache, remote_code=spec.trust_remote_code)
        keys = [_domain_key(spec, each, [tokenizer, template]) for each in found]
    except OSError as error:
        raise DataError(f"cannot read '{error.filename}': {error.strerror}") from error
    if not tokenizer or None in keys:
        return None
    return tuple(str(key) for key in keys)


def _domain_key(spec: DataSpec, found: Plan, words: Json) -> str | None:
    splits: list[Json] = []
    for source in (found.train, found.eval, found.test):
        if isinstance(source, int | float):
            splits.append(["carved", source, spec.seed])
            continue
        content = None if source is None else _content(source, spec.cache())
        if source is not None and content is None:
            return None
        splits.append(content)
    shape = [found.domain, encode(found.layout), spec.max_length, spec.assistant_only_loss]
    return fingerprint(_VERSION, splits, shape, words)


def _content(source: Source, cache: Path) -> Json:
    match source:
        case Files(paths):
            return [[path.suffix, content_hash(path, cache)] for path in paths]
        case Disk(_, paths):
            return ["saved", [content_hash(path, cache) for path in paths]]
        case Hub():
            commit = known_commit(source, cache)
            what = [source.id, source.name, source.split, source.data_files]
            return ["hub", *what, commit] if commit else None


def known_commit(source: Hub, cache: Path) -> str | None:
    """The commit that `source` was fixed to; None: it was never fetched."""
    if source.revision is not None and _COMMIT.fullmatch(source.revision):
        return source.revision
    try:
        return str(json.loads(_pin(source, cache).read_text("utf-8"))["commit"])
    except (OSError, ValueError, KeyError):
        return None


def fix_commit(source: Hub, commit: str, cache: Path) -> None:
    """Remember that `source` is to be read at `commit` from now on."""
    write_json(_pin(source, cache), {"id": source.id, "commit": commit})


def _pin(source: Hub, cache: Path) -> Path:
    return cache / "hub" / f"{fingerprint(source.id, source.revision)}.json"
