"""Values to plain JSON and back; algorithms to import path plus fields and back."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from raymix.core.errors import ConfigError
from raymix.core.job import Json, Spec

T = TypeVar("T")


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def encode(value: object) -> Json:
    """Plain JSON of a frozen dataclass: enums by value, `NaN` and `Infinity` as JSON knows them."""
    # The default mode would turn NaN and infinity inside untyped JSON (a note, a Spec) into null.
    return to_jsonable_python(_sorted(value), inf_nan_mode="constants")


def _sorted(value: Any) -> Any:
    """`value` with sets as sorted lists: each process has its own order of a set of strings."""
    if isinstance(value, set | frozenset):
        return sorted(_sorted(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_sorted(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _sorted(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def decode(kind: type[T], plain: Json) -> T:
    """The value of type `kind` that `encode` wrote; unknown fields are an error."""
    adapter = _adapter(cast(Any, kind))
    value: T = adapter.validate_python(plain, extra="forbid")
    return value


def to_json(value: object) -> str:
    """One line of JSON."""
    return json.dumps(encode(value), separators=(",", ":"))


def from_json(kind: type[T], line: str) -> T:
    """The inverse of `to_json`."""
    return decode(kind, json.loads(line))


def fingerprint(*parts: Json) -> str:
    """16 hexadecimal digits that change when any part changes."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_spec(algorithm: Any) -> Spec:
    """Describe a frozen dataclass instance so that another process can make it again."""
    kind = type(algorithm)
    if not dataclasses.is_dataclass(kind) or "<locals>" in kind.__qualname__:
        raise ConfigError(f"{kind.__qualname__} must be a dataclass at the top level of a module")
    fields = {f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)}
    return Spec(f"{kind.__module__}:{kind.__qualname__}", encode(fields))


def from_spec(spec: Spec) -> Any:
    """Make the algorithm that `spec` describes."""
    module, _, name = spec.path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot import '{spec.path}': {error}") from error
    return decode(kind, dict(spec.fields))
