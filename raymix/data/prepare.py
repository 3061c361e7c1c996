"""Prepares the data once: a cache that answers at once, and a child process that fills it.

Tokenizers load torch, and `raymix check` must not: what is in the cache is found by hashing files,
what is not is made by `python -m raymix.data.build`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

from raymix.core import errors
from raymix.core.codec import fingerprint
from raymix.core.errors import DataError, RaymixError
from raymix.core.job import Json
from raymix.data.keys import domain_keys, plans
from raymix.data.leak import FormatLeak, load_prompts, prompts_folder
from raymix.data.prepared import Counts, Part, Prepared, load, prepared_folder, refuse_overlap
from raymix.data.source import DatasetSpec, DataSpec
from raymix.data.store import Table, open_table

__all__ = [
    "Counts",
    "DataSpec",
    "DatasetSpec",
    "Part",
    "Prepared",
    "Table",
    "cached",
    "open_table",
    "prepare",
    "with_prompts",
]

_VERSION = 1
"""Raise this when the same rows would give other prompts than before."""


def prepare(spec: DataSpec, *, quiet: bool = False) -> Prepared:
    """The data of `spec`, tokenised: from the cache, or made now by a child process.

    `quiet`: no progress on stderr.

    Raises:
        ConfigError, DataError: Something is missing, unreadable, or has nothing to learn.
    """
    prepared = cached(spec)
    if prepared is None:
        order = {"spec": spec.model_dump(mode="json"), "quiet": quiet}
        key = _run_child("raymix.data.build", order)
        prepared = load(prepared_folder(spec.cache(), key), spec.cache())
    if prepared is None:
        raise DataError(f"the prepared data in {spec.cache()} were damaged while they were made")
    for text in prepared.warnings:
        warnings.warn(text, UserWarning, stacklevel=2)
    refuse_overlap(prepared, spec.max_overlap)
    return prepared


def cached(spec: DataSpec) -> Prepared | None:
    """What is in the cache for `spec`; None where it is not all there, whole.

    Raises:
        ConfigError, DataError: Something that `spec` names is not there.
    """
    keys = domain_keys(spec, plans(spec))
    if keys is None:
        return None
    return load(prepared_folder(spec.cache(), fingerprint(*keys)), spec.cache())


def with_prompts(prepared: Prepared, spec: DataSpec, leak: FormatLeak) -> Prepared:
    """`prepared`, the data of `spec`, with the prompts of `leak`: from the cache, or made now.

    Raises:
        ConfigError, DataError: Its format is none, or there is nothing to ask.
    """
    asked = leak.model_dump(mode="json")
    key = fingerprint("leak", _VERSION, prepared.fingerprint, asked)
    folder = prompts_folder(spec.cache(), key)
    prompts = load_prompts(folder, spec.cache())
    if prompts is None:
        order = {"spec": spec.model_dump(mode="json"), "leak": asked, "key": key}
        _run_child("raymix.data.asked", {**order, "data": prepared.fingerprint})
        prompts = load_prompts(folder, spec.cache())
    if prompts is None:
        raise DataError(f"the prompts in {folder} were damaged while they were made")
    return replace(prepared, prompts=prompts)


def _run_child(module: str, order: Json) -> str:
    """Carry out `order` in another process; the fingerprint of what it made."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        child = subprocess.run(
            [sys.executable, "-m", module, str(answer)],
            input=json.dumps(order),
            text=True,
            # Data sets and tokenizers may print; the answer goes into a file of its own.
            stdout=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
        if not answer.exists():
            raise DataError(
                f"the process that tokenises ended with code {child.returncode} and no answer; "
                "what it said last stands above"
            )
        said = json.loads(answer.read_text("utf-8"))
    if "error" in said:
        raise _error(said["error"], said["message"])
    return str(said["fingerprint"])


def _error(name: str, message: str) -> RaymixError:
    kind = vars(errors).get(name)
    if isinstance(kind, type) and issubclass(kind, RaymixError):
        return kind(message)
    return DataError(f"{name}: {message}")
