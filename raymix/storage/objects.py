"""Files that are only appended to, in an object store, where nothing can be appended to.

The lines lie in parts, objects whose names say at which byte of the whole they begin; at the end
they are put together into one. A part is created or refused, so that of two processes that both
believe the file theirs only one can go on. Which of them it is says a lease: an object that its
holder keeps changing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid

from upath import UPath

from raymix.core.errors import StudyError
from raymix.core.job import Json
from raymix.storage.place import os_errors, read_whole, write_whole

_log = logging.getLogger(__name__)

_BEAT = 10.0
"""Seconds between two changes of the lease."""

_DEAD = 3.5
"""Beats without a change after which a lease's holder is taken for dead."""

_LATEST = 10.0
"""Seconds after which even a line that is not to be durable is written with the next one."""

_TRIES = 5


class Objects:
    """A journal in an object store; see `raymix.storage.journal.Journal`.

    `beat`: seconds between two changes of the lease, which all that open the file must share.
    """

    def __init__(self, path: UPath, beat: float = _BEAT) -> None:
        self._path = path
        self._lease = _Lease(path.with_suffix(".lock"), beat)
        try:
            self.held = read(path) or b""
            self._size = len(self.held)
            self._waiting = bytearray()
            self._since = time.monotonic()
            self._gather()
        except BaseException:
            self._lease.free()
            raise

    def append(self, line: bytes, durable: bool) -> None:
        """Write `line`, and what waits before it; what is not durable may wait."""
        before = len(self._waiting)
        self._waiting += line
        if not durable and time.monotonic() - self._since < _LATEST:
            return
        try:
            self._write(bytes(self._waiting))
        except BaseException:
            # The caller is told that this line is not there; those before it still wait.
            del self._waiting[before:]
            raise
        self._waiting.clear()

    def close(self) -> None:
        """Put the parts together, and let another process have the file."""
        try:
            if not self._lease.lost:
                if self._waiting:
                    self._write(bytes(self._waiting))
                self._gather()
        except (OSError, StudyError) as error:
            _log.warning(
                "%s: its parts were not put together, nothing is lost: %s", self._path, error
            )
        finally:
            self._lease.free()

    def _write(self, data: bytes) -> None:
        if self._lease.lost:
            raise self._taken()
        part = _parts(self._path) / f"{self._size:015d}"
        with os_errors(part):
            try:
                part.fs.pipe_file(part.path, data, mode="create")
            except FileExistsError:
                # Ours, where the answer to a first try was lost.
                if read_whole(part) != data:
                    raise self._taken() from None
        self._size += len(data)
        self._since = time.monotonic()

    def _taken(self) -> StudyError:
        return StudyError(
            f"another driver has taken over the study in {self._path.parent}; this one ends"
        )

    def _gather(self) -> None:
        """Make one object of the parts, without a torn last line."""
        with os_errors(self._path):
            parts, data = _listed(self._path), read(self._path)
            if data is not None and (not self._path.exists() or read_whole(self._path) != data):
                write_whole(self._path, data)
            if parts:
                self._path.fs.rm(parts)


def read(path: UPath) -> bytes | None:
    """The whole lines of the journal at `path`, which another may hold; None: there is none.

    Raises:
        OSError: it cannot be read, or a part is missing.
    """
    with os_errors(path):
        for _ in range(_TRIES):
            # Parts may be put together while they are looked at.
            with contextlib.suppress(FileNotFoundError):
                found = _read(path)
                if found is not None:
                    return whole_lines(found)
            if not path.exists() and not _listed(path):
                return None
        raise OSError(f"{path}: a part of it is missing in {_parts(path)}")


def whole_lines(data: bytes) -> bytes:
    """`data` without a last line that is torn."""
    # Only a line without its newline can be torn: a line is written with it, in one go.
    return data[: data.rfind(b"\n") + 1]


def _read(path: UPath) -> bytes | None:
    """What there is now; None where a part is not there, or not any more."""
    parts = _listed(path)
    whole = bytearray(read_whole(path) if path.exists() else b"")
    contents = path.fs.cat(parts) if parts else {}
    for part in parts:
        begin = int(part.rpartition("/")[2])
        if begin > len(whole):
            return None
        if begin == len(whole):
            whole += contents[part]
    return bytes(whole) if parts or path.exists() else None


def _parts(path: UPath) -> UPath:
    return path.with_name(f"{path.name}.parts")


def _listed(path: UPath) -> list[str]:
    """Paths of the parts, in order."""
    folder = _parts(path)
    return sorted(folder.fs.find(folder.path))


class _Lease:
    """The object `path`, kept by a thread that changes it every `beat` seconds.

    `lost`: it is another's now.
    """

    def __init__(self, path: UPath, beat: float) -> None:
        self._path, self._beat = path, beat
        self._token = uuid.uuid4().hex
        self._beats = 0
        self.lost = False
        with os_errors(path):
            self._take()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def free(self) -> None:
        """Let another have it."""
        self._ending.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it is found dead later
            if self._token == _told(self._path).get("token"):
                self._path.unlink()

    def _take(self) -> None:
        """Create the lease, or take it over from one that is dead.

        Raises:
            StudyError: its holder lives.
        """
        with contextlib.suppress(FileExistsError):
            self._path.fs.pipe_file(self._path.path, self._words(), mode="create")
            return
        held = _told(self._path)
        if held and not _has_ended(held):
            self._watch(held)
        write_whole(self._path, self._words())
        time.sleep(min(1.0, self._beat / 4))
        held = _told(self._path)
        if held.get("token") != self._token:
            raise self._refusal(held)

    def _watch(self, held: Json) -> None:
        """Wait until the lease has not changed for so long that its holder must be dead."""
        patience = _DEAD * self._beat
        _log.warning(
            "%s is held by %s; waiting up to %g s to see whether that lives",
            self._path.parent,
            held.get("owner", "unknown"),
            patience,
        )
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(self._beat / 5)
            now = _told(self._path)
            if not now:
                return
            if now != held:
                raise self._refusal(now)

    def _refusal(self, held: Json) -> StudyError:
        return StudyError(
            f"another driver ({held.get('owner', 'unknown')}) runs the study in "
            f"{self._path.parent}; wait for it or end it"
        )

    def _words(self) -> bytes:
        self._beats += 1
        me = {"pid": os.getpid(), "host": socket.gethostname()}
        owner = f"pid {me['pid']} on {me['host']}"
        return json.dumps(
            {"owner": owner, **me, "token": self._token, "beat": self._beats}
        ).encode()

    def _keep(self) -> None:
        while not self._ending.wait(self._beat):
            try:
                held = _told(self._path)
                if held and held.get("token") != self._token:
                    self.lost = True
                    return
                write_whole(self._path, self._words())
            except Exception as error:  # each file system has errors of its own
                _log.warning("cannot renew %s, tried again soon: %s", self._path, error)


def _told(path: UPath) -> Json:
    """What the lease says; {} where there is none."""
    try:
        return dict(json.loads(read_whole(path)))
    except FileNotFoundError:
        return {}


def _has_ended(held: Json) -> bool:
    """Whether the holder was a process of this machine that is not there any more."""
    if held.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(held["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False
