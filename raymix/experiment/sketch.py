"""A model drawn without its weights, to see which layers influence would look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from raymix.core.errors import ConfigError
from raymix.experiment.config import Experiment
from raymix.influence.layers import choose
from raymix.influence.memory import Shape
from raymix.train.pretrained import adapted


@dataclass(frozen=True)
class Sketch:
    """Sizes: `shapes` of the layers looked at; all `parameters`, and those that are `trained`."""

    shapes: tuple[Shape, ...]
    parameters: int
    trained: int


def sketch(experiment: Experiment) -> Sketch:
    """The experiment's model, adapters included, on torch's meta device.

    Raises:
        ConfigError, InfluenceError: the model cannot be described, or no layer matches.
    """
    network = _Network(_module(experiment))
    try:
        layers = choose(network, experiment.influence.layers)
    except (RuntimeError, TypeError) as error:
        name = experiment.model_name_or_path
        raise ConfigError(
            f"model_name_or_path: '{name}' cannot be run without its weights: {error}"
        ) from error
    return Sketch(
        shapes=tuple(layer.shape for layer in layers),
        parameters=sum(p.numel() for p in network.module.parameters()),
        trained=sum(p.numel() for p in network.parameters.values()),
    )


def _module(experiment: Experiment) -> nn.Module:
    path, trust = experiment.model_name_or_path, experiment.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        with init_empty_weights(include_buffers=True):
            module = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=trust
            )
            module.tie_weights()
            if experiment.training.use_peft:
                module = adapted(module, experiment.training)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model_name_or_path: cannot describe '{path}': {error}") from None
    found: nn.Module = module
    return found


class _Network:
    """What `choose` runs forward: shapes go through it, no numbers do."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    @property
    def embedding(self) -> nn.Module:
        """What turns tokens into vectors."""
        found: nn.Module = self.module.get_input_embeddings()
        return found

    @cached_property
    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters that training moves, by name."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def logits(self, ids: Tensor, positions: Tensor | None, index: Tensor) -> Tensor:
        """Logits of all tokens; a whole mask is given because making one looks at numbers."""
        rows, tokens = ids.shape
        mask = torch.zeros((rows, 1, tokens, tokens), device=ids.device)
        found: Tensor = self.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return found.flatten(0, 1)
