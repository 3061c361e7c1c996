"""A tokenizer and a tiny Llama for the skill suite, made from seeds in about five seconds.

The folder written is an ordinary Hugging Face model folder, so that everything which loads a
real model loads this one. torch, tokenizers and transformers are imported where they are used:
the floors that read only the data of the suite must not load them.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymix.testing.skills import COMMANDS, Row, drill_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"
ROLES = ("system", "user", "assistant")

# Only the answer and the end of turn bear loss; the tags say so to whoever asks for a mask.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

_IGNORE = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Design:
    """Shape and pretraining of the tiny Llama.

    `version` is to be raised whenever code in this file changes the weights that are written:
    it is part of the suite's fingerprint. `batch_size` counts examples, `context` tokens.
    """

    width: int = 48
    layers: int = 2
    heads: int = 4
    context: int = 128
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    version: int = 1


DESIGN = Design()

LARGER = Design(width=96, layers=3)
"""A second size, for the question of what more parameters change."""


def build_tokenizer(commands: Sequence[str] = COMMANDS) -> PreTrainedTokenizerFast:
    """A tokenizer of printable ASCII characters, with one token for each of `commands`.

    ``cipher: bdf`` is four tokens. Any other text is read character by character.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    asked = [f"{command}: " for command in commands]
    specials = [PAD, UNKNOWN, END, *(f"<|{role}|>" for role in ROLES)]
    printable = [*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"]
    vocabulary = {token: i for i, token in enumerate([*specials, *asked, *printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex("|".join([*asked, r"[\s\S]"])), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
        model_max_length=DESIGN.context,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, design: Design = DESIGN
) -> LlamaForCausalLM:
    """A Llama (of about 50,000 parameters by default) with random weights by the seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=design.width,
        intermediate_size=2 * design.width,
        num_hidden_layers=design.layers,
        num_attention_heads=design.heads,
        num_key_value_heads=design.heads,
        max_position_embeddings=design.context,
        tie_word_embeddings=True,
        initializer_range=0.05,  # the default, .02, makes so narrow a model slow to start
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def write_model(
    folder: Path, seed: int, design: Design = DESIGN, commands: Sequence[str] = COMMANDS
) -> None:
    """Builds, pretrains and saves the tiny model and its tokenizer.

    Args:
        folder: the model folder; made if it is not there.
        seed: of the weights and of the drill.
        design: shape and pretraining; with 0 steps the weights stay random.
        commands: words that are one token each; the drill asks them all.
    """
    tokenizer = build_tokenizer(commands)
    model = build_model(tokenizer, seed, design)
    if design.steps:
        rows = drill_rows(design.steps * design.batch_size, seed, commands)
        pretrain(model, tokenizer, rows, design)
    folder.mkdir(parents=True, exist_ok=True)
    with _no_progress_bar():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    design: Design = DESIGN,
) -> None:
    """One pass over ``rows`` with Adam, in their order, on one thread.

    On purpose not the project's training loop: the starting point of the measured grid must not
    move when that loop does.
    """
    import torch

    inputs, labels = _encode(tokenizer, rows)
    size, steps = design.batch_size, len(rows) // design.batch_size
    optimizer = torch.optim.Adam(model.parameters(), lr=design.learning_rate)
    model.train()
    with _one_thread():
        for step in range(steps):
            batch = slice(step * size, (step + 1) * size)
            warmup = min(1.0, (step + 1) / design.warmup_steps)
            decay = 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = design.learning_rate * warmup * decay
            logits = model(input_ids=inputs[batch, :-1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[batch, 1:].flatten(), ignore_index=_IGNORE
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


def _encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Tokens and labels ``[rows, tokens]``; the drill's rows are all of one length.

    Written out instead of asked of the template, which takes longer than the training.
    """
    import torch

    texts = [
        "".join(f"<|{turn['role']}|>{turn['content']}" for turn in row["messages"]) + END
        for row in rows
    ]
    tokens = torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])
    start = tokenizer.convert_tokens_to_ids("<|assistant|>")
    answered = (tokens == start).cumsum(1) - (tokens == start).long()
    return tokens, torch.where(answered > 0, tokens, _IGNORE)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums on one thread: their order, and so the weights, do not depend on the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Saving fifty thousand numbers needs no progress bar on stderr."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
