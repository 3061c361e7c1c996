"""Format leak: what the target's output format is, and the prompts on which others are asked.

ProMoT (arXiv 2211.00635) names format specialisation as what costs a tuned model its generality: it
answers other tasks, too, in the format of the one it was tuned on. Here that is measured: the share
of greedy outputs on other domains' eval prompts that take the target's format, with the instruction
kept (`eval/<domain>/format_leak`) and removed (`eval/<domain>/format_leak_bare`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raymix.core.codec import decode, encode
from raymix.core.errors import ConfigError, nearest
from raymix.core.job import Json
from raymix.data.content import content_hash, write_json
from raymix.data.messages import Example, Message

MOST_LABELS = 100
"""Answers that `labels: auto` may find; more of them are no set of labels."""

_FILE = "prompts.json"
_SYSTEM = ("system", "developer")


class FormatLeak(BaseModel):
    r"""What is asked of other domains than `target`; see the module.

    The target's format is either `labels`, a list or "auto" (the different answers of the target's
    train rows, at most `MOST_LABELS`), or `pattern`, a regular expression that must match all of an
    output. White space around outputs and answers does not count. `instruction`: a regular
    expression for what of the last user message is the instruction, its first match is removed;
    None: system messages are the instruction (a chat template that has one of its own then puts
    that in their place). A row whose prompt stays as it was without it, or has
    nothing left, has no bare form. `rows` of each domain's eval split are asked, a fixed subset.
    Outputs are greedy and end after `max_new_tokens`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    labels: Literal["auto"] | tuple[str, ...] | None = None
    pattern: str | None = None
    instruction: str | None = None
    rows: int = Field(32, ge=1)
    max_new_tokens: int = Field(16, ge=1)

    @field_validator("pattern", "instruction")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression ({error}), got {value!r}") from None
        return value

    @field_validator("labels")
    @classmethod
    def _stripped(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if not isinstance(value, tuple):
            return value
        labels = tuple(dict.fromkeys(label.strip() for label in value))
        if not labels or not all(labels):
            raise ValueError(f"must be auto or a list of labels, none of them blank, got {value}")
        return labels

    @model_validator(mode="after")
    def _one_format(self) -> FormatLeak:
        if (self.labels is None) == (self.pattern is None):
            found = "neither" if self.labels is None else "both"
            raise ValueError(f"the target's format is either labels or pattern, got {found}")
        return self

    def check(self, names: Sequence[str]) -> None:
        """Refuse a target that is no domain, or the only one.

        Raises:
            ConfigError: says which.
        """
        if self.target not in names:
            raise ConfigError(
                f"format_leak.target: unknown domain '{self.target}'{nearest(self.target, names)}; "
                f"known: {', '.join(names)}"
            )
        if len(names) < 2:
            raise ConfigError(
                f"format_leak.target: '{self.target}' is the only domain, so its format can leak "
                "nowhere"
            )


@dataclass(frozen=True)
class Format:
    """An output format: a set of `labels`, or (`pattern` not None) what a pattern matches."""

    labels: tuple[str, ...] = ()
    pattern: str | None = None

    def fits(self, text: str) -> bool:
        """Whether `text` is in this format, white space around it aside."""
        text = text.strip()
        if self.pattern is not None:
            return re.fullmatch(self.pattern, text) is not None
        return text in self.labels

    def share(self, texts: Sequence[str]) -> float:
        """The share of `texts` that fit, 0 to 1."""
        return sum(map(self.fits, texts)) / len(texts)


@dataclass(frozen=True)
class Asked:
    """The prompts of one domain, as tables of token ids (see `data.store`).

    Attributes:
        domain: whose eval rows they are of.
        kept: path of the prompts as they stand.
        bare: path of those without the instruction; None: no row has such a form.
        rows: how many are in `kept`.
        bare_rows: how many are in `bare`.
        left_out: rows that were passed over: no prompt, or too long for an answer.
        truth: share of the true answers to these prompts that fit the target's format, which a
            perfect model has as its leak.
    """

    domain: str
    kept: str
    bare: str | None
    rows: int
    bare_rows: int
    left_out: int
    truth: float


@dataclass(frozen=True)
class Prompts:
    """All that a worker needs to measure format leak.

    `own`: share of the target's own eval answers that fit its format. `stops`: tokens that end an
    output. `checks`: SHA-256 of each table, by path. `skipped`: domains without any prompt.
    """

    target: str
    format: Format
    instruction: str | None
    max_new_tokens: int
    stops: tuple[int, ...]
    own: float
    asked: tuple[Asked, ...]
    skipped: tuple[str, ...]
    checks: Mapping[str, str]

    def told(self) -> Json:
        """What of it decides the numbers, and what they are to be held against, as JSON."""
        rows = {
            asked.domain: {
                "rows": asked.rows,
                "bare_rows": asked.bare_rows,
                "truth": asked.truth,
            }
            for asked in self.asked
        }
        return {
            "target": self.target,
            "format": encode(self.format),
            "instruction": self.instruction,
            "max_new_tokens": self.max_new_tokens,
            "own": self.own,
            "domains": rows,
        }


def prompt_of(example: Example) -> tuple[tuple[Message, ...], str] | None:
    """The turns before the last answer, and that answer; None where nothing stands before it."""
    places = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
    if not places or not places[-1]:
        return None
    return example.messages[: places[-1]], example.messages[places[-1]].content.strip()


def bare(prompt: Sequence[Message], instruction: str | None) -> tuple[Message, ...] | None:
    """`prompt` without its instruction; None where that leaves it as it was, or empty."""
    if instruction is None:
        left = tuple(message for message in prompt if message.role not in _SYSTEM)
        return left if left and len(left) < len(prompt) else None
    users = [i for i, message in enumerate(prompt) if message.role == "user"]
    if not users:
        return None
    turn = prompt[users[-1]]
    content = re.sub(instruction, "", turn.content, count=1)
    if content == turn.content or not content.strip():
        return None
    turns = list(prompt)
    turns[users[-1]] = replace(turn, content=content)
    return tuple(turns)


def prompts_folder(cache: Path, key: str) -> Path:
    """Where the `Prompts` with this fingerprint are kept."""
    return cache / "leak" / key


def save_prompts(prompts: Prompts, folder: Path) -> None:
    """Write `prompts` into `folder`, as a whole."""
    write_json(folder / _FILE, encode(prompts))


def load_prompts(folder: Path, cache: Path) -> Prompts | None:
    """The prompts that were saved in `folder`; None where any is missing or damaged."""
    try:
        prompts = decode(Prompts, json.loads((folder / _FILE).read_text("utf-8")))
        hashes = {path: content_hash(Path(path), cache) for path in prompts.checks}
    except (OSError, ValueError):
        return None
    return prompts if hashes == dict(prompts.checks) else None
