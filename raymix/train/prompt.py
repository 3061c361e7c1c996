"""A soft prompt: learned vectors that stand before a row's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PromptEmbedding, PromptTuningConfig
from torch import Tensor, nn
from torch.func import functional_call

from raymix.core.errors import TrainingError
from raymix.train.config import Training

NAME = "soft_prompt"
"""The submodule of the transformers model that holds it."""
PARAMETER = f"{NAME}.weight"

Start = Callable[[int, nn.Module, Tensor], Tensor]
"""What a soft prompt starts from [V, H], of a seed, the embedding and its weights, whole."""


class SoftPrompt(nn.Module):
    """V vectors of width H, put where `places` says into what the input embedding gives out.

    Like peft's prompt tuning they replace no token and pass through all that follows the
    embedding. Unlike there they may stand before some rows of a batch only, and inside packs.
    `places` [S] are of the flattened [P * T] tokens, whole prompts one after the other; None: the
    embedding is left alone. With places, even none, the prompt is part of the graph: FSDP2 needs
    its gradient on every worker.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens, width))
        self.places: Tensor | None = None

    def put(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """A forward hook of the input embedding, whose output is [P, T, H]."""
        if self.places is None:
            return None
        tokens, width = self.weight.shape
        rows = self.places.numel() // tokens
        values = self.weight.to(output.dtype).expand(rows, tokens, width).reshape(-1, width)
        return output.flatten(0, 1).index_copy(0, self.places, values).view_as(output)


def extend(inner: Any, path: str, training: Training) -> None:
    """Give the transformers model `inner` a soft prompt, all zeros.

    Raises:
        TrainingError: it has no embedding that vectors can be put beside, or no room for them.
    """
    tokens, sizes = training.num_virtual_tokens, inner.config.get_text_config()
    embedding = inner.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise TrainingError(
            f"model '{path}' cannot have a soft prompt: its input embedding "
            f"({type(embedding).__name__}) is no table of vectors"
        )
    width = getattr(sizes, "hidden_size", None)
    if width != weight.shape[1]:
        raise TrainingError(
            f"model '{path}' cannot have a soft prompt: its input embedding is {weight.shape[1]} "
            f"wide, its hidden states {width}"
        )
    longest = getattr(sizes, "max_position_embeddings", None)
    if longest is not None and tokens + training.max_length > longest:
        raise TrainingError(
            f"training.num_virtual_tokens {tokens} + training.max_length {training.max_length} is "
            f"more than the context of {longest} of model '{path}': lower one of them"
        )
    prompt = SoftPrompt(tokens, weight.shape[1])
    inner.add_module(NAME, prompt)
    embedding.register_forward_hook(prompt.put)


def starting(training: Training, tokenizer: str) -> Start:
    """The start that `training` asks for, drawn as peft draws it.

    Args:
        training: names the kind of start.
        tokenizer: folder or hub id, for a start from a text.
    """

    def draw(seed: int, embedding: nn.Module, weight: Tensor) -> Tensor:
        config = PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=training.num_virtual_tokens,
            token_dim=weight.shape[1],
            num_transformer_submodules=1,
            prompt_tuning_init=training.prompt_tuning_init.upper(),
            prompt_tuning_init_text=training.prompt_tuning_init_text,
            tokenizer_name_or_path=tokenizer,
        )
        cuda = [weight.device] if weight.is_cuda else []
        with torch.random.fork_rng(cuda), torch.no_grad():
            torch.manual_seed(seed)
            try:
                made = PromptEmbedding(config, _Whole(embedding, weight))
            except (OSError, ValueError, IndexError, ZeroDivisionError) as error:
                text = training.prompt_tuning_init_text
                raise TrainingError(
                    f"training.prompt_tuning_init_text '{text}' cannot be embedded with tokenizer "
                    f"'{tokenizer}': {error}"
                ) from error
        start: Tensor = made.embedding.weight.detach().cpu()
        return start

    return draw


class _Whole(nn.Module):
    """An embedding with all of its weights, where the worker may hold a part of them only."""

    def __init__(self, embedding: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.num_embeddings = weight, weight.shape[0]
        self._embedding = (embedding,)  # not a submodule: it is the model's

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = functional_call(self._embedding[0], {"weight": self.weight}, (ids,))
        return found
