"""Makes the tables that the cache lacks; loads transformers, so `prepare` runs it as a process.

The order comes on stdin as JSON, the answer goes into the file that is named first.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

from raymix.core.codec import fingerprint
from raymix.core.errors import DataError, RaymixError
from raymix.core.job import Json
from raymix.data.chat import chat_of
from raymix.data.content import content_hash
from raymix.data.encode import Encoder, load_tokenizer
from raymix.data.keys import domain_keys, fix_commit, known_commit, plans, template_text
from raymix.data.locate import Hub, Plan, Source
from raymix.data.overlap import shared_rows, with_overlap
from raymix.data.prepared import Part, Prepared, load_part, prepared_folder, save
from raymix.data.rows import Placed, hub_commit, read_rows
from raymix.data.source import DataSpec
from raymix.data.tokenise import Progress, Tokeniser

_SCRATCH = ".tmp-"
_ABANDONED = 2 * 24 * 3600.0
"""Seconds after which a half-made folder is nobody's any more."""
_ATTEMPTS = 5


def build(spec: DataSpec, progress: Progress) -> Prepared:
    """Tokenise what of `spec` is not in the cache, and keep it there.

    Raises:
        ConfigError, DataError: Something is missing, unreadable, or has nothing to learn.
    """
    cache = spec.cache()
    found = plans(spec)
    _fix_hub(found, cache)
    making = tokeniser(spec, progress)
    keys = domain_keys(spec, found)
    if keys is None:
        raise DataError(f"the tokenizer '{spec.tokenizer}' left no files in the hub's cache")
    try:
        parts = [_part(making, p, cache, key) for p, key in zip(found, keys, strict=True)]
        whole = fingerprint(*keys)
        folder = prepared_folder(cache, whole)
        prepared = Prepared(whole, str(folder), with_overlap(parts), shared_rows(parts))
        save(prepared, folder)
    except OSError as error:
        raise DataError(f"cannot prepare the data in {cache}: {error}") from error
    return prepared


def tokeniser(spec: DataSpec, progress: Progress) -> Tokeniser:
    """What makes tables of the rows of `spec`."""
    cache = spec.cache()

    def read(source: Source) -> Iterable[Placed]:
        return read_rows(source, known_commit(source, cache) if isinstance(source, Hub) else None)

    tokenizer = load_tokenizer(spec.tokenizer, trust_remote_code=spec.trust_remote_code)
    chat = chat_of(tokenizer, template_text(spec), assistant_only=spec.assistant_only_loss)
    return Tokeniser(chat, Encoder(tokenizer, spec.max_length), read, spec.seed, progress)


def _fix_hub(found: Iterable[Plan], cache: Path) -> None:
    for plan in found:
        for source in (plan.train, plan.eval, plan.test):
            if isinstance(source, Hub) and known_commit(source, cache) is None:
                fix_commit(source, hub_commit(source), cache)


def _part(making: Tokeniser, plan: Plan, cache: Path, key: str) -> Part:
    """The domain's tables from the cache, or made and put there."""
    folder = cache / "tables" / key
    known = load_part(folder, cache)
    if known is not None:
        return known
    sweep(folder.parent)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_SCRATCH))
    try:
        counts = making.write(plan, scratch)
        part = Part(
            domain=plan.domain,
            paths={split: str(folder / f"{split}.arrow") for split in counts},
            checks={split: content_hash(scratch / f"{split}.arrow", cache) for split in counts},
            counts=counts,
            sample=making.sample(scratch),
        )
        save(part, scratch)
        put(scratch, folder, lambda: load_part(folder, cache) is not None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return part


def sweep(tables: Path) -> None:
    """Make the folder; take away what processes that were killed have left there."""
    tables.mkdir(parents=True, exist_ok=True)
    for path in tables.glob(f"{_SCRATCH}*"):
        # Another process may sweep, too, or just have finished.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path)


def put(made: Path, folder: Path, whole: Callable[[], bool]) -> None:
    """Rename `made` to `folder`; where another process was faster, its equal tables stay.

    `whole`: whether what lies in `folder` can be used. Damaged tables are first renamed away: who
    has them open keeps reading what was there.
    """
    for _ in range(_ATTEMPTS):
        try:
            made.rename(folder)
        except OSError:
            if whole():
                return
            if not folder.exists():
                raise
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_SCRATCH))
            # Another process may do the same now; then there is nothing left to rename.
            with contextlib.suppress(OSError):
                folder.rename(old / "damaged")
            shutil.rmtree(old, ignore_errors=True)
        else:
            return
    raise DataError(f"cannot put prepared data into {folder}: another process keeps damaging it")


def answer(make: Callable[[Json], str]) -> None:
    """Carry out the order on stdin with `make`, which gives a fingerprint of what it made."""
    order = json.load(sys.stdin)
    said: Json
    try:
        said = {"fingerprint": make(order)}
    except RaymixError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    except KeyboardInterrupt:
        sys.exit(130)
    Path(sys.argv[1]).write_text(json.dumps(said), encoding="utf-8")


def _make(order: Json) -> str:
    from rich.console import Console

    quiet: bool = order["quiet"]
    console = Console(stderr=True)
    live = console.is_terminal and not quiet
    with console.status("tokenising") if live else nullcontext() as status:

        def progress(domain: str, split: str, rows: int) -> None:
            if status is not None:
                status.update(f"tokenising {domain} {split}: {rows:,} rows")

        prepared = build(DataSpec.model_validate(order["spec"]), progress)
    if not quiet:
        for part in prepared.parts:
            console.print(f"prepared {part.summary()}", highlight=False, soft_wrap=True)
    return prepared.fingerprint


if __name__ == "__main__":
    answer(_make)
