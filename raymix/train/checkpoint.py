"""Checkpoints on disk: safetensors beside one `state.json`, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from raymix.core.errors import CheckpointError
from raymix.core.job import Json

_STATE = "state.json"
_KEPT = 2


def write(
    trial: Path, step: int, state: Mapping[str, Json], tensors: Mapping[str, Mapping[str, Tensor]]
) -> Path:
    """Write `<trial>/step-<step>` and forget all but the two newest.

    The folder appears under its name only when all of it is on the disk.

    Args:
        trial: folder of the trial's checkpoints.
        step: optimizer steps taken.
        state: plain JSON.
        tensors: by file (`<file>.safetensors`) and name, whole, in host memory.

    Raises:
        CheckpointError: it could not be written (disk full); nothing half-written is left.
    """
    folder, draft = place(trial, step), trial / f".draft-{step}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, values in tensors.items():
            save_file(
                {key: value.contiguous() for key, value in values.items()},
                draft / f"{name}.safetensors",
            )
        digests = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        with (draft / _STATE).open("w") as file:
            json.dump({**state, "files": digests}, file)
        for path in (*draft.iterdir(), draft):
            _settle(path)
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error
    for old in _steps(trial)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def newest(trial: Path, job: str) -> tuple[Path, dict[str, Json]] | None:
    """The newest checkpoint of `trial` that is whole and belongs to `job`, with its state.

    None: there is none.

    Args:
        trial: folder of the trial's checkpoints.
        job: fingerprint that the checkpoint's state must carry.
    """
    for folder in _steps(trial):
        try:
            state = read(folder)
        except CheckpointError:
            continue
        if state["job"] == job:
            return folder, state
    return None


def read(folder: Path) -> dict[str, Json]:
    """The state of a checkpoint, after every file of it was found unharmed.

    Raises:
        CheckpointError: a file is missing, cut short or changed.
    """
    try:
        state = json.loads((folder / _STATE).read_text())
        for name, digest in state["files"].items():
            if _digest(folder / name) != digest:
                raise CheckpointError(f"checkpoint {folder} is damaged: {name} has changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} is not whole: {error}") from error
    return dict(state)


def peek(folder: Path) -> dict[str, Json]:
    """The state of a checkpoint, whose other files are not looked at.

    Raises:
        CheckpointError: there is no such state.
    """
    try:
        return dict(json.loads((folder / _STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} is not whole: {error}") from error


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is one of ours; a model in Hugging Face form is not."""
    return (folder / _STATE).is_file()


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of `<name>.safetensors`, in host memory."""
    with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def place(trial: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimizer steps."""
    return trial / f"step-{step:08d}"


def _steps(trial: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(trial.glob("step-*"), reverse=True) if trial.is_dir() else []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(path: Path) -> None:
    """Have the file or folder on the disk before its name says that it is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
