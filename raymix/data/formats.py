"""Row formats: the forms in which people write examples, and the example that a row means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from raymix.core.errors import ConfigError, DataError, nearest
from raymix.data.messages import (
    Example,
    Message,
    Row,
    Tags,
    are_turns,
    from_json_cell,
    read_turns,
    short,
)

_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Parts that a row of each format must have; a row is of the first format that it fits."""

_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "messages": ("role", "content", "system", "tools"),
    "sharegpt": ("from", "value", "system", "tools"),
    "prompt_completion": ("system", "tools"),
    "alpaca": ("input", "system", "history", "tools"),
    "text": (),
}

_ALIASES = {
    "chat_template": "messages",
    "openai": "messages",
    "prompt-completion": "prompt_completion",
    "prompt+completion": "prompt_completion",
}
"""What other trainers call the same format."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a domain are written.

    `type` None: told by the keys of each row. `columns`: raymix's name of a part, to the row's own
    name of it (empty: the rows' column of that name is something else). `roles`: names of roles
    beside the usual ones.
    """

    type: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse parts that no format has."""
        formats = list(_REQUIRED) if self.type is None else [self.type]
        known = {part for kind in formats for part in (*_REQUIRED[kind], *_OPTIONAL[kind])}
        for part in self.columns:
            if part not in known:
                raise ConfigError(
                    f"columns: '{part}' is no part of {self.type or 'any format'}"
                    f"{nearest(part, known)}; the parts are {', '.join(sorted(known))}"
                )

    def column(self, part: str) -> str:
        """The row's own name for `part`."""
        return self.columns.get(part, part)

    def tags(self) -> Tags:
        """The row's own names inside a turn."""
        pairs = (("role", "content"), ("from", "value"))
        named = [p for p in pairs if p[0] in self.columns or p[1] in self.columns] or pairs
        return Tags(tuple((self.column(r), self.column(c)) for r, c in named), self.roles)


def canonical_type(name: str) -> str:
    """Our name of a row format.

    Raises:
        ConfigError: There is no such format.
    """
    kind = _ALIASES.get(name, name)
    if kind not in _REQUIRED:
        hint = nearest(name, [*_REQUIRED, *_ALIASES])
        raise ConfigError(f"unknown type '{name}'{hint}; the types are {', '.join(_REQUIRED)}")
    return kind


def parse(row: Row, layout: Layout) -> Example:
    """The example that `row` means; it has something to learn.

    Raises:
        DataError: The row is in no known format or teaches nothing. The caller adds the place.
    """
    kind = layout.type or _detect(row, layout)
    for part in _REQUIRED[kind]:
        if row.get(layout.column(part)) is None:
            raise DataError(
                f"a row of type {kind} needs '{layout.column(part)}'; this one has {_keys(row)}"
            )
    if kind == "text":
        return _text(row[layout.column("text")])
    if kind == "alpaca":
        messages = _alpaca(row, layout)
    elif kind == "prompt_completion":
        messages = _prompt_completion(row, layout)
    else:
        messages = list(read_turns(row[layout.column(_REQUIRED[kind][0])], layout.tags()))
    system = row.get(layout.column("system"))
    if isinstance(system, str) and system.strip() and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    _check(messages)
    return Example(tuple(messages), tools=from_json_cell(row.get(layout.column("tools"))) or None)


def _detect(row: Row, layout: Layout) -> str:
    for kind, parts in _REQUIRED.items():
        if all(row.get(layout.column(part)) is not None for part in parts):
            return kind
    formats = ", ".join(
        f"{kind} ({' + '.join(layout.column(part) for part in parts)})"
        for kind, parts in _REQUIRED.items()
    )
    raise DataError(
        f"this row is in no known format; its keys: {_keys(row)}; the formats: {formats}. Where "
        "only the names differ, set columns"
    )


def _keys(row: Row) -> str:
    return ", ".join(str(key) for key in row) or "none"


def _text(text: object) -> Example:
    if not _string(text).strip():
        raise DataError("the text is empty")
    return Example(text=_string(text))


def _alpaca(row: Row, layout: Layout) -> list[Message]:
    """Instruction, then input on the next line (as LLaMA-Factory); old turns are learned too."""
    messages = []
    for pair in from_json_cell(row.get(layout.column("history"))) or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"history must be pairs of question and answer, got {short(pair)}")
        messages += [_user(pair[0]), _assistant(pair[1])]
    question = _string(row[layout.column("instruction")])
    more = _string(row.get(layout.column("input")) or "")
    parts = [part for part in (question, more) if part.strip()]
    return [*messages, _user("\n".join(parts)), _assistant(row[layout.column("output")])]


def _prompt_completion(row: Row, layout: Layout) -> list[Message]:
    """Only the completion is learned, also where the prompt holds answers of its own."""
    prompt, completion = row[layout.column("prompt")], row[layout.column("completion")]
    asked = _turns_in(prompt) or [_user(prompt)]
    return [
        *(replace(m, loss=False) for m in asked),
        *(_turns_in(completion) or [_assistant(completion)]),
    ]


def _turns_in(value: object) -> list[Message]:
    """The messages in a prompt or completion; none where it is a plain string."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = from_json_cell(value)
        except DataError:
            return []
        if not are_turns(value, Tags()):
            return []
    return [] if isinstance(value, str) else list(read_turns(value, Tags()))


def _user(content: object) -> Message:
    return Message("user", _string(content))


def _assistant(content: object) -> Message:
    return Message("assistant", _string(content), loss=True)


def _check(messages: list[Message]) -> None:
    answers = [message for message in messages if message.role == "assistant"]
    if not any(message.loss for message in answers):
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"no assistant turn to learn from; the roles are {roles}")
    if any(not message.content.strip() and not message.extra for message in answers):
        raise DataError("the assistant's turn is empty")


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise DataError(f"expected a string, got {short(value)}")
    return value
