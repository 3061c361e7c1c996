"""Models in Hugging Face form: read with workers' shards in mind, and written back."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from raymix.core.errors import CheckpointError, TrainingError
from raymix.train import checkpoint
from raymix.train.config import Setup, Training
from raymix.train.model import Model, core, plain_name
from raymix.train.shard import World, fill, split, together, whole

_UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError)


def load(path: str, training: Training, world: World, *, lora: bool, trust: bool) -> Model:
    """Build the model at `path` (folder or hub id) in fp32, sharded where there are workers.

    With workers only rank 0 reads the weights; the others take their shards from it.

    Raises:
        TrainingError: nothing can be loaded from `path`, or it is no decoder-only model.
    """
    bf16 = uses_bf16(training, world)
    attention = training.attn_implementation
    with _quiet():
        with together(world):
            config = _config(path, trust)
            source = _pretrained(path, attention, trust) if world.first else None
        dtype = _stored_dtype(config)
        if world.size == 1 and source is not None:
            module = adapted(source, training) if lora else source
            module.to(world.device)
        else:
            with init_empty_weights(include_buffers=False):
                module = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation=attention,
                    trust_remote_code=trust,
                )
                module = adapted(module, training) if lora else module
    inner = core(module)
    inner.tie_weights()  # meta-device loading takes tied weights apart
    inner.config.use_cache = False
    if training.gradient_checkpointing:
        with warnings.catch_warnings():
            # transformers 5.23 renames this; the old name is the one that all of 5 has.
            warnings.simplefilter("ignore", FutureWarning)
            inner.gradient_checkpointing_enable({"use_reentrant": False})
    blocks = _blocks(inner)
    if training.torch_compile:
        for block in blocks:
            block.compile()
    if world.size > 1:
        split(module, blocks, world, bf16)
        _materialise(module, world)
        _take(module, source, world)
    model = Model(path, module, world, bf16=bf16, dtype=dtype)
    if training.packing and not model.isolates():
        raise TrainingError(
            f"model '{path}' ({config.model_type}) lets packed examples see each other; "
            "set training.packing to false"
        )
    return model


def uses_bf16(training: Training, world: World) -> bool:
    """Whether forward and backward run in bf16: as asked, else where the GPU has it."""
    if training.bf16 is not None:
        return training.bf16
    return world.device.type == "cuda" and torch.cuda.is_bf16_supported()


def _config(path: str, trust: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load model '{path}': {error}") from error
    if config.is_encoder_decoder:
        raise TrainingError(
            f"model '{path}' is an encoder-decoder ({config.model_type}); "
            "raymix trains decoder-only language models"
        )
    return config


def _stored_dtype(config: Any) -> torch.dtype:
    """What a trained model is saved in: bf16 where the base came in half precision, else fp32."""
    return torch.bfloat16 if config.dtype in (torch.bfloat16, torch.float16) else torch.float32


def _pretrained(path: str, attention: str | None, trust: bool) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=trust,
            weights_only=True,
        )
    except _UNREADABLE as error:
        raise TrainingError(f"cannot load model '{path}': {error}") from error


def adapted(module: Any, training: Training) -> Any:
    """`module` with frozen weights and LoRA adapters beside its linear layers."""
    targets = training.lora_target_modules
    config = LoraConfig(
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks the model a question that has a newer name in transformers 5.23.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return get_peft_model(module, config)
        except ValueError as error:
            raise TrainingError(f"training.lora_target_modules: {error}") from error


def _blocks(inner: Any) -> list[nn.Module]:
    """The repeated layers: what is gathered, recomputed and compiled as one."""
    names = set(inner._no_split_modules or ())
    return [part for part in inner.modules() if type(part).__name__ in names]


def _materialise(module: nn.Module, world: World) -> None:
    """Give the meta parameters memory; buffers were made for real and only move."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, meta in part.named_parameters(recurse=False, remove_duplicate=False):
            if meta not in made:
                zeros = torch.zeros_like(meta, device=world.device)
                made[meta] = nn.Parameter(zeros, requires_grad=meta.requires_grad)
            setattr(part, name, made[meta])
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(world.device))


def _take(module: nn.Module, source: Any, world: World) -> None:
    """Copy rank 0's pretrained weights into the shards; adapters are set by `Model.reset`."""
    values = dict(source.named_parameters()) if source is not None else {}
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            continue
        fill(parameter, values[plain_name(name)] if values else None, world)


def start_from(model: Model, folder: Path) -> None:
    """Give `model` the weights in `folder`: a checkpoint of ours or a model in Hugging Face form.

    Raises:
        TrainingError: nothing can be read there, or the weights are another model's.
    """
    found: dict[str, Tensor] = {}
    with together(model.world):
        if model.world.first:
            found = _weights(folder, model)
    names = model.world.told(sorted(found))
    for name, parameter in model.module.named_parameters():
        key = name if name in names else plain_name(name)
        if key in names:
            fill(parameter, found.get(key), model.world)


