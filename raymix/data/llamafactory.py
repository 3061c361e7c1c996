"""LLaMA-Factory's `dataset_info.json`: where an entry's rows lie, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raymix.core.errors import ConfigError, DataError, nearest
from raymix.data.formats import Layout
from raymix.data.locate import Place, existing_file

_PARTS = {"prompt": "instruction", "query": "input", "response": "output"}
"""Its names for the parts of an alpaca row, to ours; the other names are the same."""

_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}
_UNUSED = ("images", "videos", "audios", "chosen", "rejected", "kto_tag")
_REFUSED = {
    "ranking": "preference data are no examples to imitate",
    "script_url": "loading scripts are no longer run by datasets",
    "num_samples": "use the mixture's budget, or a file with fewer rows",
}


def read_entry(reference: str) -> tuple[Place, Layout, str]:
    """What `data/dataset_info.json#alpaca_en` says: place, layout and split.

    Raises:
        ConfigError: The file or entry is missing, or is something that raymix cannot use.
    """
    path, _, name = reference.partition("#")
    file = existing_file(path, "dataset_info")
    if not name:
        raise ConfigError(f"dataset_info: name an entry, '{path}#name'")
    try:
        entries = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"cannot read {file}: {error}") from error
    if not isinstance(entries, dict) or not isinstance(entries.get(name), dict):
        known = list(entries) if isinstance(entries, dict) else []
        raise ConfigError(f"dataset_info: {file} has no entry '{name}'{nearest(name, known)}")
    entry = entries[name]
    for key, why in _REFUSED.items():
        if entry.get(key):
            raise ConfigError(f"dataset_info: '{name}' sets {key}, which raymix refuses: {why}")
    if "hf_hub_url" in entry:
        place = Place(entry["hf_hub_url"], entry.get("subset"), entry.get("revision"))
    elif "file_name" in entry:
        place = Place(str(file.parent / entry["file_name"]))
    else:
        raise ConfigError(f"dataset_info: '{name}' has neither file_name nor hf_hub_url")
    if entry.get("folder"):
        place = Place(place.path, place.name, place.revision, f"{entry['folder']}/*")
    return place, _layout(name, entry), entry.get("split", "train")


def _layout(name: str, entry: Mapping[str, Any]) -> Layout:
    formatting = entry.get("formatting", "alpaca")
    columns = entry.get("columns")
    for key in columns or {}:
        if key in _UNUSED:
            raise ConfigError(f"dataset_info: '{name}' uses column {key}; raymix trains on text")
    if formatting == "alpaca":
        return _alpaca(columns)
    if formatting not in ("sharegpt", "openai"):
        raise ConfigError(f"dataset_info: '{name}' has unknown formatting '{formatting}'")
    columns = columns or {}
    tags = entry.get("tags") or {}
    parts = {"conversations": columns.get("messages", "conversations")}
    parts |= {part: columns.get(part, "") for part in ("system", "tools")}
    parts |= {ours: tags[theirs] for ours, theirs in _TURN.items() if theirs in tags}
    roles = {tags[tag]: role for tag, role in _TAGS.items() if tags.get(tag)}
    return Layout("sharegpt", parts, roles)


_TURN = {"from": "role_tag", "value": "content_tag"}


def _alpaca(columns: Mapping[str, str] | None) -> Layout:
    """Where columns are given, those left out are not used, as in LLaMA-Factory."""
    if columns is None:
        return Layout("alpaca", {"system": "", "history": ""})
    if "prompt" in columns and "response" not in columns:
        return Layout("text", {"text": columns["prompt"]})
    parts = dict.fromkeys(("instruction", "input", "output", "system", "history"), "")
    return Layout("alpaca", parts | {_PARTS.get(key, key): name for key, name in columns.items()})
