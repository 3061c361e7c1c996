"""Prepared tables on the nodes of a cluster: published once by content, fetched once by a node.

What is published is in `<study.output_dir>/data/<SHA-256>.arrow`, what a node has fetched in
`<its cache>/fetched/<SHA-256>.arrow`. Both are there whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from raymix.core.errors import DataError
from raymix.storage.place import Where, place
from raymix.storage.transfer import receive, send, size_of

PUBLISHING = 600.0
"""Seconds that a node waits for a table which the driver may be publishing for it just now."""

_ROUND = 0.5
"""Seconds between two looks at what others do: at a lock, at a file that grows."""

_BLOCK = 8 * 1024 * 1024


def nothing() -> None:
    """Nobody is told that this process is alive."""


@dataclass(frozen=True)
class Content:
    """What a table is known by, wherever it lies: `size` in bytes, and `sha256`."""

    size: int
    sha256: str


def content_of(path: str | Path, sha256: str | None = None) -> Content:
    """What is in the file at `path`, which is read for its SHA-256 where that is not known.

    Raises:
        OSError: it cannot be read.
    """
    return Content(Path(path).stat().st_size, sha256 or _sha256(Path(path)))


def is_here(path: str | Path, content: Content) -> bool:
    """Whether this node sees the table at `path`, as far as its size tells."""
    try:
        return Path(path).stat().st_size == content.size
    except OSError:
        return False


def shared_at(output_dir: Where, content: Content) -> UPath:
    """Where the study in `output_dir` publishes a table."""
    return place(output_dir) / "data" / f"{content.sha256}.arrow"


def publish(contents: Mapping[str, Content], output_dir: Where) -> None:
    """Put tables, by their paths here, where all nodes find them; what is there already stays.

    Raises:
        OSError: one cannot be written.
    """
    for path, content in contents.items():
        shared = shared_at(output_dir, content)
        if size_of(shared) != content.size:
            send(Path(path), shared)


def fetch(
    path: str,
    content: Content,
    output_dir: Where,
    cache: Path,
    alive: Callable[[], None] = nothing,
    patience: float = 0.0,
) -> Path:
    """The copy of a published table in this node's `cache`, brought now where it is not there.

    One process of the node does it, the others wait. `path` is what the driver calls the table.
    `alive` is called as long as it goes on, here or in the process that is waited for, perhaps from
    another thread. What is not published yet is waited for, `patience` seconds from now.

    Raises:
        DataError: it is not published, or damaged; there is no room for it.
    """
    copy = cache / "fetched" / f"{content.sha256}.arrow"
    shared = shared_at(output_dir, content)
    end = time.monotonic() + patience
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _locked(copy.with_suffix(".lock"), alive) as lock:

            def working() -> None:
                os.utime(lock)  # for those that wait for the lock
                alive()

            if not _whole(copy, content, lock, working):
                _await(path, shared, end, working)
                _bring(path, content, shared, copy, working)
                _vouch(copy, lock)
    except OSError as error:
        raise DataError(
            f"cannot fetch the prepared table '{path}' from '{shared}' to '{copy}': {error}"
        ) from error
    return copy


def _await(path: str, shared: UPath, end: float, alive: Callable[[], None]) -> None:
    """Wait until it is published; no longer than to `end`, on the monotonic clock."""
    while size_of(shared) is None:
        left = end - time.monotonic()
        if left <= 0:
            raise DataError(
                f"this node does not see the prepared table '{path}', and there is no '{shared}' "
                "to fetch; resume the study, it publishes what nodes do not see"
            )
        alive()
        time.sleep(min(left, 4 * _ROUND))


def _bring(
    path: str, content: Content, shared: UPath, copy: Path, alive: Callable[[], None]
) -> None:
    # Only the holder of the lock writes it, over what one that was killed has left.
    draft = copy.with_name(f".draft-{copy.name}")
    found = receive(shared, draft, alive)
    if found != content.sha256:
        draft.unlink()
        raise DataError(
            f"'{shared}' is not the prepared table '{path}': its SHA-256 is {found}, not "
            f"{content.sha256}; delete it and resume the study, it is published again"
        )
    draft.replace(copy)


@contextmanager
def _locked(path: Path, alive: Callable[[], None]) -> Iterator[int]:
    """Hold a lock file; its text says of the copy beside it when it was last whole.

    It is waited for. `alive` is called whenever the time of the file has changed: who holds it
    works, where one that hangs leaves it alone.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        seen = 0
        while not _taken(handle):
            before, seen = seen, os.fstat(handle).st_mtime_ns
            if seen != before:
                alive()
            time.sleep(_ROUND)
        yield handle
    finally:
        os.close(handle)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _whole(copy: Path, content: Content, lock: int, alive: Callable[[], None]) -> bool:
    """Whether the copy is the table; it is read only where it has changed since it was seen so."""
    if not is_here(copy, content):
        return False
    if os.pread(lock, 100, 0) == _state(copy):
        return True
    if _sha256(copy, alive) != content.sha256:
        return False
    _vouch(copy, lock)
    return True


def _vouch(copy: Path, lock: int) -> None:
    # Without a note the copy is read again, no more.
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, _state(copy), 0)


def _state(copy: Path) -> bytes:
    stat = copy.stat()
    return f"{stat.st_size} bytes of {stat.st_mtime_ns}".encode()


def _sha256(path: Path, alive: Callable[[], None] = nothing) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            alive()
    return digest.hexdigest()
