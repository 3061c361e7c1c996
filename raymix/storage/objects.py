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
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from upath import UPath

from raymix.core.errors import StudyError
from raymix.core.job import Json
from raymix.storage.place import os_errors, read_whole, write_whole

_log = logging.getLogger(__name__)

_BEAT = 10.0
"""Seconds between two changes of the lease."""

_DEAD = 3.5
"""Beats without a change after which a lease's holder is taken for dead."""

_LOOKS = 5
"""At a lease in each beat, by one who waits whether it is renewed."""

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
            self.held = self._gather()
            self._size = len(self.held)
            self._waiting = bytearray()
            self._tried = (b"", 0)
            self._since = time.monotonic()
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
            self._write(bytes(self._waiting), before)
        except BaseException:
            # The caller is told that this line is not there; those before it still wait.
            del self._waiting[before:]
            raise
        self._waiting.clear()

    def close(self) -> None:
        """Put the parts together, and let another process have the file."""
        try:
            if self._lease.holds():
                if self._waiting:
                    self._write(bytes(self._waiting), 0)
                    self._waiting.clear()
                self._gather()
        except (OSError, StudyError) as error:
            lost = "its newest reports were not written" if self._waiting else "nothing is lost"
            _log.warning("%s was left in parts, %s: %s", self._path, lost, error)
        finally:
            self._lease.free()

    def _write(self, data: bytes, before: int) -> None:
        """Write a part; its first `before` bytes have waited."""
        if not self._lease.holds():
            raise self._taken()
        part = _parts(self._path) / f"{self._size:015d}"
        with os_errors(part):
            try:
                # An interrupt may leave a part that was taken, and that nobody here knows of.
                tried, self._tried = self._tried, (data, before)
                part.fs.pipe_file(part.path, data, mode="create")
            except FileExistsError:
                there = read_whole(part)
                if there == tried[0] != data:
                    self._size += len(there)
                    self._tried = (b"", 0)
                    self._write(data[tried[1] :], 0)
                    return
                # Ours, where only the answer to a first try was lost.
                if there != data:
                    raise self._taken() from None
        self._size += len(data)
        self._tried = (b"", 0)
        self._since = time.monotonic()

    def _taken(self) -> StudyError:
        return StudyError(
            f"another driver has taken over the study in {self._path.parent}; this one ends"
        )

    def _gather(self) -> bytes:
        """Make one object of the parts, without a torn last line; what is in it."""
        with os_errors(self._path):
            whole, used, foreign = _all(self._path)
            data = whole_lines(whole)
            if used or data != whole:
                write_whole(self._path, data)
            if used:
                self._path.fs.rm(used)
        for part in foreign:
            _log.warning("%s is no part of %s and is left there", part, self._path)
        return data


def read(path: UPath) -> bytes | None:
    """The whole lines of the journal at `path`, which another may hold; None: there is none.

    Raises:
        OSError: it cannot be read, or a part is missing.
    """
    with os_errors(path):
        if not _is_file(path) and not _listed(path):
            return None
        return whole_lines(_all(path)[0])


def whole_lines(data: bytes) -> bytes:
    """`data` without a last line that is torn."""
    # Only a line without its newline can be torn: a line is written with it, in one go.
    return data[: data.rfind(b"\n") + 1]


def _all(path: UPath) -> tuple[bytes, list[str], list[str]]:
    """What there is, the parts that are in it, and those of somebody who lost the lease."""
    for _ in range(_TRIES):
        # Parts may be put together while they are looked at.
        with contextlib.suppress(FileNotFoundError):
            found = _read(path)
            if found is not None:
                return found
    raise OSError(f"{path}: a part of it is missing in {_parts(path)}")


def _read(path: UPath) -> tuple[bytes, list[str], list[str]] | None:
    """As `_all`, now; None where a part is not there, or not any more."""
    parts = _listed(path)
    whole = bytearray(read_whole(path) if _is_file(path) else b"")
    contents = path.fs.cat(parts) if parts else {}
    if isinstance(contents, bytes):  # of a single part
        contents = {parts[0]: contents}
    used: list[str] = []
    foreign: list[str] = []
    for part in parts:
        begin, content = int(part.rpartition("/")[2]), contents[part]
        if begin > len(whole):
            return None
        if begin == len(whole):
            whole += content
        # Else it is in the whole already, from a gathering that was cut off.
        own = whole[begin : begin + len(content)] == content
        (used if own else foreign).append(part)
    return bytes(whole), used, foreign


def _is_file(path: UPath) -> bool:
    """Whether there is such an object; a folder of parts has its name in it, too."""
    return bool(path.fs.isfile(path.path))


def _parts(path: UPath) -> UPath:
    return path.with_name(f"{path.name}.parts")


def _listed(path: UPath) -> list[str]:
    """Paths of the parts, in order."""
    folder = _parts(path)
    found = folder.fs.find(folder.path)
    return sorted(name for name in found if re.fullmatch(r"\d{15}", name.rpartition("/")[2]))


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
            self._refuses()
        self._renewed = time.time()
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

    def holds(self) -> bool:
        """Whether it is still ours; looked up where it has not been renewed for a while.

        A machine that slept may have lost it meanwhile.
        """
        if not self.lost and time.time() - self._renewed > 2 * self._beat:
            with os_errors(self._path):
                self._renew()
        return not self.lost

    def _renew(self) -> None:
        if _told(self._path).get("token") != self._token:
            self.lost = True
            return
        write_whole(self._path, self._words())
        self._renewed = time.time()

    def _refuses(self) -> None:
        """See that what is there is not created again: all rests on that.

        Raises:
            OSError: the store does not refuse.
        """
        try:
            self._path.fs.pipe_file(self._path.path, self._words(), mode="create")
        except FileExistsError:
            return
        raise OSError(
            f"{self._path}: this store creates a file that is there already; without conditional "
            "writes it cannot keep a second driver out"
        )

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
        # Looks are counted, not seconds: this process may have been stopped for longer than that.
        for _ in range(math.ceil(_LOOKS * _DEAD)):
            time.sleep(self._beat / _LOOKS)
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
        owner = f"pid {os.getpid()} on {socket.gethostname()}"
        said = {"owner": owner, **_process(os.getpid()), "token": self._token, "beat": self._beats}
        return json.dumps(said).encode()

    def _keep(self) -> None:
        while not self._ending.wait(self._beat):
            try:
                self._renew()
                if self.lost:
                    return
            except Exception as error:  # each file system has errors of its own
                _log.warning("cannot renew %s, tried again soon: %s", self._path, error)


def _told(path: UPath) -> dict[str, Json]:
    """What the lease says; {} where there is none."""
    try:
        return dict(json.loads(read_whole(path)))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        return {"owner": "unknown"}


def _process(pid: int) -> dict[str, Json]:
    """What tells a process from all others, of this machine, its containers, and other times.

    Without Linux's /proc nothing is said but the number.
    """
    said: dict[str, Json] = {"pid": pid}
    with contextlib.suppress(OSError):
        said["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        said["pids"] = str(Path("/proc/self/ns/pid").readlink())
        # After the name, which may hold anything, the 20th: when it began.
        said["begun"] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return said


def _has_ended(held: Mapping[str, Json]) -> bool:
    """Whether the holder was a process that this one could see, and that is not there any more."""
    if not isinstance(held.get("pid"), int) or "begun" not in held:
        return False
    now = _process(held["pid"])
    same = all(name in now and now[name] == held.get(name) for name in ("boot", "pids"))
    return same and now.get("begun") != held["begun"]
