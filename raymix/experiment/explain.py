"""Turns pydantic's errors into sentences that name the key, the value and the nearest known key."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for each thing that is wrong, in terms of the keys that a user writes."""
    lines = []
    for item in error.errors():
        path = [part for part in item["loc"] if isinstance(part, int) or not _internal(part)]
        lines.append(_line(dict(item), path, model))
    return "\n".join(dict.fromkeys(lines))


def _internal(part: str) -> bool:
    """Pydantic names the arms of a union in the path; users did not write those."""
    return "[" in part or part in {"str", "int", "float", "none", "dict", "bool"}


def _line(item: dict[str, Any], path: list[Any], model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in path)
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = sorted(fields_at(model, path[:-1]))
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"unknown key '{where}'; {hint}"
    if item["type"] == "missing":
        return f"missing key '{where}'"
    message = str(item["msg"]).removeprefix("Value error, ")
    # A validator of a whole block says itself what of it is wrong.
    whole = item["type"] == "value_error" and isinstance(item["input"], Mapping)
    given = "" if whole or "got" in message else f", got {item['input']!r}"
    return f"{where}: {message}{given}"


def fields_at(model: type[BaseModel], path: list[Any]) -> set[str]:
    """The keys that are known at a path of keys and list places below `model`."""
    current: Any = model
    named = False
    for part in path:
        if isinstance(part, int) or named:
            named = False
            continue
        annotation = _annotations(current).get(part)
        found = _blocks(annotation)
        if not found:
            return set()
        # The keys of a mapping are names of the user's own.
        current, named = found[0], get_origin(annotation) is dict
    return set(_annotations(current))


def _annotations(block: Any) -> dict[str, Any]:
    """The keys of a pydantic model or a dataclass, and what they hold."""
    if issubclass(block, BaseModel):
        return {name: info.annotation for name, info in block.model_fields.items()}
    return get_type_hints(block)


def _blocks(annotation: Any) -> list[type]:
    """The models and dataclasses inside an annotation such as `tuple[X, ...] | None`."""
    if isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    ):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _blocks(inner)]
