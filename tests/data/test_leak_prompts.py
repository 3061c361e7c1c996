"""Prompts of the format leak: cut by hand, in whose format answers are, and what is refused."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_rows import silent

from raymix.core.errors import ConfigError, DataError
from raymix.data.asked import make
from raymix.data.build import build
from raymix.data.leak import (
    Format,
    FormatLeak,
    bare,
    load_prompts,
    prompt_of,
    prompts_folder,
)
from raymix.data.messages import Example, Message
from raymix.data.prepare import with_prompts
from raymix.data.source import DatasetSpec
from raymix.data.store import open_table

SYSTEM, ASK, MORE = "Be brief.", "Is 2 even?", "Task: Is 3 even?"


def turns(*pairs):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return tuple(Message(roles[r], text, loss=r == "a") for r, text in pairs)


# ---- by hand ----


@pytest.mark.parametrize(
    ("shape", "yes", "no"),
    [
        (Format(("True", "not sure")), ["True", " True\n", "not sure"], ["true", "True.", ""]),
        (Format(pattern="a+|b"), ["a", "aaa ", "\tb"], ["ab", "", "a b", "bb"]),
        (Format(pattern=r"[a-z]+(?: [a-z]+){0,2}"), ["one", "one two three"], ["One", "a b c d"]),
    ],
)  # fmt: skip
def test_what_is_in_a_format(shape, yes, no):
    assert all(map(shape.fits, yes))
    assert not any(map(shape.fits, no))
    assert shape.share([*yes, *no]) == len(yes) / (len(yes) + len(no))


@pytest.mark.parametrize(
    ("given", "prompt", "answer"),
    [
        ([("u", ASK), ("a", " yes ")], [("u", ASK)], "yes"),
        ([("s", SYSTEM), ("u", ASK), ("a", "yes")], [("s", SYSTEM), ("u", ASK)], "yes"),
        (
            [("u", ASK), ("a", "yes"), ("u", MORE), ("a", "no"), ("u", "thanks")],
            [("u", ASK), ("a", "yes"), ("u", MORE)],
            "no",
        ),
    ],
)
def test_a_prompt_is_all_before_the_last_answer(given, prompt, answer):
    assert prompt_of(Example(turns(*given))) == (turns(*prompt), answer)


def test_what_has_nothing_before_its_answer_has_no_prompt():
    assert prompt_of(Example(turns(("a", "hello"), ("u", "hi")))) is None
    assert prompt_of(Example(text="once upon a time")) is None


@pytest.mark.parametrize(
    ("instruction", "prompt", "left"),
    [
        (None, [("s", SYSTEM), ("u", ASK)], [("u", ASK)]),
        (None, [("u", ASK)], None),
        (None, [("s", SYSTEM)], None),
        ("^Task: ", [("u", MORE)], [("u", "Is 3 even?")]),
        ("^Task: ", [("s", SYSTEM), ("u", MORE)], [("s", SYSTEM), ("u", "Is 3 even?")]),
        ("^Task: ", [("u", ASK)], None),
        (".*", [("u", ASK)], None),
        ("e", [("u", MORE), ("a", "e"), ("u", "eel e")], [("u", MORE), ("a", "e"), ("u", "el e")]),
        ("e", [("u", "e f"), ("t", "eel")], [("u", " f"), ("t", "eel")]),
        ("e", [("t", "eel")], None),
    ],
)
def test_a_prompt_without_its_instruction(instruction, prompt, left):
    assert bare(turns(*prompt), instruction) == (None if left is None else turns(*left))


# ---- from rows to tables ----


def chat(*pairs):
    return {"messages": [m.for_template() for m in turns(*pairs)]}


MATH = [chat(("s", SYSTEM), ("u", f"{i} plus 1?"), ("a", f"{i + 1}")) for i in range(6)]
PLAIN = [chat(("u", f"is {i} odd?"), ("a", "yes" if i % 2 else "no")) for i in range(40)]


@pytest.fixture
def made(spec, write):
    """Prepares `math`, `odd` (12 eval rows taken out of train) and `prose`; then the prompts."""

    def made(settings, prose=(), **fields):
        sets = [
            DatasetSpec(
                domain="math", path=write("m.jsonl", MATH), eval_path=write("me.jsonl", MATH[:4])
            ),
            DatasetSpec(domain="odd", path=write("o.jsonl", PLAIN), eval_split=12),
        ]
        rows = prose or [{"text": f"once upon {i}"} for i in range(8)]
        sets.append(DatasetSpec(domain="prose", path=write("p.jsonl", rows), eval_split=2))
        asked = spec(*sets, **{"max_overlap": 1.0, **fields})
        prepared = build(asked, silent)
        leak = FormatLeak(**settings)
        make(asked, leak, prepared, "key")
        found = load_prompts(prompts_folder(asked.cache(), "key"), asked.cache())
        return asked, leak, prepared, found

    return made


def texts(tokenizer_folder, path):
    from transformers import AutoTokenizer

    table = open_table(path)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return [tokenizer.decode(table.row(i)[0].tolist()) for i in range(table.rows)]


def test_prompts_are_the_templates_with_and_without_the_system_message(made, tokenizer_folder):
    *_, prompts = made({"target": "odd", "labels": ["yes", "no"], "rows": 3})
    (math,) = prompts.asked
    assert prompts.skipped == ("prose",)
    assert (math.rows, math.bare_rows, math.left_out, math.truth) == (3, 3, 0, 0.0)
    kept, without = (texts(tokenizer_folder, path) for path in (math.kept, math.bare))
    numbers = [int(re.search(r"(\d) plus", text)[1]) for text in kept]
    assert len(set(numbers)) == 3
    assert set(numbers) <= {0, 1, 2, 3}
    head, user = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n", "<|im_start|>user\n{} plus 1?"
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    assert kept == [head + user.format(i) + tail for i in numbers]
    # This template has a system message of its own.
    own = "<|im_start|>system\nYou are helpful.<|im_end|>\n"
    assert without == [own + user.format(i) + tail for i in numbers]


def test_rows_that_were_taken_out_of_train_are_asked(made, tokenizer_folder):
    _, _, prepared, prompts = made({"target": "math", "pattern": r"\d", "instruction": "^is 1"})
    (odd,) = prompts.asked
    assert odd.rows == 12
    part = next(part for part in prepared.parts if part.domain == "odd")
    rows = texts(tokenizer_folder, part.paths["eval"])
    kept = texts(tokenizer_folder, odd.kept)
    assert sorted(kept) == sorted(row[: row.index("assistant\n") + 10] for row in rows)
    # Only what begins with a 1 changes; those that do not have no bare form.
    assert odd.bare_rows == sum("is 1" in text for text in kept)
    bared = texts(tokenizer_folder, odd.bare)
    assert bared == [t.replace("is 1", "", 1) for t in kept if "is 1" in t]


def test_the_truth_is_what_of_the_true_answers_fits(made):
    *_, prompts = made({"target": "math", "pattern": r"\d|no"})
    (odd,) = prompts.asked
    assert 0 < odd.truth < 1
    assert odd.truth * 12 == pytest.approx(round(odd.truth * 12))
    assert prompts.own == 1.0
    assert prompts.told()["domains"]["odd"] == {"rows": 12, "bare_rows": 0, "truth": odd.truth}


def test_answers_end_with_the_templates_end_of_turn_or_of_text(made, tokenizer_folder):
    from transformers import AutoTokenizer

    *_, prompts = made({"target": "odd", "labels": "auto"})
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert prompts.stops == tuple(sorted(tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])))
    assert prompts.format == Format(("no", "yes"))


def test_a_prompt_that_leaves_no_room_is_passed_over(made):
    long = [chat(("u", "why " * n), ("a", "so")) for n in range(1, 9)]
    settings = {"target": "odd", "labels": "auto", "max_new_tokens": 8}
    *_, prompts = made(settings, [*long, *long[:1]], max_length=40)
    (prose,) = [asked for asked in prompts.asked if asked.domain == "prose"]
    assert prose.rows + prose.left_out == 2
    with pytest.raises(DataError, match=r"no eval row of another .* max_new_tokens 40 within"):
        made({**settings, "max_new_tokens": 40}, max_length=40)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "either labels or pattern, got neither"),
        ({"labels": ["a"], "pattern": "a"}, "either labels or pattern, got both"),
        ({"pattern": "(a"}, r"pattern\n.*is no regular expression \(missing \), .*got '\(a'"),
        ({"pattern": "a", "instruction": "["}, r"instruction\n.*is no regular expression"),
        ({"labels": []}, "must be auto or a list of labels"),
        ({"labels": ["a", " "]}, "none of them blank"),
        ({"labels": "all"}, "labels"),
        ({"pattern": "a", "rows": 0}, "greater than or equal to 1"),
        ({"pattern": "a", "max_new_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_mean_nothing(settings, said):
    with pytest.raises(ValidationError, match=said):
        FormatLeak(target="odd", **settings)


def test_a_format_that_is_none(made):
    many = [chat(("u", f"name {i}"), ("a", f"n{i}")) for i in range(110)]
    with pytest.raises(
        ConfigError, match=r"format_leak.labels: auto finds 108 different .*'prose'"
    ):
        made({"target": "prose", "labels": "auto"}, many)
    with pytest.raises(ConfigError, match=r"format_leak.pattern: fits none of the 12 .*'odd'"):
        made({"target": "odd", "pattern": "YES|NO"})
    with pytest.raises(ConfigError, match=r"format_leak.labels: fits none of the 2 .*such as 'n"):
        made({"target": "prose", "labels": ["x"]}, many)
    with pytest.raises(ConfigError, match=r"format_leak.labels: auto finds 0 different"):
        made({"target": "prose", "labels": "auto"})


# ---- the cache ----


def test_prompts_are_made_once_by_a_child_and_again_when_damaged(made):
    asked, leak, prepared, first = made({"target": "odd", "labels": "auto"})
    assert prepared.prompts is None
    prompts = with_prompts(prepared, asked, leak).prompts
    assert prompts.told() == first.told()
    path = prompts.asked[0].kept
    before = Path(path).read_bytes()
    Path(path).write_bytes(before[:-40])
    again = with_prompts(prepared, asked, leak).prompts
    assert again == prompts
    assert Path(path).read_bytes() == before
