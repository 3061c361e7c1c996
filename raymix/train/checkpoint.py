"""Checkpoints: safetensors beside one `state.json`, whole or not to be believed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from upath import UPath

from raymix.core.errors import CheckpointError
from raymix.core.job import Json
from raymix.storage.copies import at_hand
from raymix.storage.place import draft_of, os_errors, put, read_whole, remove

_STATE = "state.json"
_OWN = "digest"
"""Where the state file has its own digest: one flipped bit may leave other numbers, but JSON."""
_KEPT = 2


def write(
    trial: UPath, step: int, state: Mapping[str, Json], tensors: Mapping[str, Mapping[str, Tensor]]
) -> UPath:
    """Write `<trial>/step-<step>` and forget all but the two newest.

    The folder appears under its name only when all of it is on the disk; in an object store its
    `state.json` appears last, and without that it is none.

    Args:
        trial: folder of the trial's checkpoints.
        step: optimizer steps taken.
        state: plain JSON.
        tensors: by file (`<file>.safetensors`) and name, whole, in host memory.

    Raises:
        CheckpointError: it could not be written (disk full); nothing half-written is left.
    """
    folder, draft = place(trial, step), None
    try:
        draft = draft_of(folder)
        for name, values in tensors.items():
            save_file(
                {key: value.contiguous() for key, value in values.items()},
                draft / f"{name}.safetensors",
            )
        digests = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        text = json.dumps({**state, "files": digests})
        with (draft / _STATE).open("w") as file:
            json.dump({_OWN: _digest_of(text), **json.loads(text)}, file)
        for path in (*draft.iterdir(), draft):
            _settle(path)
        put(draft, folder, _STATE)
        for old in _steps(trial)[_KEPT:]:
            remove(old)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def newest(trial: UPath, job: str) -> tuple[UPath, dict[str, Json]] | None:
    """The newest checkpoint of `trial` that is whole and belongs to `job`, with its state.

    None: there is none.

    Raises:
        CheckpointError: an object store does not say what is there.

    Args:
        trial: folder of the trial's checkpoints.
        job: fingerprint that the checkpoint's state must carry.
    """
    try:
        for folder in _steps(trial):
            with suppress(CheckpointError, FileNotFoundError):
                # The state first: another job's tensors need not be fetched.
                if _job(folder) == job:
                    return folder, _state(at_hand(folder), folder)
    except OSError as error:
        raise CheckpointError(f"cannot look for checkpoints in {trial}: {error}") from error
    return None


def _job(folder: UPath) -> Json:
    """The job that a checkpoint's state names; None where it cannot be read.

    Raises:
        OSError: an object store does not say what it holds.
    """
    try:
        return json.loads(read_whole(folder / _STATE)).get("job")
    except (FileNotFoundError, ValueError, AttributeError):
        return None
    except OSError:
        if isinstance(folder, Path):
            return None  # a damaged disk: the checkpoint before it may be whole
        raise


def read(folder: UPath) -> dict[str, Json]:
    """The state of a checkpoint, after every file of it was found unharmed.

    Raises:
        CheckpointError: a file is missing, cut short or changed.
    """
    return _state(here(folder), folder)


def here(folder: UPath) -> Path:
    """A checkpoint, or a model in Hugging Face form, on this machine's disk; see `at_hand`.

    Raises:
        CheckpointError: it cannot be had.
    """
    try:
        return at_hand(folder)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {folder} is not whole: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error}") from error


def _state(here: Path, folder: UPath) -> dict[str, Json]:
    """The state of the checkpoint `folder`, which is at hand in `here`; as `read`."""
    try:
        state = json.loads((here / _STATE).read_text())
        own = state.pop(_OWN, None)
        if own is not None and own != _digest_of(json.dumps(state)):
            raise CheckpointError(f"checkpoint {folder} is damaged: {_STATE} has changed")
        for name, digest in state["files"].items():
            if _digest(here / name) != digest:
                raise CheckpointError(f"checkpoint {folder} is damaged: {name} has changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} is not whole: {error}") from error
    return dict(state)


def peek(folder: UPath) -> dict[str, Json]:
    """The state of a checkpoint, whose other files are not looked at.

    Raises:
        CheckpointError: there is no such state.
    """
    try:
        return dict(json.loads(read_whole(folder / _STATE)))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} is not whole: {error}") from error


def is_checkpoint(folder: UPath) -> bool:
    """Whether `folder` is one of ours; a model in Hugging Face form is not.

    Raises:
        CheckpointError: an object store does not say.
    """
    try:
        with os_errors(folder):
            return (folder / _STATE).is_file()
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error}") from error


def tensors(folder: UPath, name: str) -> dict[str, Tensor]:
    """The tensors of `<name>.safetensors`, in host memory."""
    with safe_open(here(folder) / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def place(trial: UPath, step: int) -> UPath:
    """Folder of the checkpoint after `step` optimizer steps."""
    return trial / f"step-{step:08d}"


def _steps(trial: UPath) -> list[UPath]:
    """Checkpoint folders, newest first."""
    with os_errors(trial):
        found = [f for f in trial.iterdir() if f.name.startswith("step-")] if trial.is_dir() else []
        return sorted(found, key=lambda folder: folder.name, reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _settle(path: Path) -> None:
    """Have the file or folder on the disk before its name says that it is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
