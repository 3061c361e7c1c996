"""The prepared tables of a study, as workers open them: on the driver's path, or fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from raymix.data.fetch import PUBLISHING, content_of, fetch, is_here, nothing, publish
from raymix.data.leak import Prompts
from raymix.data.source import default_cache
from raymix.train.config import Setup


def described(setup: Setup) -> Setup:
    """`setup` with the contents of all its tables that are here; those not known yet are read.

    Raises:
        OSError: one cannot be read.
    """
    missing = {
        path: content_of(path)
        for path in _paths(setup)
        if path not in setup.contents and Path(path).is_file()
    }
    return replace(setup, contents={**setup.contents, **missing})


def publish_tables(setup: Setup) -> None:
    """Put the tables of `setup` into the study's shared folder; the driver's part.

    Raises:
        OSError: one cannot be written.
    """
    publish(setup.contents, setup.output_dir)


def fetch_tables(
    setup: Setup, alive: Callable[[], None] = nothing, patience: float = PUBLISHING
) -> None:
    """Have all tables on this node, before anybody waits for a training; a worker's part.

    `alive`, `patience`: see `data.fetch.fetch`. The driver may be publishing them just now.

    Raises:
        DataError: one is not here and cannot be fetched.
    """
    for path in setup.contents:
        table_here(setup, path, alive, patience)


def table_here(
    setup: Setup, path: str, alive: Callable[[], None] = nothing, patience: float = 0.0
) -> Path:
    """Where this node has the table that the driver has at `path`.

    It is the node's own affair: what is compared between nodes has the driver's path. `alive`,
    `patience`: see `data.fetch.fetch`.

    Raises:
        DataError: it is not here and cannot be fetched.
    """
    content = setup.contents.get(path)
    if content is None or is_here(path, content):
        return Path(path)
    return fetch(path, content, setup.output_dir, default_cache(), alive, patience)


def prompts_here(setup: Setup) -> Prompts | None:
    """The prompts for the format leak, with the paths of this node.

    Raises:
        DataError: a table is not here and cannot be fetched.
    """
    if setup.leak is None:
        return None

    def here(path: str) -> str:
        return str(table_here(setup, path))

    asked = (
        replace(each, kept=here(each.kept), bare=None if each.bare is None else here(each.bare))
        for each in setup.leak.asked
    )
    return replace(setup.leak, asked=tuple(asked))


def _paths(setup: Setup) -> Iterator[str]:
    for splits in setup.stores.values():
        yield from splits.values()
    for asked in setup.leak.asked if setup.leak else ():
        yield from (path for path in (asked.kept, asked.bare) if path is not None)
