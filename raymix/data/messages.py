"""Conversations: a turn, an example, and the ways in which people write a list of turns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raymix.core.errors import DataError
from raymix.core.job import Json

Row = Mapping[str, Any]

STANDARD_ROLES = ("system", "developer", "user", "assistant", "tool")

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
"""Names that data sets give to the standard roles."""

_EXTRAS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking")
"""Keys of a message, beside role and content, that chat templates read."""


@dataclass(frozen=True)
class Message:
    """One turn. `loss`: its tokens are learned; `extra`: what else its chat template may read."""

    role: str
    content: str
    loss: bool = False
    extra: Mapping[str, Json] = field(default_factory=dict)

    def for_template(self) -> dict[str, Json]:
        """The message as chat templates expect it."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True)
class Example:
    """What a row means: a conversation, or (`text` not None) plain text to learn as it stands."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: Json = None

    def content_hash(self) -> int:
        """64 bits, equal for equal content up to white space around each turn."""
        if self.text is not None:
            plain: Json = self.text.strip()
        else:
            plain = [[m.role, m.content.strip(), dict(m.extra)] for m in self.messages]
        text = json.dumps(plain, sort_keys=True, default=str)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Tags:
    """How a data set writes a turn.

    `keys`: names of (role, content), the first pair that a turn has is used. `roles`: names of
    roles beside the usual ones.
    """

    keys: tuple[tuple[str, str], ...] = (("role", "content"), ("from", "value"))
    roles: Mapping[str, str] = field(default_factory=dict)


def read_turns(turns: object, tags: Tags) -> Iterator[Message]:
    """The messages that a list of turns (or the JSON text of one) means; assistants bear loss.

    Raises:
        DataError: It is no list of turns with role and text.
    """
    turns = from_json_cell(turns)
    if not isinstance(turns, list | tuple) or not turns:
        raise DataError(f"expected a list of messages, got {short(turns)}")
    for number, turn in enumerate(turns, start=1):
        try:
            yield _turn(turn, tags)
        except DataError as error:
            raise DataError(f"message {number}: {error}") from error


def are_turns(value: object, tags: Tags) -> bool:
    """Whether every item of a list looks like a turn."""
    return isinstance(value, list | tuple) and all(
        isinstance(turn, Mapping) and any(role in turn for role, _ in tags.keys) for turn in value
    )


def _turn(turn: object, tags: Tags) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"expected an object, got {short(turn)}")
    role_key, content_key = next((k for k in tags.keys if k[0] in turn), tags.keys[0])
    tag = turn.get(role_key)
    if not isinstance(tag, str):
        wanted = " or ".join(f"'{role}'" for role, _ in tags.keys)
        raise DataError(f"no role ({wanted}); its keys: {', '.join(map(str, turn)) or 'none'}")
    role = tags.roles.get(tag) or _ROLES.get(tag, tag)
    # Under the key "role" unusual ones may be what the user's own template expects.
    if role not in STANDARD_ROLES and role_key != "role":
        known = ", ".join((*STANDARD_ROLES, *_ROLES, *tags.roles))
        raise DataError(f"unknown role '{tag}'; known: {known}")
    extra = {key: turn[key] for key in _EXTRAS if turn.get(key) is not None}
    content = _content(turn.get(content_key), may_lack=bool(extra.get("tool_calls")))
    # OpenAI's files mark a turn that is not to be learned with weight 0.
    return Message(role, content, role == "assistant" and turn.get("weight") != 0, extra)


def _content(content: object, *, may_lack: bool) -> str:
    """Text of a message; the parts of OpenAI's list form are joined."""
    if content is None and may_lack:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise DataError(f"content must be text (raymix trains on text alone), got {short(content)}")


def from_json_cell(value: Any) -> Any:
    """A list as it is; one that was written as JSON in a CSV or Parquet cell, read."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise DataError(f"expected JSON, got {short(value)} ({error})") from error


def short(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
