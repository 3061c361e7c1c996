"""Files that are only appended to, line by line, by one process at a time: on a disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Protocol

from upath import UPath

from raymix.core.errors import StudyError
from raymix.storage.objects import Objects, whole_lines
from raymix.storage.objects import read as read_objects

LOCK = ".lock"
"""Ending of the file by which a second process is refused, in the place of the journal's own."""


class Journal(Protocol):
    """A file that is held for appending. `held`: the whole lines that were there when it opened."""

    held: bytes

    def append(self, line: bytes, durable: bool) -> None:
        """Write one line; when it cannot be written whole, the file stays as it was.

        `durable`: it is safe before this returns; else it may be lost with the machine.

        Raises:
            OSError: it cannot be written.
            StudyError: another process has taken the file over.
        """
        ...

    def close(self) -> None:
        """Let another process have the file."""
        ...


def open_journal(path: UPath) -> Journal:
    """Hold the journal at `path`, made where there is none; a torn last line is cut off.

    Raises:
        OSError: it cannot be read or made.
        StudyError: another process holds it; names it.
    """
    return OnDisk(path) if isinstance(path, Path) else Objects(path)


def read_journal(path: UPath) -> bytes | None:
    """The whole lines of a journal, which another may hold; None: there is none."""
    if not isinstance(path, Path):
        return read_objects(path)
    return whole_lines(path.read_bytes()) if path.is_file() else None


class OnDisk:
    """A journal on a disk, which may be a shared one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path.with_suffix(LOCK))
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            # Of two that hold a lock file each, as somebody has removed the first one's.
            _hold(self._file, path, "whose lock file was removed")
            self.held = whole_lines(path.read_bytes())
            self._size = len(self.held)
            os.ftruncate(self._file, self._size)
        except BaseException:
            self.close()
            raise

    def append(self, line: bytes, durable: bool) -> None:
        """See `Journal`."""
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(self._file, line[done:], self._size + done)
            if durable:
                os.fsync(self._file)
        except OSError:
            # Cut the half-written line off, or every later reader would find a corrupt one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        """See `Journal`."""
        os.close(self._file)
        os.close(self._lock)


def _lock(path: Path) -> int:
    """Take the lock file for this process; it is freed when the process ends, however it ends."""
    # flock belongs to the open file, so even a second Study in this process is refused; and it is
    # not inherited by the processes that Ray starts (O_CLOEXEC), which may outlive the driver.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
        _hold(handle, path, owner)
    except BaseException:
        os.close(handle)
        raise
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def _hold(handle: int, path: Path, owner: str) -> None:
    """Take an open file for this process."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StudyError(
            f"another driver ({owner}) runs the study in {path.parent}; wait for it or end it"
        ) from None
