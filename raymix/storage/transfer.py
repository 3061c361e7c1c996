"""Whole files, however large, between this machine and a folder that others see."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from upath import UPath

from raymix.storage.place import make, os_errors

_BLOCK = 8 * 1024 * 1024


def send(source: Path, target: UPath) -> None:
    """Put the file `source` at `target`, whose folder is made; nobody sees half of it.

    Within one file system nothing is copied, `target` is a second name of the file: it must not be
    written to any more.

    Raises:
        OSError: it could not be written.
    """
    with os_errors(target):
        make(target.parent)
        if not isinstance(target, Path):
            target.fs.put_file(str(source), target.path)
            return
        draft = Path(target.with_name(f".draft-{target.name}"))
        draft.unlink(missing_ok=True)
        try:
            try:
                os.link(source.resolve(), draft)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source, draft)
            draft.replace(target)
        finally:
            # Where both are names of one file already, a rename does nothing.
            draft.unlink(missing_ok=True)


def receive(source: UPath, target: Path, alive: Callable[[], None]) -> str:
    """Copy `source` to the local file `target`; the SHA-256 of what came.

    `alive` is called after each block.

    Raises:
        OSError: it could not be read or written; FileNotFoundError: there is no `source`. What was
            written of `target` is gone.
    """
    digest = hashlib.sha256()
    try:
        with os_errors(source), source.open("rb") as there, target.open("wb") as here:
            while block := there.read(_BLOCK):
                digest.update(block)
                here.write(block)
                alive()
            here.flush()
            os.fsync(here.fileno())
    except BaseException:
        with suppress(OSError):
            target.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def size_of(path: UPath) -> int | None:
    """Bytes in the file at `path`; None where there is none.

    Raises:
        OSError: it cannot be asked.
    """
    with os_errors(path):
        if isinstance(path, Path):
            return path.stat().st_size if path.is_file() else None
        return int(path.fs.size(path.path)) if path.fs.isfile(path.path) else None
