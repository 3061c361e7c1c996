"""Files and folders by path or by fsspec URL, with the same few verbs for both.

On a disk a name appears at once or not at all, by a rename. An object store has no rename, but an
object is there whole or not at all: of a folder, the file that vouches for the others goes last.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import fsspec
from upath import UPath
from upath.implementations.cloud import CloudPath

from raymix.core.errors import ConfigError, RaymixError, StudyError
from raymix.storage.scratch import scratch

Where: TypeAlias = str | Path | UPath
"""A path, or a URL that fsspec knows: `s3://bucket/folder`, `gs://bucket/folder`."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


def is_url(where: Where) -> bool:
    """Whether `where` is no path on this machine's disks."""
    return not isinstance(where, Path) and "://" in str(where)


def place(where: Where) -> UPath:
    """The file or folder at `where`; nothing is looked up.

    Raises:
        ConfigError: a URL of an unknown kind, or with a character that stands for others.
    """
    if isinstance(where, UPath) and not isinstance(where, Path):
        kept = where.storage_options.get("use_listings_cache") is False
        return where if kept else UPath(where, use_listings_cache=False)
    if not is_url(where):
        return UPath(Path(where))
    kind, _, rest = str(where).partition("://")
    if set(rest) & set("*?[]"):
        # What removes or reads many files would take them for those of other studies, too.
        raise ConfigError(f"'{where}': a URL may not have *, ?, [ or ]")
    try:
        fsspec.get_filesystem_class(kind or "no kind")
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(kind)
        hint = f"; pip install 'raymix[{extra}]'" if extra else ""
        raise ConfigError(f"'{where}': cannot be opened, {error}{hint}") from error
    if kind in ("file", "local"):
        return UPath(Path(fsspec.core.url_to_fs(where)[1]))
    # A listing that is kept would not show what another machine has written since.
    return UPath(where, use_listings_cache=False)


def check_url(url: str) -> None:
    """Refuse a URL that cannot be opened here, or that holds a password.

    Raises:
        ValueError: says why.
    """
    kind, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    if kind in ("file", "local"):
        return
    if kind in ("memory", "http", "https"):
        raise ValueError(f"'{url}': nothing can be kept in {kind}://")
    if not host:
        raise ValueError(f"'{url}' names no bucket or host")
    if ":" in host.rpartition("@")[0]:
        shown = f"{kind}://...@{host.rpartition('@')[2]}"
        raise ValueError(f"'{shown}': a URL is written to files; give secrets by the environment")
    try:
        place(url)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def absolute(where: Where) -> str:
    """`where` so that it means the same in every working directory."""
    found = place(where)
    return str(found.resolve()) if isinstance(found, Path) else str(found)


@contextmanager
def os_errors(what: object) -> Iterator[None]:
    """Have whatever a file system raises come out as OSError, as a disk's errors do.

    `what` is named in it.
    """
    try:
        yield
    except (OSError, RaymixError):
        raise
    except Exception as error:  # object stores have errors of their own
        raise OSError(f"{what}: {type(error).__name__}: {error}") from error


def check_writable(folder: UPath) -> None:
    """Make `folder` and see that files in it can be written, read and removed.

    Raises:
        OSError: they cannot.
    """
    with os_errors(folder):
        make(folder)
        probe = folder / f".raymix-{uuid.uuid4().hex}"
        write_whole(probe, b"1")
        read_whole(probe)
        probe.unlink()


def make(folder: UPath) -> None:
    """Make `folder` and those that it lies in, where there are folders.

    An object store has none, and a bucket is not ours to make: a slip in its name is an error.
    """
    if not isinstance(folder, CloudPath):
        folder.mkdir(parents=True, exist_ok=True)


def read_whole(path: UPath) -> bytes:
    """What is in the file `path`, as it was at one moment.

    Raises:
        OSError: it cannot be read.
    """
    with os_errors(path):
        return path.read_bytes() if isinstance(path, Path) else bytes(path.fs.cat_file(path.path))


