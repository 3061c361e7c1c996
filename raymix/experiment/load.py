"""Reads an experiment from YAML, with dotted overrides; errors name file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from raymix.core.errors import ConfigError
from raymix.core.job import Json
from raymix.experiment.config import Experiment


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in the YAML file `path`.

    Args:
        path: the file.
        overrides: `dotted.key=value`, read as YAML; list places are numbers (`datasets.0.path=x`).

    Raises:
        ConfigError: the file is missing or is no YAML, or what it says does not fit; names the file
            and, where a key is at fault, the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no experiment file '{path}'{_nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{path}': {error}") from None
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{path}' is no YAML: {error}") from None
    if not isinstance(plain, dict):
        found = "nothing" if plain is None else f"a {type(plain).__name__}"
        raise ConfigError(f"'{path}' must hold a mapping of keys, got {found}")
    _refuse_twice(tree, path)
    for override in overrides:
        apply(plain, override)
    try:
        return Experiment.model_validate(plain)
    except ConfigError as error:
        lines = [_located(line, tree, path, overrides) for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from None


def dump(experiment: Experiment) -> Json:
    """Plain JSON that makes an equal experiment again."""
    return experiment.model_dump(mode="json")


def to_yaml(experiment: Experiment) -> str:
    """The experiment as a YAML file's text; `load` makes an equal one of it."""
    return yaml.safe_dump(dump(experiment), sort_keys=False, allow_unicode=True)


def apply(plain: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in place."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override is written key=value, got '{override}'")
    *path, last = key.lstrip("-").split(".")
    here: Any = plain
    for part in path:
        here = _child(here, part, key)
    try:
        # YAML would take a pattern such as *.mlp.* for the name of an anchor, which cannot be here.
        parsed = value if value.startswith("*") else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value of override '{override}': {error}") from None
    if isinstance(here, list):
        here[_place(here, last, key)] = parsed
    else:
        here[last] = parsed


def _child(here: Any, part: str, key: str) -> Any:
    if isinstance(here, list):
        return here[_place(here, part, key)]
    child = here.setdefault(part, {})
    if child is None:
        child = here[part] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override '{key}': '{part}' holds {child!r}, not a block of keys")
    return child


def _place(here: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(here):
        raise ConfigError(f"override '{key}': '{part}' is no place in a list of {len(here)}")
    return int(part)


def _nearby(path: Path) -> str:
    parent = path.parent if path.parent.is_dir() else Path()
    names = [p.name for p in parent.iterdir() if p.suffix in {".yaml", ".yml"}]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean '{parent / near[0]}'?" if near else ""


def _refuse_twice(node: yaml.Node | None, path: Path) -> None:
    """Refuse a key that stands twice in one block: YAML would silently drop the first."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_twice(child, path)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for name, child in node.value:
            line = name.start_mark.line + 1
            if name.value in seen:
                raise ConfigError(
                    f"{path}:{line}: key '{name.value}' stands in line {seen[name.value]} already"
                )
            if isinstance(name.value, str):
                seen[name.value] = line
            _refuse_twice(child, path)


def _located(
    message: str, tree: yaml.Node | None, path: Path, overrides: Sequence[str] = ()
) -> str:
    """Put `file:line`, or the override, before a message that names a dotted key or a domain."""
    domain = re.match(r"domain '([^']*)'", message)
    if domain is not None:
        line = _domain_line(tree, domain[1])
        return f"{path}:{line}: {message}" if line else f"{path}: {message}"
    match = re.match(r"(?:unknown key '|missing key ')?([\w.-]+)", message)
    key = match[1] if match else ""
    for override in overrides:
        if f"{key}.".startswith(override.partition("=")[0].lstrip("-") + "."):
            return f"{path}, override '{override}': {message}"
    line = _line(tree, key.split("."))
    return f"{path}:{line}: {message}" if line else f"{path}: {message}"


def _domain_line(tree: yaml.Node | None, domain: str) -> int | None:
    """The line where the domain is named."""
    for block, datasets in tree.value if isinstance(tree, yaml.MappingNode) else ():
        if block.value != "datasets" or not isinstance(datasets, yaml.SequenceNode):
            continue
        for entry in datasets.value:
            for name, value in entry.value if isinstance(entry, yaml.MappingNode) else ():
                if name.value == "domain" and value.value == domain:
                    return int(value.start_mark.line) + 1
    return None


def _line(node: yaml.Node | None, keys: list[str]) -> int | None:
    """The line of a dotted key, or of the part of it that the file holds."""
    found: int | None = None
    for key in keys:
        child = None
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == key:
                    found, child = name.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            child = node.value[int(key)]
            found = child.start_mark.line + 1
        if child is None:
            return found
        node = child
    return found
