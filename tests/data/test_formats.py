"""Every row format means the same conversation, told by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raymix.core.errors import ConfigError, DataError
from raymix.data.formats import Layout, canonical_type, parse
from raymix.data.messages import Example, Message

USER = Message("user", "2+2?")
ASSISTANT = Message("assistant", "4", loss=True)
SYSTEM = Message("system", "Be brief.")

ROLES = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]

SAME: list[dict[str, Any]] = [
    {"messages": ROLES},
    {"messages": json.dumps(ROLES)},
    {"messages": SHAREGPT, "source": "x"},
    {"messages": [{**ROLES[0], "name": None}, {**ROLES[1], "tool_calls": None}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, ROLES[1]]},
    {"conversations": SHAREGPT},
    {"conversations": json.dumps(SHAREGPT), "system": ""},
    {"conversations": ROLES},
    {"prompt": "2+2?", "completion": "4"},
    {"prompt": ROLES[:1], "completion": ROLES[1:]},
    {"prompt": json.dumps(ROLES[:1]), "completion": json.dumps(ROLES[1:])},
    {"prompt": ROLES[:1], "completion": "4"},
    {"instruction": "2+2?", "output": "4"},
    {"instruction": "2+2?", "input": "", "output": "4"},
    {"instruction": "2+2?", "input": None, "output": "4", "history": None, "system": None},
    {"instruction": "", "input": "2+2?", "output": "4", "history": []},
]


@pytest.mark.parametrize("row", SAME)
def test_all_of_these_are_one_conversation(row: dict[str, Any]) -> None:
    assert parse(row, Layout()) == Example((USER, ASSISTANT))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "Be brief."}, *ROLES]},
        {"messages": ROLES, "system": "Be brief."},
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]},
        {"conversations": SHAREGPT, "system": "Be brief."},
        {"instruction": "2+2?", "output": "4", "system": "Be brief."},
        {"prompt": "2+2?", "completion": "4", "system": "Be brief."},
    ],
)
def test_with_a_system_prompt(row: dict[str, Any]) -> None:
    assert parse(row, Layout()) == Example((SYSTEM, USER, ASSISTANT))


def test_alpaca_joins_instruction_and_input_and_learns_the_history() -> None:
    row = {"instruction": "Add.", "input": "2 2", "output": "4", "history": [["1+1?", "2"]]}
    assert parse(row, Layout()).messages == (
        Message("user", "1+1?"),
        Message("assistant", "2", loss=True),
        Message("user", "Add.\n2 2"),
        ASSISTANT,
    )


def test_answers_inside_a_prompt_are_not_learned() -> None:
    prompt = [*ROLES, {"role": "user", "content": "3+3?"}]
    messages = parse({"prompt": prompt, "completion": "6"}, Layout()).messages
    assert [m.loss for m in messages] == [False, False, False, True]


@pytest.mark.parametrize("prompt", ['[{"id": 1}]', "[{", "[1, 2]", "[x for x in y]"])
def test_a_prompt_that_looks_like_a_list_is_still_a_prompt(prompt: str) -> None:
    assert parse({"prompt": prompt, "completion": "4"}, Layout()).messages[0].content == prompt


def test_text() -> None:
    assert parse({"text": " once "}, Layout()) == Example(text=" once ")


def test_tools_go_to_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert parse({"messages": ROLES, "tools": json.dumps(tools)}, Layout()).tools == tools
    assert parse({"messages": ROLES, "tools": tools}, Layout()).tools == tools


def test_columns_rename() -> None:
    alpaca = Layout(columns={"instruction": "question", "output": "answer"})
    assert parse({"question": "2+2?", "answer": "4"}, alpaca) == Example((USER, ASSISTANT))
    chat = Layout(columns={"messages": "chat", "role": "who", "content": "says"})
    turns = [{"who": "user", "says": "2+2?"}, {"who": "assistant", "says": "4"}]
    assert parse({"chat": turns}, chat) == Example((USER, ASSISTANT))


def test_an_empty_column_is_not_used() -> None:
    row = {"instruction": "2+2?", "input": "unused", "output": "4", "system": "unused"}
    layout = Layout("alpaca", {"input": "", "system": ""})
    assert parse(row, layout) == Example((USER, ASSISTANT))


def test_a_stated_type_wins_over_the_keys() -> None:
    row = {"messages": ROLES, "text": "once"}
    assert parse(row, Layout("text")) == Example(text="once")
    assert parse(row, Layout()).messages == (USER, ASSISTANT)


def test_roles_by_other_names() -> None:
    turns = [{"from": "Q", "value": "2+2?"}, {"from": "A", "value": "4"}]
    layout = Layout("sharegpt", roles={"Q": "user", "A": "assistant"})
    assert parse({"conversations": turns}, layout) == Example((USER, ASSISTANT))


def test_names_that_others_use() -> None:
    assert canonical_type("chat_template") == "messages"
    assert canonical_type("prompt+completion") == "prompt_completion"


def test_content_hashes() -> None:
    def hashed(row: dict[str, Any]) -> int:
        return parse(row, Layout()).content_hash()

    hashes = {hashed(row) for row in SAME}
    assert len(hashes) == 1
    assert 0 <= hashes.pop() < 2**64
    padded = {"prompt": " 2+2?\n", "completion": "4 "}
    assert hashed(padded) == hashed(SAME[0])
    assert hashed({"prompt": "2+2?", "completion": "5"}) != hashed(SAME[0])
    assert hashed({"text": "2+2?"}) != hashed(SAME[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"foo": 1, "bar": 2}, "in no known format; its keys: foo, bar; the formats: messages"),
        ({}, "in no known format; its keys: none"),
        ({"prompt": "2+2?"}, "in no known format; its keys: prompt"),
        ({"messages": ROLES[:1]}, "no assistant turn to learn from; the roles are user"),
        ({"messages": []}, r"expected a list of messages, got \[\]"),
        ({"messages": [{**ROLES[1], "weight": 0}]}, "no assistant turn to learn from"),
        ({"prompt": ROLES, "completion": ROLES[:1]}, "no assistant turn to learn from"),
        ({"prompt": "2+2?", "completion": " \n"}, "the assistant's turn is empty"),
        ({"instruction": "2+2?", "output": ""}, "the assistant's turn is empty"),
        ({"instruction": 4, "output": "x"}, "expected a string, got 4"),
        ({"text": "  "}, "the text is empty"),
        ({"text": 5}, "expected a string, got 5"),
        ({"messages": "no json"}, "expected JSON, got 'no json'"),
        ({"messages": ["hi"]}, "message 1: expected an object, got 'hi'"),
        ({"messages": [{"content": "hi"}]}, r"message 1: no role \('role' or 'from'\); its keys"),
        ({"messages": [ROLES[0], {"role": "assistant"}]}, "message 2: content must be text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "content must be text .raymix trains on text alone.",
        ),
        (
            {"conversations": [{"from": "alien", "value": "hi"}]},
            "message 1: unknown role 'alien'; known: system, developer, user",
        ),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "history must be pairs"),
    ],
)
def test_rows_that_teach_nothing(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(row, Layout())


def test_a_stated_type_names_the_missing_part() -> None:
    with pytest.raises(DataError, match="of type alpaca needs 'output'; this one has instruction"):
        parse({"instruction": "x"}, Layout("alpaca"))


def test_unknown_type_and_part() -> None:
    with pytest.raises(ConfigError, match=r"unknown type 'alpacca' \(did you mean 'alpaca'\?\)"):
        canonical_type("alpacca")
    with pytest.raises(ConfigError, match=r"'instuction' is no part of alpaca \(did you mean"):
        Layout("alpaca", {"instuction": "x"})
