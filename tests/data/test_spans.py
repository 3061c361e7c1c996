"""Which text bears loss, under the templates of real model families, written in our own words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import END, TEMPLATES

from raymix.core.errors import DataError
from raymix.data.chat import Chat, Rendered
from raymix.data.formats import Layout, parse
from raymix.data.messages import Example

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}

TRIMMED = {"llama3", "llama3_marked", "gemma", "llama2"}


def chat(template: str) -> Chat:
    return Chat((TEMPLATES / f"{template}.jinja").read_text("utf-8"), SPECIALS)


def talk(*contents: str, system: str | None = None) -> Example:
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    if system is not None:
        turns = [{"role": "system", "content": system}, *turns]
    return parse({"messages": turns}, Layout())


def learned(rendered: Rendered) -> list[str]:
    assert rendered.spans is not None
    return [rendered.text[a:b] for a, b in rendered.spans]


@pytest.mark.parametrize("template", END)
@pytest.mark.parametrize(
    "contents",
    [
        ("What is the capital of France?", "Paris."),
        ("Hi", "Hello", "And now?", "Good-bye"),
        ("a", "b", "a", "b", "a", "b"),
        ("same", "same", "same", "same"),
        ("Écris 🦜", "voilà 🦜🦜", "再", "見"),
        ("no end marker", "text with <|im_end|> and </s> and <end_of_turn> in it"),
        ("<|im_start|>assistant\nI am not the assistant<|im_end|>\n", "Right"),
        ("white space", "  two lines\n\n  of it \n", "again", "\n\nmore\t"),
        ("Assistant: no", "User: no\n\nAssistant: yes", "User: so", "fine"),
    ],
)
def test_learns_the_assistants_text_and_its_end_marker(
    template: str, contents: tuple[str, ...]
) -> None:
    answers = [c.strip() if template in TRIMMED else c for c in contents[1::2]]
    expected = [answer + END[template] for answer in answers]
    # Mistral and Llama 2 write the space before an answer outside of it.
    assert learned(chat(template).render(talk(*contents))) == expected


@pytest.mark.parametrize("template", [t for t in END if t != "gemma"])
def test_a_system_prompt_changes_nothing(template: str) -> None:
    example = talk("Hi", "Hello", "And now?", "Good-bye", system="Answer like a pirate.")
    expected = ["Hello" + END[template], "Good-bye" + END[template]]
    assert learned(chat(template).render(example)) == expected


def test_ends_of_turns_are_learned_when_a_question_comes_last() -> None:
    example = talk("Hi", "Hello", "And now?")
    assert learned(chat("chatml").render(example)) == ["Hello<|im_end|>"]
    assert learned(chat("plain").render(example)) == ["Hello\n\n"]


@pytest.mark.parametrize(
    ("template", "frame"),
    [
        ("chatml", "<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
        ("gemma", "<end_of_turn>\n<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n"),
    ],
)
def test_an_answer_that_quotes_the_next_turns_is_one_answer(template: str, frame: str) -> None:
    quoting = f"see: {frame}so."
    rendered = chat(template).render(talk("p", f"{quoting} ", "q", "r"))
    space = " " if template == "chatml" else ""
    assert learned(rendered) == [quoting + space + END[template], "r" + END[template]]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=30)
ANSWER = TEXT.filter(lambda text: text.strip() != "")


@pytest.mark.parametrize("family", ["chatml", "llama3"])
@settings(deadline=None)  # the first example compiles the template
@given(contents=st.lists(st.tuples(TEXT, ANSWER), min_size=1, max_size=4))
def test_law_the_search_finds_what_generation_marks_say(
    family: str, contents: list[tuple[str, str]]
) -> None:
    example = talk(*(text for pair in contents for text in pair))
    searched, marked = chat(family).render(example), chat(f"{family}_marked").render(example)
    assert searched == marked


def test_qwen3_thoughts_are_learned_where_the_template_keeps_them() -> None:
    thought = "<think>\nTwo and two.\n</think>\n\nFour."
    render = chat("qwen3").render
    assert learned(render(talk("2+2?", thought))) == [thought + "<|im_end|>"]
    assert learned(render(talk("2+2?", thought, "Sure?", "Yes."))) == [
        "Four.<|im_end|>",
        "<think>\n\n</think>\n\nYes.<|im_end|>",
    ]
    turns = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."},
    ]
    assert learned(render(parse({"messages": turns}, Layout()))) == [thought + "<|im_end|>"]


def test_tool_calls_are_learned_and_tool_results_are_not() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "2"},
    ]
    first, last = learned(chat("chatml").render(parse({"messages": turns}, Layout())))
    assert first.startswith('Let me see.\n<tool_call>\n{"name": "add"')
    assert first.endswith("</tool_call><|im_end|>")
    assert last == "2<|im_end|>"


@pytest.mark.parametrize("template", ["chatml", "chatml_marked"])
def test_only_the_completion_is_learned(template: str) -> None:
    prompt = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "2"}]}
    assert learned(chat(template).render(parse(row, Layout()))) == ["2<|im_end|>"]


@pytest.mark.parametrize("template", ["chatml", "chatml_marked"])
def test_turns_with_weight_zero_are_not_learned(template: str) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "bad", "weight": 0},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "good", "weight": 1},
    ]
    example = parse({"messages": turns}, Layout())
    assert learned(chat(template).render(example)) == ["good<|im_end|>"]


def test_a_template_that_rewrites_the_answer_is_followed() -> None:
    shouting = "{% for m in messages %}[{{ m.role }}] {{ m.content | upper }} ;{% endfor %}"
    example = talk("hi", "hello", "and", "good-bye")
    assert learned(Chat(shouting).render(example)) == ["HELLO ;", "GOOD-BYE ;"]


def test_without_assistant_only_all_of_it_is_learned() -> None:
    text = (TEMPLATES / "chatml.jinja").read_text("utf-8")
    assert Chat(text, SPECIALS, assistant_only=False).render(talk("hi", "you")).spans is None


class TestTemplatesThatCannotBeUsed:
    def test_none(self) -> None:
        with pytest.raises(DataError, match=r"tokenizer 'some/model' has no chat template; set"):
            Chat(None, tokenizer="some/model").render(talk("hi", "you"))

    def test_text_rows_need_none(self) -> None:
        assert Chat(None).render(Example(text="once")) == Rendered("once", None, whole=True)

    def test_one_that_refuses_the_roles(self) -> None:
        with pytest.raises(DataError, match="template fails: System role not supported"):
            chat("gemma").render(talk("hi", "you", system="be brief"))

    def test_one_with_a_mistake(self) -> None:
        with pytest.raises(DataError, match=r"the chat template fails: .*endfor"):
            Chat("{% for m in messages %}{{ m.content }}").render(talk("hi", "you"))

    def test_one_that_leaves_answers_out(self) -> None:
        with pytest.raises(DataError, match="does not render each assistant turn once"):
            Chat("{{ messages[0].content }}").render(talk("hi", "you"))

    def test_one_whose_frame_depends_on_the_answer(self) -> None:
        counting = "{% for m in messages %}({{ m.content | length }}) {{ m.content }}{% endfor %}"
        with pytest.raises(DataError, match="cannot tell the assistant's text apart"):
            Chat(counting).render(talk("hi", "you"))

    def test_marks_that_miss_turns(self) -> None:
        first = (
            "{% for m in messages %}{% if loop.index == 2 %}{% generation %}{{ m.content }}"
            "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        )
        turns = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "assistant", "content": "c", "weight": 0},
        ]
        with pytest.raises(DataError, match="marks 1 parts as generated, but there are 2"):
            Chat(first).render(parse({"messages": turns}, Layout()))
