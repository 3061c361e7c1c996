"""A process's own folder for what it brings from, or makes for, an object store."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from functools import cache
from pathlib import Path

_PREFIX, _LOCK = "raymix-copies-", ".lock"


class Scratch:
    """A folder that goes with the process, or at another's start if the process was killed."""

    def __init__(self) -> None:
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Held open, and with it the lock, for as long as this process lives; locked before it has
        # the name by which others look for it.
        fresh = self.folder / f"{_LOCK}-new"
        lock = os.open(fresh, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh.replace(fresh.with_name(_LOCK))
        weakref.finalize(self, _end, self.folder, lock)


@cache
def scratch() -> Scratch:
    """This process's own."""
    return Scratch()


def sweep() -> None:
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


def _end(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
