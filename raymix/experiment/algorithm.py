"""From a `type` and its fields to a searcher or a strategy, and to the reweighter inside one."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from raymix import reweight, search
from raymix import strategy as strategies
from raymix.core.codec import decode, from_spec, to_spec
from raymix.core.errors import ConfigError, RaymixError, nearest
from raymix.core.job import Json, Spec, Strategy
from raymix.core.mixture import Space
from raymix.core.signals import named
from raymix.core.trial import Searcher
from raymix.experiment.config import SearcherSettings
from raymix.experiment.strategy import StrategySettings

_KEY = "search.searchers"

_ROOMS: Mapping[str, Any] = {"searcher": search, "reweighter": reweight, "strategy": strategies}
_METHODS = {"searcher": "propose", "reweighter": "update", "strategy": "stages"}


def searcher(settings: SearcherSettings) -> Searcher:
    """Make the searcher that `settings` describe.

    A field that holds a `Spec` may be written as the reweighter that it describes is: by its name,
    or as `{type: DoReMi, eta: 1.0}`.

    Raises:
        ConfigError: no such type, or fields that it does not have; names both.
    """
    kind = kind_of(settings.type, "searcher")
    _check_fields(kind, settings.type, settings.settings)
    fields = {
        key: reweighter(value, f"{settings.type}.{key}") if _is_spec(kind, key) else value
        for key, value in settings.settings.items()
    }
    try:
        made: Searcher = kind(**fields)
    except RaymixError as error:
        raise ConfigError(f"{_KEY}: {error}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{_KEY}: '{settings.type}': {error}") from None
    return made


def strategy(settings: StrategySettings, key: str) -> Strategy:
    """Make the strategy that `settings`, which stand at `key`, describe.

    Raises:
        ConfigError: no such type, or fields that it does not have or may not have; names the key.
    """
    kind = kind_of(settings.type, "strategy", key)
    _check_fields(kind, settings.type, settings.settings, key)
    try:
        plain = json.dumps(settings.settings)
        made: Strategy = TypeAdapter(kind).validate_json(plain, strict=True)
    except ValidationError as error:
        # Of the arms of a union the one that has come furthest.
        item = max(error.errors(), key=lambda item: len(item["loc"]))
        path = [str(p) for n, p in enumerate(item["loc"]) if not n or isinstance(p, int)]
        where = ".".join([key, *path])
        if item["type"] == "missing":
            raise ConfigError(f"{key}: '{settings.type}' needs '{'.'.join(path)}'") from None
        raise ConfigError(f"{where}: {item['msg']}, got {item['input']!r}") from None
    except RaymixError as error:
        raise ConfigError(f"{key}: {error}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: '{settings.type}': {error}") from None
    return made


def reweighter(plain: Json, where: str) -> Spec:
    """The description of a reweighter that is written as `plain`.

    That is its name in `raymix.reweight` or `module:Class`, alone or as `type` beside its fields; a
    `Spec` (its JSON, too) stays what it is.

    Raises:
        ConfigError: no such reweighter, or fields that it does not have or may not have.
    """
    if isinstance(plain, Spec):
        return plain
    if isinstance(plain, str):
        plain = {"type": plain}
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{_KEY}: {where} must be a name or {{type: ..}}, got {plain!r}")
    if "path" in plain and "type" not in plain:
        return decode(Spec, dict(plain))
    if not isinstance(plain.get("type"), str):
        raise ConfigError(f"{_KEY}: {where} needs a 'type', got {dict(plain)!r}")
    fields = {key: value for key, value in plain.items() if key not in ("type", "settings")}
    fields |= plain.get("settings") or {}
    name = plain["type"]
    kind = kind_of(name, "reweighter")
    _check_fields(kind, name, fields)
    try:
        return to_spec(from_spec(Spec(f"{kind.__module__}:{kind.__qualname__}", fields)))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{_KEY}: {where}: {name}.{at}: {first['msg']}") from None
    except RaymixError as error:
        raise ConfigError(f"{_KEY}: {where}: {error}") from None


def check_reweighter(spec: Spec, space: Space) -> None:
    """Refuse what a reweighter would say no to when its training begins (an unknown target).

    Raises:
        ConfigError: in its words.
    """
    made = from_spec(spec)
    try:
        with named(made):
            made.init(space, 1, 0)
    except RaymixError as error:
        raise ConfigError(f"{_KEY}: {error}") from None


def kind_of(name: str, what: str, key: str = _KEY) -> Any:
    """The class that the `type` of a searcher, a reweighter or a strategy (`what`) means.

    `key`: where it stands.

    Raises:
        ConfigError: there is none.
    """
    if ":" in name:
        return _imported(name, what, key)
    offered = _offered(what)
    found = offered.get(_plain(name))
    if found is None:
        if what == "searcher" and _plain(name) in _offered("reweighter"):
            raise ConfigError(
                f"{_KEY}: '{name}' is a reweighter: it works inside a training. Write {{type: "
                f"Proxy, reweighter: {name}}} (learn on a proxy, then train on its mean mixture) "
                f"or {{type: Online, reweighter: {name}}} (one training)"
            )
        hint = nearest(_plain(name), offered)
        raise ConfigError(f"{key}: no {what} '{name}'{hint}; known: {', '.join(offered)}")
    return found


def _imported(name: str, what: str, key: str) -> Any:
    """The user's own class."""
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's own code: whatever is wrong there
        words = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}: cannot import '{name}': {words}") from error
    method = _METHODS[what]
    if not (dataclasses.is_dataclass(kind) and callable(getattr(kind, method, None))):
        raise ConfigError(f"{key}: '{name}' is no dataclass with a method {method}")
    return kind


def _offered(what: str) -> dict[str, Any]:
    room = _ROOMS[what]
    return {_plain(name): getattr(room, name) for name in room.__all__}


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _check_fields(kind: Any, name: str, given: Mapping[str, Json], key: str = _KEY) -> None:
    fields = {f.name for f in dataclasses.fields(kind)}
    for field in given:
        if field not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ConfigError(f"{key}: '{name}' has no field '{field}'; known: {known}")


def _is_spec(kind: Any, field: str) -> bool:
    try:
        return get_type_hints(kind).get(field) is Spec
    except NameError:  # a class that is known to type checkers only, in the user's own code
        return False
