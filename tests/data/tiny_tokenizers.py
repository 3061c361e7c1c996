"""Small real tokenizers, trained in a moment: the kinds that chat models come with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import ByteLevel as TrimOffsets

TEMPLATES = Path(__file__).parent / "templates"

END = {
    "chatml": "<|im_end|>",
    "chatml_marked": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_marked": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "llama2": " </s>",
    "zephyr": "</s>",
    "plain": "\n\n",
}
"""What ends an answer, by template."""

SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
)

CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "User: hello\n\nAssistant: hello, how are you?\n\nsystem: You are helpful.",
    "assistant user model tool 1 2 3 4 5 6 7 8 9 0 {}[]()<>|/\\'\"",
] * 8


def byte_level(*, trim: bool = False) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen; `trim`: offsets leave white space out, as some do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trim:
        tokenizer.post_processor = TrimOffsets(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_special(tokenizer)


def sentencepiece() -> Tokenizer:
    """As Llama 2, Mistral and Gemma: spaces as U+2581, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", *bytes_], show_progress=False
    )
    # One text at a time would make one token of a text: split at spaces for the training alone.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.train_from_iterator(CORPUS, trainer)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.pre_tokenizer = None
    return _with_special(plain)


def _with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    return tokenizer


KINDS = {
    "byte_level": byte_level,
    "trimmed": lambda: byte_level(trim=True),
    "sentencepiece": sentencepiece,
}


def wrapped(kind: str, template: str | None = None) -> Any:
    """The tokenizer as transformers knows it, with a chat template from the folder beside this."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if template is not None:
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text("utf-8")
    return tokenizer
