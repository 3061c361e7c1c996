"""Folders of an object store at hand: on this machine's disk, for as long as they are looked at."""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from pathlib import Path

from upath import UPath

from raymix.core.job import Json
from raymix.storage.place import os_errors
from raymix.storage.scratch import Scratch, scratch

_KEPT = 2
"""Folders that a process keeps: what a training goes on from, and its reference."""

_MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")


def at_hand(folder: UPath) -> Path:
    """`folder` on this machine's disk: itself, or a copy that is as it is there now.

    A copy may be gone after the next ones: open its files before.

    Raises:
        OSError: it cannot be read; FileNotFoundError: it is not there.
    """
    return Path(folder) if isinstance(folder, Path) else _copies().of(folder)


def state_of(folder: UPath) -> dict[str, Json]:
    """What changes with the files in a store's folder, by their names in it, as far as it tells.

    Raises:
        OSError: it cannot be asked.
    """
    with os_errors(folder):
        found = folder.fs.find(folder.path, detail=True)
    return {path[len(folder.path) :].lstrip("/"): _state(info) for path, info in found.items()}


@cache
def _copies() -> Copies:
    return Copies(scratch())


class Copies:
    """The newest copies of folders; `most` are kept."""

    def __init__(self, own: Scratch, most: int = _KEPT) -> None:
        self._own, self._most = own, most
        self._held: dict[str, tuple[Json, Path]] = {}

    def of(self, folder: UPath) -> Path:
        """A copy of `folder`, made now unless there is one that is up to date."""
        name, state = str(folder), state_of(folder)
        if not state:
            raise FileNotFoundError(f"no folder '{folder}'")
        held = self._held.pop(name, None)
        # Files in a temporary folder may be cleaned away by age.
        if held and held[0] == state and all((held[1] / file).is_file() for file in state):
            self._held[name] = held  # the newest now
            return held[1]
        for old in list(self._held)[: len(self._held) - self._most + 1]:
            shutil.rmtree(self._held.pop(old)[1], ignore_errors=True)
        here = self._own.folder / hashlib.sha256(name.encode()).hexdigest()[:16] / folder.name
        shutil.rmtree(here, ignore_errors=True)
        for file in state:
            (here / file).parent.mkdir(parents=True, exist_ok=True)
        with os_errors(folder):
            sources = [f"{folder.path.rstrip('/')}/{file}" for file in state]
            folder.fs.get(sources, [str(here / file) for file in state])
        self._held[name] = (state, here)
        return here


def _state(info: Json) -> Json:
    """What changes with an object's content, as far as its store tells."""
    return [info.get("size"), *(str(info[mark]) for mark in _MARKS if mark in info)]