def _weights(folder: Path, model: Model) -> dict[str, Tensor]:
    shapes = {plain_name(n): p.shape for n, p in model.module.named_parameters()}
    wanted = {name for name in shapes if ".lora_" not in name}
    shapes |= {n: p.shape for n, p in model.parameters.items()}
    said = f"cannot start '{model.path}' from weights in {folder}"
    if checkpoint.is_checkpoint(folder):
        checkpoint.read(folder)
        found = checkpoint.tensors(folder, "model")
        wanted = set()  # it has those that were trained
    else:
        with _quiet():
            source = _pretrained(str(folder), None, False)
        kinds = [config.model_type for config in (source.config, core(model.module).config)]
        if kinds[0] != kinds[1]:
            raise TrainingError(f"{said}: they are of a {kinds[0]} model, it is a {kinds[1]} model")
        found = dict(source.named_parameters())
    wrong = [name for name, value in found.items() if shapes.get(name) != value.shape]
    wrong += sorted(wanted - found.keys())
    if wrong or not found:
        what = f"'{wrong[0]}' does not fit" if wrong else "there are none"
        raise TrainingError(f"{said}: {what}")
    return found


@dataclass(frozen=True)
class Shelf:
    """Where a trained model goes, and the tokenizer that goes with it (on rank 0)."""

    folder: Path
    tokenizer: Any


def shelf(folder: Path, model: Model, setup: Setup) -> Shelf:
    """See before a training that what it makes can be saved; a collective call.

    Raises:
        TrainingError: there is no tokenizer, or `folder` holds something that is no model, or
            cannot be made.
    """
    tokenizer = None
    with together(model.world):
        if model.world.first:
            kept = folder.is_dir() and any(folder.iterdir())
            if kept and not any((folder / name).exists() for name in _MARKS):
                raise TrainingError(f"will not save a model to {folder}: it holds something else")
            if folder.exists() and not folder.is_dir():
                raise TrainingError(f"cannot save a model to {folder}: it is a file")
            try:
                shutil.rmtree(_draft(folder), ignore_errors=True)
                _draft(folder).mkdir(parents=True)
                _draft(folder).rmdir()
            except OSError as error:
                raise TrainingError(f"cannot save a model to {folder}: {error}") from error
            tokenizer = _tokenizer(model.path, setup)
    return Shelf(folder, tokenizer)


def _draft(folder: Path) -> Path:
    """Where a model is written before it appears in `folder`, whole."""
    return folder.with_name(f".draft-{folder.name}")


_MARKS = ("config.json", "adapter_config.json")


def _tokenizer(path: str, setup: Setup) -> Any:
    path = setup.tokenizer or path
    tokenizer = tokenizer_at(path, setup)
    try:
        if setup.chat_template is not None:
            tokenizer.chat_template = Path(setup.chat_template).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load tokenizer '{path}': {error}") from error
    return tokenizer


def tokenizer_at(path: str, setup: Setup) -> Any:
    """The tokenizer in a folder or on the hub.

    Raises:
        TrainingError: nothing can be loaded from there.
    """
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=setup.trust_remote_code)
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load tokenizer '{path}': {error}") from error


def same_tokenizer(folder: Path, path: str, setup: Setup) -> None:
    """Refuse a model in `folder` that comes with another vocabulary than the model at `path`.

    Raises:
        TrainingError: names both. A folder without a tokenizer is taken at its word.
    """
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return
    theirs, ours = (
        tokenizer_at(str(folder), setup),
        tokenizer_at(setup.tokenizer or path, setup),
    )
    if theirs.get_vocab() != ours.get_vocab():
        raise TrainingError(
            f"the model in {folder} has another tokenizer than '{setup.tokenizer or path}': their "
            "losses per token cannot be compared"
        )


_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def save(model: Model, shelf: Shelf) -> None:
    """Write `model` so that `AutoModelForCausalLM.from_pretrained(folder)` loads it.

    Full weights in the dtype that the base came in, or the adapters alone where there are some;
    the tokenizer's files beside them. A collective call.

    Raises:
        CheckpointError: it could not be written.
    """
    folder = shelf.folder
    inner = core(model.module)
    weights = {}
    for name, parameter in model.parameters.items():
        full = whole(parameter)
        if model.world.first:
            weights[name] = full.to(model.dtype)
    with together(model.world):
        if not model.world.first:
            return
        draft = _draft(folder)
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            with _quiet():
                cast(Any, model.module).save_pretrained(draft, state_dict=weights)
            if not isinstance(model.module, PeftModel):
                # The module itself is fp32 and does not cache; whoever loads it may want both.
                inner.config.use_cache, inner.config.dtype = True, model.dtype
                inner.config.save_pretrained(draft)
            shelf.tokenizer.save_pretrained(draft)
            folder.mkdir(exist_ok=True)
            for stale in folder.glob("*.safetensors*"):
                stale.unlink()
            for file in draft.iterdir():
                file.replace(folder / file.name)
            draft.rmdir()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise CheckpointError(f"cannot save the model to {folder}: {error}") from error
        finally:
            inner.config.use_cache, inner.config.dtype = False, torch.float32


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of weights being read: a study loads models in many processes."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
