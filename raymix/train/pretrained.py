"""Models in Hugging Face form, read with workers' shards in mind."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging
from upath import UPath

from raymix.core.errors import TrainingError
from raymix.train import checkpoint
from raymix.train.config import Setup, Training
from raymix.train.model import Model, core, part_of, plain_name
from raymix.train.parts import Part
from raymix.train.prompt import PARAMETER, extend, starting
from raymix.train.shard import World, fill, split, together

_UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError)


def load(
    path: str,
    training: Training,
    world: World,
    *,
    lora: bool,
    trust: bool,
    prompt: bool = False,
    tokenizer: str | None = None,
) -> Model:
    """Build the model at `path` (folder or hub id) in fp32, sharded where there are workers.

    With workers only rank 0 reads the weights; the others take their shards from it.

    Args:
        path: folder or hub id.
        training: settings.
        world: whose workers hold it.
        lora: whether it has adapters.
        trust: whether code that comes with it is run.
        prompt: whether it has a soft prompt.
        tokenizer: folder or hub id, where it is not the model's own.

    Raises:
        TrainingError: nothing can be loaded from `path`, it is no decoder-only model, or it cannot
            have a soft prompt.
    """
    bf16 = uses_bf16(training, world)
    attention = training.attn_implementation
    with quiet():
        with together(world):
            config = _config(path, trust)
            source = _pretrained(path, attention, trust) if world.first else None
        dtype = _stored_dtype(config)
        if world.size == 1 and source is not None:
            module = _grown(source, path, training, lora, prompt)
            module.to(world.device)
        else:
            with init_empty_weights(include_buffers=False):
                module = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation=attention,
                    trust_remote_code=trust,
                )
                module = _grown(module, path, training, lora, prompt)
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
    start = starting(training, tokenizer or path) if prompt else None
    model = Model(path, module, world, bf16=bf16, dtype=dtype, start=start)
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


def _grown(inner: Any, path: str, training: Training, lora: bool, prompt: bool) -> Any:
    """`inner` with what it is to have beside its weights, which may all still move."""
    movable = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    module = adapted(inner, training) if lora else inner
    for parameter in movable:
        parameter.requires_grad_(True)
    if prompt:
        extend(core(module), path, training)
    return module


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
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # refused below
        try:
            made = get_peft_model(module, config)
        except ValueError as error:
            raise TrainingError(f"training.lora_target_modules: {error}") from error
    _refuse_tied(made.get_base_model())
    return made


def _refuse_tied(inner: Any) -> None:
    """Adapters of one of two layers that share a weight cannot be added into it."""
    if not inner.config.get_text_config().tie_word_embeddings:
        return
    ends = (inner.get_input_embeddings(), inner.get_output_embeddings())
    names = [n for n, part in inner.named_modules() if part in ends]
    if any(isinstance(part, BaseTunerLayer) for part in ends):
        raise TrainingError(
            f"training.lora_target_modules: {' and '.join(names)} share one weight (the model's "
            "tie_word_embeddings), which no adapter of one of them can be added into; leave them "
            "out, or start from a model whose head has a weight of its own"
        )


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
    """Copy rank 0's pretrained weights into the shards; the rest is set by `Model.reset`."""
    values = dict(source.named_parameters()) if source is not None else {}
    for name, parameter in module.named_parameters():
        if part_of(name) is Part.WEIGHTS:
            fill(parameter, values[plain_name(name)] if values else None, world)


def start_from(model: Model, folder: UPath) -> None:
    """Give `model` the weights in `folder`: a checkpoint of ours or a model in Hugging Face form.

    Raises:
        TrainingError: nothing can be read there, or the weights are another model's.
    """
    found: dict[str, Tensor] = {}
    with together(model.world):
        if model.world.first:
            found = _weights(folder, model)
    names = model.world.told(sorted(found))
    for part in Part:
        for name, parameter in model.named(part).items():
            if name in names:
                fill(parameter, found.get(name), model.world)


def _weights(folder: UPath, model: Model) -> dict[str, Tensor]:
    shapes = {n: p.shape for part in Part for n, p in model.named(part).items()}
    wanted = set(model.named(Part.WEIGHTS))
    said = f"cannot start '{model.path}' from weights in {folder}"
    if checkpoint.is_checkpoint(folder):
        checkpoint.read(folder)
        found = checkpoint.tensors(folder, "model")
        wanted = set()  # it has those that were trained
    else:
        with quiet():
            source = _pretrained(str(checkpoint.here(folder)), None, False)
        kinds = [config.model_type for config in (source.config, core(model.module).config)]
        if kinds[0] != kinds[1]:
            raise TrainingError(f"{said}: they are of a {kinds[0]} model, it is a {kinds[1]} model")
        found = dict(source.named_parameters())
    if PARAMETER in found and PARAMETER not in shapes:
        raise TrainingError(f"{said}: they have a soft prompt, which no stage of this job uses")
    wrong = [name for name, value in found.items() if shapes.get(name) != value.shape]
    wrong += sorted(wanted - found.keys())
    if wrong or not found:
        what = f"'{wrong[0]}' does not fit" if wrong else "there are none"
        raise TrainingError(f"{said}: {what}")
    return found


def tokenizer_at(path: str, setup: Setup) -> Any:
    """The tokenizer in a folder or on the hub.

    Raises:
        TrainingError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=setup.trust_remote_code)
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load tokenizer '{path}': {error}") from error


def same_tokenizer(folder: UPath, path: str, setup: Setup) -> None:
    """Refuse a model in `folder` that comes with another vocabulary than the model at `path`.

    Raises:
        TrainingError: names both. A folder without a tokenizer is taken at its word.
    """
    here = checkpoint.here(folder)
    if not any((here / name).is_file() for name in _TOKENIZERS):
        return
    theirs, ours = (
        tokenizer_at(str(here), setup),
        tokenizer_at(setup.tokenizer or path, setup),
    )
    if theirs.get_vocab() != ours.get_vocab():
        raise TrainingError(
            f"the model in {folder} has another tokenizer than '{setup.tokenizer or path}': their "
            "losses per token cannot be compared"
        )


_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar of weights being read: a study loads models in many processes."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
