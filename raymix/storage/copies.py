"""Folders of an object store at hand: on this machine's disk, for as long as they are looked at."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from functools import cache
from pathlib import Path

from upath import UPath

from raymix.core.job import Json
from raymix.storage.place import os_errors

_KEPT = 2
"""Folders that a process keeps: what a training goes on from, and its reference."""

_PREFIX, _LOCK = "raymix-copies-", ".lock"
_MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")


def at_hand(folder: UPath) -> Path:
    """`folder` on this machine's disk: itself, or a copy that is as it is there now.

    A copy may be gone after the next ones: open its files before.

    Raises:
        OSError: it cannot be read; FileNotFoundError: it is not there.
    """
    return Path(folder) if isinstance(folder, Path) else _copies().of(folder)


@cache
def _copies() -> Copies:
    return Copies()


class Copies:
    """The newest copies of folders; gone with the process, or at another's start if it was killed.

    `most` folders are kept.
    """

    def __init__(self, most: int = _KEPT) -> None:
        self._most = most
        _sweep()
        self._scratch = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Held open, and with it the lock, for as long as this process lives; locked before it has
        # the name by which others look for it.
        fresh = self._scratch / f"{_LOCK}-new"
        lock = os.open(fresh, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh.replace(fresh.with_name(_LOCK))
        weakref.finalize(self, _end, self._scratch, lock)
        self._held: dict[str, tuple[Json, Path]] = {}

    def of(self, folder: UPath) -> Path:
        """A copy of `folder`, made now unless there is one that is up to date."""
        name = str(folder)
        with os_errors(folder):
            found = folder.fs.find(folder.path, detail=True)
            if not found:
                raise FileNotFoundError(f"no folder '{folder}'")
            state = {path: _state(info) for path, info in found.items()}
            held = self._held.pop(name, None)
            if held is not None and held[0] == state:
                self._held[name] = held  # the newest now
                return held[1]
            here = self._scratch / hashlib.sha256(name.encode()).hexdigest()[:16]
            here = here / folder.name
            shutil.rmtree(here, ignore_errors=True)
            for old in list(self._held)[: len(self._held) - self._most + 1]:
                shutil.rmtree(self._held.pop(old)[1], ignore_errors=True)
            targets = [here / path[len(folder.path) :].lstrip("/") for path in found]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            folder.fs.get(list(found), [str(target) for target in targets])
        self._held[name] = (state, here)
        return here


def _end(scratch: Path, lock: int) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    os.close(lock)


def _state(info: Json) -> Json:
    """What changes with an object's content, as far as its store tells."""
    return [info.get("size"), *(str(info[mark]) for mark in _MARKS if mark in info)]


def _sweep() -> None:
    """Remove what processes that were killed have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # it is being made, or another's
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # its process lives
        finally:
            os.close(handle)
