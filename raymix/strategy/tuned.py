"""Numbers of a strategy that a searcher may set beside the mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar, get_type_hints

from raymix.core.errors import ConfigError, nearest

S = TypeVar("S", bound=Any)


def settable(strategy: object) -> tuple[str, ...]:
    """Names of the fields that are numbers (`float`): those that parameters can set."""
    kind: Any = type(strategy)
    hints = get_type_hints(kind)
    return tuple(field.name for field in fields(kind) if hints[field.name] is float)


def tuned(strategy: S, params: Mapping[str, float]) -> S:
    """The strategy with the numbers that `params` set; the others stay.

    Raises:
        ConfigError: it has no such number, or refuses the value.
    """
    if not params:
        return strategy
    known = settable(strategy)
    for name in params:
        if name not in known:
            says = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(
                f"{type(strategy).__name__} has no parameter '{name}'{nearest(name, known)}; {says}"
            )
    found: S = replace(strategy, **params)
    return found
