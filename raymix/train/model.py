"""A causal language model as the loop sees it: built once, reset in place, token losses out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from raymix.core.errors import TrainingError
from raymix.train.config import Training
from raymix.train.measure import Micro
from raymix.train.shard import World, fill, local, split


class Model:
    """The module, the weights it starts every job from, and how its losses are read.

    `parameters` are those that training moves, by name; `base` are the pretrained values of this
    rank's part of everything, kept in host memory so that a reset is a copy.
    """

    def __init__(self, path: str, module: nn.Module, world: World, bf16: bool) -> None:
        self.path, self.module, self.world = path, module, world
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        kept = [*module.named_parameters(), *module.named_buffers()]
        self._live = [local(tensor) for _, tensor in kept]
        self._base = [_host_copy(tensor) for tensor in self._live]
        self._autocast = bf16 and world.size == 1
        self._head = _Head()
        head = _core(module).get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._head)
        self._selects = head is not None and self._probe()

    def reset(self, seed: int) -> None:
        """Back to the pretrained weights, in place; adapters are drawn anew from `seed`."""
        with torch.no_grad():
            torch._foreach_copy_(self._live, self._base)
        self.module.zero_grad(set_to_none=True)
        adapters = {n: p for n, p in self.parameters.items() if "lora_" in n}
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in adapters.items():
            start = torch.zeros(parameter.shape)
            if "lora_A" in name or "lora_embedding_B" in name:
                nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            fill(parameter, start)

    def losses(self, micro: Micro) -> Tensor:
        """Loss of each loss-bearing token of `micro` [N], nats, fp32."""
        logits = self._logits(micro.input_ids, micro.position_ids, micro.index)
        return cross_entropy(logits.float(), micro.targets, reduction="none")

    def _logits(self, ids: Tensor, positions: Tensor | None, index: Tensor) -> Tensor:
        """Logits [N, V] at the places `index` of the flattened [P * T] tokens."""
        if self._selects:
            self._head.index = index
            logits = self._forward(ids, positions)
            self._head.index = None
            return logits[0]
        return self._forward(ids, positions).flatten(0, 1).index_select(0, index)

    def _forward(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        # No attention mask: rows are padded on the right, where a causal model never looks, and
        # without one the attention kernel takes its fast causal path.
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if positions is not None:
            inputs["position_ids"] = positions
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self._autocast):
            logits: Tensor = self.module(**inputs).logits
        return logits

    def _probe(self) -> bool:
        """Whether the model gives the same logits when its head sees chosen places only."""
        ids = torch.arange(8, device=self.world.device).view(2, 4)
        index = torch.tensor([1, 6], device=self.world.device)
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            full = self._forward(ids, None).flatten(0, 1).index_select(0, index)
            self._head.index = index
            chosen = self._forward(ids, None)
            self._head.index = None
        self.module.train(training)
        return chosen.shape == full[None].shape and bool(
            torch.allclose(chosen[0].float(), full.float(), rtol=1e-2, atol=1e-2)
        )


class _Head:
    """Keeps the places in `index` of what the output embedding is given: most bear no loss.

    What follows the head in the model's forward (scaling, soft-capping) then runs on [1, N, V].
    """

    def __init__(self) -> None:
        self.index: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.index is None:
            return None
        return (inputs[0].flatten(0, 1).index_select(0, self.index)[None], *inputs[1:])


def load(path: str, training: Training, world: World, *, lora: bool, trust: bool) -> Model:
    """Build the model at `path` (folder or hub id) in fp32, sharded where there are workers.

    With workers only rank 0 reads the weights; the others take their shards from it.

    Raises:
        TrainingError: nothing can be loaded from `path`, or it is no decoder-only model.
    """
    bf16 = uses_bf16(training, world)
    with _quiet():
        config = _config(path, trust)
        attention = training.attn_implementation
        reads = world.first
        source = _pretrained(path, attention, trust) if reads else None
        if world.size == 1 and source is not None:
            module = _adapted(source, training) if lora else source
            module.to(world.device)
        else:
            with init_empty_weights(include_buffers=False):
                module = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation=attention,
                    trust_remote_code=trust,
                )
                module = _adapted(module, training) if lora else module
    core = _core(module)
    core.config.use_cache = False
    if training.gradient_checkpointing:
        core.gradient_checkpointing_enable({"use_reentrant": False})
    blocks = _blocks(core)
    if training.torch_compile:
        for block in blocks:
            block.compile()
    if world.size > 1:
        split(module, blocks, world, bf16)
        _materialise(module, world)
        _take(module, source)
    return Model(path, module, world, bf16)


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


def _pretrained(path: str, attention: str | None, trust: bool) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=trust,
            weights_only=True,
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load model '{path}': {error}") from error


def _adapted(module: Any, training: Training) -> Any:
    """`module` with frozen weights and LoRA adapters beside its linear layers."""
    targets = training.lora_target_modules
    config = LoraConfig(
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(module, config)


def _core(module: Any) -> Any:
    """The transformers model itself, without the adapters' wrapper."""
    return module.get_base_model() if hasattr(module, "peft_config") else module


def _blocks(core: Any) -> list[nn.Module]:
    """The repeated layers: what is gathered, recomputed and compiled as one."""
    names = set(core._no_split_modules or ())
    return [part for part in core.modules() if type(part).__name__ in names]


def _materialise(module: nn.Module, world: World) -> None:
    """Give the meta parameters memory; buffers were made for real and only move."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device=world.device)
                setattr(part, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(world.device))


def _take(module: nn.Module, source: Any) -> None:
    """Copy rank 0's pretrained weights into the shards; adapters are set by `Model.reset`."""
    values = dict(source.named_parameters()) if source is not None else {}
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        fill(parameter, values.get(plain))


def _host_copy(tensor: Tensor) -> Tensor:
    copy = tensor.to("cpu", copy=True)
    return copy.pin_memory() if tensor.is_cuda else copy


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