def write_whole(path: UPath, data: bytes) -> None:
    """Write `data` to `path`, whose folder is made; nobody sees half of it.

    Raises:
        OSError: it could not be written; what was there is still there.
    """
    if isinstance(path, Path):
        with drafted(path) as draft:
            draft.write_bytes(data)
        return
    with os_errors(path):
        make(path.parent)
        path.fs.pipe_file(path.path, data)


@contextmanager
def drafted(path: UPath) -> Iterator[Path]:
    """An empty local file that is to become `path`, whose folder is made; as `write_whole`."""
    # Not `mkstemp` beside it: the file is to be as readable for others as any that is written.
    beside = Path(path.parent) if isinstance(path, Path) else scratch().folder
    with os_errors(path):
        make(path.parent)
        draft = beside / f".draft-{uuid.uuid4().hex}"
        draft.touch()
        try:
            yield draft
            if isinstance(path, Path):
                draft.replace(path)
            else:
                path.fs.put_file(str(draft), path.path)
        finally:
            draft.unlink(missing_ok=True)


def remove(folder: UPath) -> None:
    """Remove a folder and all in it, if it is there.

    Raises:
        OSError: it is in an object store that does not let it go.
    """
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    refuse_bucket(folder)
    with os_errors(folder):
        if folder.fs.exists(folder.path):
            folder.fs.rm(folder.path, recursive=True)


def refuse_bucket(folder: UPath) -> None:
    """Refuse a whole bucket where a folder is to be written that may take another's place.

    Raises:
        OSError: `folder` is one.
    """
    if isinstance(folder, CloudPath) and "/" not in folder.path.strip("/"):
        raise OSError(f"'{folder}' is a whole bucket; name a folder in it")


def put(draft: Path, folder: UPath, last: str) -> None:
    """Move what is in the local folder `draft` to `folder`, in the place of what was there.

    Until the file `last` is there, the folder is not to be believed.

    Raises:
        OSError: it could not be moved; `draft` is still there.
    """
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
        return
    remove(folder)
    send(draft, folder, last)


def send(draft: Path, folder: UPath, last: str) -> None:
    """Move what is in the local folder `draft` to `folder` in a store, beside what is there.

    Raises:
        OSError: it could not be moved; `draft` is still there.
    """
    with os_errors(folder):
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        names = [path.relative_to(draft).as_posix() for path in files]
        first = [name for name in names if name != last]
        for parent in {(folder / name).parent for name in names}:
            make(parent)
        for group in (first, [last]):
            targets = [f"{folder.path}/{name}" for name in group]
            if group:
                folder.fs.put([str(draft / name) for name in group], targets)
    shutil.rmtree(draft, ignore_errors=True)


def draft_of(folder: UPath) -> Path:
    """A local folder, made empty, in which `folder` is written before it is `put`."""
    if isinstance(folder, Path):
        draft = Path(folder.with_name(f".draft-{folder.name}"))
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        return draft
    return Path(tempfile.mkdtemp(dir=scratch().folder))


@contextmanager
def published(folder: UPath) -> Iterator[Path]:
    """`folder` itself on a disk; else a local one, whose files are sent there at the end.

    The local one lies in a folder of its own, where there is room for what is not to be sent.

    Raises:
        StudyError: they cannot be sent. It does not take the place of another error.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=scratch().folder) as own:
        here = Path(own) / "files"
        here.mkdir()
        try:
            yield here
        except BaseException:
            with suppress(StudyError):
                _publish(here, folder)
            raise
        _publish(here, folder)


def _publish(here: Path, folder: UPath) -> None:
    """Send all that can be sent of what is in `here`."""
    failed: OSError | None = None
    for path in sorted(path for path in here.rglob("*") if path.is_file()):
        try:
            write_whole(folder / path.relative_to(here).as_posix(), path.read_bytes())
        except OSError as error:
            failed = error
    if failed is not None:
        raise StudyError(f"cannot write to {folder}: {failed}") from failed
