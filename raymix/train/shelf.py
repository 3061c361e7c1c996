"""Trained models written in Hugging Face form: weights, adapters, soft prompts."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftModel, PromptTuningConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from upath import UPath

from raymix.core.errors import CheckpointError, TrainingError
from raymix.storage.place import (
    check_writable,
    draft_of,
    os_errors,
    refuse_bucket,
    remove,
    send,
    write_whole,
)
from raymix.train.config import Setup, Training
from raymix.train.model import Model, core, plain_name
from raymix.train.parts import Part
from raymix.train.pretrained import adapted, quiet, tokenizer_at
from raymix.train.prompt import PARAMETER
from raymix.train.shard import together, whole

PROMPT, ADAPTER = "prompt", "adapter"
"""Folders of the soft prompt and of the adapters, beside the weights that they go with."""

_MARKS = ("config.json", "adapter_config.json")

_SAVING = ".raymix-saving"
"""In an object store: what is beside it may have been cut off, and may be written again."""


@dataclass(frozen=True)
class Shelf:
    """Where a trained model goes, and what goes with it: the tokenizer (on rank 0), settings."""

    folder: UPath
    tokenizer: Any
    training: Training


def shelf(folder: UPath, model: Model, setup: Setup) -> Shelf:
    """See before a training that what it makes can be saved; a collective call.

    Raises:
        TrainingError: there is no tokenizer, or `folder` holds something that is no model, or
            cannot be made.
    """
    tokenizer = None
    with together(model.world):
        if model.world.first:
            try:
                with os_errors(folder):
                    _check(folder)
            except OSError as error:
                raise TrainingError(f"cannot save a model to {folder}: {error}") from error
            tokenizer = _tokenizer(model.path, setup)
    return Shelf(folder, tokenizer, setup.training)


def _check(folder: UPath) -> None:
    refuse_bucket(folder)
    # A store may have an object in the place of the folder, without a name of its own.
    kept = folder.is_dir() and any(each.name for each in folder.iterdir())
    if kept and not any((folder / name).exists() for name in (*_MARKS, _SAVING)):
        raise TrainingError(f"will not save a model to {folder}: it holds something else")
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"cannot save a model to {folder}: it is a file")
    draft_of(folder).rmdir()
    if not isinstance(folder, Path):
        check_writable(folder)


def _tokenizer(path: str, setup: Setup) -> Any:
    path = setup.tokenizer or path
    tokenizer = tokenizer_at(path, setup)
    try:
        if setup.chat_template is not None:
            tokenizer.chat_template = Path(setup.chat_template).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load tokenizer '{path}': {error}") from error
    return tokenizer


@dataclass(frozen=True)
class _Whole:
    """The parts of a model that are saved, whole and in the dtype that they are saved in."""

    weights: Mapping[str, Tensor]
    adapters: Mapping[str, Tensor]
    prompt: Tensor | None


def save(model: Model, shelf: Shelf, parts: Collection[Part]) -> None:
    """Write `model` so that transformers, or peft on its base, loads it; a collective call.

    Weights that have moved are a model of their own in the folder, in the dtype that the base came
    in, the soft prompt beside them in `prompt`, adapters in `adapter`. Else the adapters alone are
    in the folder, or else the soft prompt alone. With `training.merge_lora` the adapters are added
    into the weights. The tokenizer's files are beside them.

    Args:
        model: as trained.
        shelf: where to, and how.
        parts: of the model that the job has moved.

    Raises:
        CheckpointError: it could not be written.
    """
    folder, merges = shelf.folder, shelf.training.merge_lora and Part.ADAPTERS in parts
    own = merges or Part.WEIGHTS in parts or model.moved() > 0 or not parts
    found = _gathered(model, own, Part.ADAPTERS in parts, merges)
    inner = core(model.module)
    with together(model.world):
        if not model.world.first:
            return
        draft = None
        try:
            draft = draft_of(folder)
            with quiet():
                _write(draft, model, found, shelf, own)
            shelf.tokenizer.save_pretrained(draft)
            _put(draft, folder)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot save the model to {folder}: {error}") from error
        finally:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)
            inner.config.use_cache, inner.config.dtype = False, torch.float32


def _gathered(model: Model, own: bool, adapters: bool, merges: bool) -> _Whole:
    """What is saved, on rank 0; weights that are still to be merged in fp32. Collective."""
    taken: dict[str, Tensor] = {}
    wanted = dict(model.named(Part.WEIGHTS)) if own else {}
    wanted |= dict(model.named(Part.ADAPTERS)) if adapters else {}
    wanted |= dict(model.named(Part.PROMPT))
    for name, parameter in wanted.items():
        full = whole(parameter)
        if model.world.first:
            taken[name] = full if merges or name == PARAMETER else full.to(model.dtype)
    weights = {name: taken[name] for name in model.named(Part.WEIGHTS) if name in taken}
    tuned = {name: taken[name] for name in model.named(Part.ADAPTERS) if name in taken}
    return _Whole(weights, tuned, taken.get(PARAMETER))


def _write(draft: Path, model: Model, found: _Whole, shelf: Shelf, own: bool) -> None:
    module: Any = model.module
    inner, folder = core(module), shelf.folder
    if own:
        # The module itself is fp32 and does not cache; whoever loads it may want both.
        merges = shelf.training.merge_lora and found.adapters
        plain, weights = inner, found.weights
        if merges:
            plain, weights = _merged(model, found, shelf.training)
        elif isinstance(module, PeftModel):
            plain = _empty(inner)
        plain.save_pretrained(draft, state_dict=dict(weights))
        inner.config.use_cache, inner.config.dtype = True, model.dtype
        inner.config.save_pretrained(draft)
        if found.adapters and not merges:
            _write_adapters(draft / ADAPTER, module, found.adapters, str(folder))
    elif found.adapters:
        _write_adapters(draft, module, found.adapters, None)
    if found.prompt is not None:
        alone = not own and not found.adapters
        base = str(folder) if own else model.path
        _write_prompt(draft if alone else draft / PROMPT, found.prompt, inner.config, base)


def _empty(inner: Any) -> Any:
    """A model as `inner` is, without adapters and without weights."""
    with init_empty_weights(include_buffers=False):
        made = type(inner)(inner.config)
    made.generation_config = inner.generation_config
    return made


def _merged(model: Model, found: _Whole, training: Training) -> tuple[Any, dict[str, Tensor]]:
    """A model without adapters, and its weights with the adapters added into them."""
    made = adapted(_empty(core(model.module)), training)
    made.get_base_model().tie_weights()  # made without memory they are apart
    for name, _ in list(made.named_parameters()):
        holder = made.get_submodule(name.rpartition(".")[0])
        value = found.adapters[name] if name in found.adapters else found.weights[plain_name(name)]
        # A copy: merging writes, and on one worker these are the weights in training.
        setattr(holder, name.rpartition(".")[2], nn.Parameter(value.clone(), False))
    made.get_base_model().tie_weights()
    plain = made.merge_and_unload()
    state = {n: p.detach().to(model.dtype) for n, p in plain.named_parameters()}
    return plain, state


def _write_adapters(
    folder: Path, module: Any, state: Mapping[str, Tensor], base: str | None
) -> None:
    """Adapters as peft keeps them; `base` is a model beside them, None: the one they came with."""
    config = module.peft_config["default"]
    before = config.base_model_name_or_path
    config.base_model_name_or_path = base or before
    try:
        # "auto" would look for the base, which is not in its place yet and has all embeddings.
        module.save_pretrained(
            folder, state_dict=dict(state), save_embedding_layers=False if base else "auto"
        )
    finally:
        config.base_model_name_or_path = before


def _write_prompt(folder: Path, prompt: Tensor, config: Any, base: str) -> None:
    """The soft prompt as peft keeps one; what it started from does not matter any more."""
    sizes = config.get_text_config()
    folder.mkdir(parents=True, exist_ok=True)
    PromptTuningConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        num_virtual_tokens=prompt.shape[0],
        token_dim=prompt.shape[1],
        num_transformer_submodules=1,
        num_attention_heads=sizes.num_attention_heads,
        num_layers=sizes.num_hidden_layers,
        prompt_tuning_init="RANDOM",
    ).save_pretrained(folder)
    values = {"prompt_embeddings": prompt.contiguous()}
    save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _put(draft: Path, folder: UPath) -> None:
    """Move what is in `draft` to `folder`, in the place of the model that may be there."""
    if not isinstance(folder, Path):
        with os_errors(folder):
            write_whole(folder / _SAVING, b"")
            _clear(draft, folder)
            send(draft, folder, next(name for name in _MARKS if (draft / name).exists()))
            (folder / _SAVING).unlink()
        return
    folder.mkdir(exist_ok=True)
    _clear(draft, folder)
    for file in draft.iterdir():
        file.replace(folder / file.name)
    draft.rmdir()


def _clear(draft: Path, folder: UPath) -> None:
    """Remove what of another model in `folder` would be taken for a part of this one."""
    if folder.is_dir():
        for stale in [each for each in folder.iterdir() if ".safetensors" in each.name]:
            stale.unlink()
    for name in _MARKS:
        if not (draft / name).exists() and (folder / name).exists():
            (folder / name).unlink()
    for name in (PROMPT, ADAPTER):
        remove(folder / name)
