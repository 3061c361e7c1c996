"""The history file: one JSON event per line, only ever appended to, held by one driver.

Each event has `event`, `time` (seconds since 1970) and its own fields. In order of life:
`study` (the header, first), `resumed`, `asked`, `started`, `reported`, `failed`, `told`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from raymix.core.errors import StudyError
from raymix.core.job import Json

FILE = "history.jsonl"
LOCK = "history.lock"

DURABLE = frozenset({"study", "resumed", "asked", "failed", "told"})
"""Events that are on disk before `append` returns; the others may be lost with the machine."""

Event = Mapping[str, Json]


class Store:
    """The history file of one study, opened for appending; refuses a second driver."""

    def __init__(self, folder: str | Path, clock: Callable[[], float] = time.time) -> None:
        """Lock the study in `folder`; a last line that a crash left torn is cut off."""
        self.path = Path(folder) / FILE
        self._clock = clock
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path.with_name(LOCK))
        except OSError as error:
            raise StudyError(f"cannot open the study in {folder}: {error}") from error
        try:
            self.events, whole = _read(self.path)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._file, whole)
            self._size = whole
        except BaseException:
            os.close(self._lock)
            raise

    def append(self, event: str, fields: Mapping[str, Json]) -> Event:
        """Write one event; when it cannot be written whole, the file stays as it was."""
        entry = {"event": event, "time": round(self._clock(), 3), **fields}
        line = (json.dumps(entry, separators=(",", ":")) + "\n").encode()
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(self._file, line[done:], self._size + done)
            if event in DURABLE:
                os.fsync(self._file)
        except OSError as error:
            # Cut the half-written line off, or every later reader would find a corrupt one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise StudyError(
                f"cannot write to {self.path}: {error.strerror}; everything told before is safe, "
                "make room and resume the study"
            ) from error
        self._size += len(line)
        return entry

    def close(self) -> None:
        """Let another driver have the study."""
        os.close(self._file)
        os.close(self._lock)


def read_events(path: str | Path) -> list[Event]:
    """Events of a history file (or of the study in a folder), without holding it."""
    path = file_of(path)
    if not path.is_file():
        raise StudyError(f"no study at {path}")
    return _read(path)[0]


def file_of(path: str | Path) -> Path:
    """The history file that `path` names, itself or by the study's folder."""
    path = Path(path)
    return path / FILE if path.is_dir() else path


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on, read without importing any of it."""
    names = ("raymix", "torch", "transformers", "ray", "optuna", "numpy", "datasets", "peft")
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _lock(path: Path) -> int:
    """Take the lock file for this process; it is freed when the process ends, however it ends."""
    # flock belongs to the open file, so even a second Study in this process is refused; and it is
    # not inherited by the processes that Ray starts (O_CLOEXEC), which may outlive the driver.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise StudyError(
            f"another driver ({owner}) runs the study in {path.parent}; wait for it or end it"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def _read(path: Path) -> tuple[list[Event], int]:
    """Whole events, and the number of bytes that hold them."""
    data = path.read_bytes() if path.exists() else b""
    # Only a line without its newline can be torn: a line is written with it, in one go.
    whole = data.rfind(b"\n") + 1
    events: list[Event] = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise StudyError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(event, dict) or "event" not in event:
            raise StudyError(f"{path}, line {number}: not an event of a study")
        events.append(event)
    return events, whole
