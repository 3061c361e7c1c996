"""The history file: one JSON event per line, only ever appended to, held by one driver.

Each event has `event`, `time` (seconds since 1970) and its own fields. In order of life:
`study` (the header, first), `resumed`, `asked`, `started`, `reported`, `failed`, `told`. A second
`study` stands where a study begins anew, of which nothing had been told.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from upath import UPath

from raymix.core.errors import StudyError
from raymix.core.job import Json
from raymix.storage.journal import open_journal, read_journal
from raymix.storage.place import Where, os_errors, place

FILE = "history.jsonl"

DURABLE = frozenset({"study", "resumed", "asked", "failed", "told"})
"""Events that are on disk before `append` returns; the others may be lost with the machine."""

Event = Mapping[str, Json]


class Store:
    """The history file of one study, opened for appending; refuses a second driver."""

    def __init__(self, folder: Where, clock: Callable[[], float] = time.time) -> None:
        """Lock the study in `folder`; a last line that a crash left torn is cut off."""
        self.path = place(folder) / FILE
        self._clock = clock
        try:
            self._journal = open_journal(self.path)
        except OSError as error:
            raise StudyError(f"cannot open the study in {folder}: {error}") from error
        try:
            self.events = _events(self._journal.held, self.path)
            self._journal.held = b""
        except BaseException:
            self._journal.close()
            raise

    def append(self, event: str, fields: Mapping[str, Json]) -> Event:
        """Write one event; when it cannot be written whole, the file stays as it was."""
        entry = {"event": event, "time": round(self._clock(), 3), **fields}
        line = (json.dumps(entry, separators=(",", ":")) + "\n").encode()
        try:
            self._journal.append(line, event in DURABLE)
        except OSError as error:
            raise StudyError(
                f"cannot write to {self.path}: {error.strerror or error}; everything told before "
                "is safe, make room and resume the study"
            ) from error
        return entry

    def close(self) -> None:
        """Let another driver have the study."""
        self._journal.close()


def read_events(path: Where) -> list[Event]:
    """Events of a history file (or of the study in a folder), without holding it."""
    found = file_of(path)
    with _readable(found):
        data = read_journal(found)
    if data is None:
        raise StudyError(f"no study at {found}")
    return _events(data, found)


def copied(folder: Where, here: Path) -> Path:
    """The history of a study as a file on this machine: its own, or a copy beside `here`."""
    own = file_of(folder)
    if isinstance(own, Path):
        return own
    copy = here.with_name(FILE)
    copy.write_bytes(read_journal(own) or b"")
    return copy


def has_study(folder: Where) -> bool:
    """Whether there is a study in `folder`.

    Raises:
        StudyError: that cannot be seen.
    """
    found = file_of(folder)
    with _readable(found):
        return read_journal(found) is not None


def folder_of(path: Where) -> UPath:
    """The folder of the study that `path` names, itself or by its history file."""
    return file_of(path).parent


def file_of(path: Where) -> UPath:
    """The history file that `path` names, itself or by the study's folder."""
    found = place(path)
    with _readable(found), os_errors(found):
        return found / FILE if found.is_dir() else found


@contextlib.contextmanager
def _readable(path: UPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error}") from error


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on, read without importing any of it."""
    names = ("raymix", "torch", "transformers", "ray", "optuna", "numpy", "datasets", "peft")
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _events(data: bytes, path: UPath) -> list[Event]:
    events: list[Event] = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise StudyError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(event, dict) or "event" not in event:
            raise StudyError(f"{path}, line {number}: not an event of a study")
        events.append(event)
    return events
