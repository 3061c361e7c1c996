"""Masks on tokens: what bears loss decodes to the assistant's text and its end marker."""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import END, KINDS, wrapped

from raymix.data.chat import Chat, Rendered, chat_of
from raymix.data.encode import Encoder, load_tokenizer, span_mask
from raymix.data.formats import Layout, parse

MODELS = Path(__file__).parents[3] / "shared" / "models"


def stretches(tokenizer: Any, ids: Any, mask: Any) -> list[str]:
    """What each stretch of loss tokens says."""
    groups = groupby(range(len(ids)), key=lambda i: bool(mask[i]))
    return [tokenizer.decode([int(ids[i]) for i in places]) for on, places in groups if on]


def messages(*contents: str, system: str | None = None) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return {
        "messages": turns if system is None else [{"role": "system", "content": system}, *turns]
    }


TALKS = [
    messages("What is the capital of France?", "The capital of France is Paris."),
    messages("hello", "how are you?", "2 + 3", "return 5\n\nor 2 + 3"),
    messages("Écris 🦜", "voilà 🦜", "再", "見 🦜🦜"),
    messages("hello", "Paris", "hello", "Paris", system="You are helpful."),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", END)
def test_loss_tokens_decode_to_the_assistants_text(kind: str, template: str) -> None:
    tokenizer = wrapped(kind, template)
    chat = chat_of(tokenizer, None, assistant_only=True)
    talks = TALKS[:3] if template == "gemma" else TALKS
    rendered = [chat.render(parse(row, Layout())) for row in talks]
    for row, (ids, mask, cut) in zip(talks, Encoder(tokenizer, 512).encode(rendered), strict=True):
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        said = stretches(tokenizer, ids, mask)
        # Mistral and Llama 2 put a space before the answer, which is one token with its first word.
        assert [text.lstrip() for text in said] == [a + END[template] for a in answers]
        assert not cut
        assert mask[0] == 0


@pytest.mark.parametrize("template", ["chatml_marked", "llama3_marked"])
def test_masks_are_those_of_transformers(template: str) -> None:
    tokenizer = wrapped("byte_level", template)
    chat = chat_of(tokenizer, None, assistant_only=True)
    for row in TALKS:
        ((ids, mask, _),) = Encoder(tokenizer, 512).encode([chat.render(parse(row, Layout()))])
        theirs = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids.tolist() == theirs["input_ids"]
        assert mask.tolist() == theirs["assistant_masks"]


@pytest.mark.real_data
@pytest.mark.parametrize("template", [*END, None])
@pytest.mark.parametrize("model", ["lab-base-1m", "stories260K"])
def test_real_tokenizers(model: str, template: str | None) -> None:
    folder = MODELS / model
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    tokenizer = load_tokenizer(str(folder), trust_remote_code=False)
    if template is None and tokenizer.chat_template is None:
        pytest.skip(f"{model} has no chat template of its own")
    text = None if template is None else wrapped("byte_level", template).chat_template
    chat = chat_of(tokenizer, text, assistant_only=True)
    rendered = chat.render(parse(TALKS[1], Layout()))
    ((ids, mask, _),) = Encoder(tokenizer, 512).encode([rendered])
    end = tokenizer.eos_token if template is None else END[template]
    end = end.replace("</s>", tokenizer.eos_token)
    said = [text.strip(" ") for text in stretches(tokenizer, ids, mask)]
    answers = ["how are you?", "return 5\n\nor 2 + 3"]
    assert said == [a + end for a in answers]


@pytest.mark.real_data
def test_a_real_template_needs_no_generation_marks() -> None:
    folder = MODELS / "lab-base-1m"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    tokenizer = load_tokenizer(str(folder), trust_remote_code=False)
    marked = chat_of(tokenizer, None, assistant_only=True)
    own = str(marked.template)
    bare = own.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert bare != own
    for row in TALKS:
        example = parse(row, Layout())
        assert Chat(bare, marked.specials).render(example) == marked.render(example)


def test_a_long_row_loses_its_end() -> None:
    tokenizer = wrapped("byte_level", "chatml")
    chat = chat_of(tokenizer, None, assistant_only=True)
    rendered = chat.render(parse(messages("hello", "abc"), Layout()))
    ((whole, mask, _),) = Encoder(tokenizer, 512).encode([rendered])
    ((ids, short, cut),) = Encoder(tokenizer, len(whole) - 2).encode([rendered])
    assert cut
    assert ids.tolist() == whole[:-2].tolist()
    assert short.tolist() == mask[:-2].tolist()


def test_text_rows_are_learned_whole_and_end() -> None:
    tokenizer = wrapped("byte_level")
    (first, second) = Encoder(tokenizer, 512).encode(
        [Rendered("return a", whole=True), Rendered("return a</s>", whole=True)]
    )
    assert tokenizer.decode(first[0].tolist()) == "return a</s>"
    assert first[0].tolist() == second[0].tolist()
    assert first[1].tolist() == [0] + [1] * (len(first[0]) - 1)


def test_templated_and_plain_text_keep_their_order() -> None:
    tokenizer = wrapped("byte_level", "chatml")
    texts = [Rendered("one", ()), Rendered("two", whole=True), Rendered("three", ())]
    encoded = Encoder(tokenizer, 512).encode(texts)
    assert [tokenizer.decode(ids.tolist()) for ids, _, _ in encoded] == ["one", "two</s>", "three"]


class TestSpanMask:
    """Worked by hand: `ab cd|ef` where the span is `cd|`."""

    def test_a_token_with_a_character_of_the_span_counts(self) -> None:
        offsets = np.array([[0, 2], [2, 5], [5, 6], [6, 8]])
        assert span_mask(offsets, [(3, 6)]).tolist() == [0, 1, 1, 0]

    def test_bytes_of_one_character_all_count(self) -> None:
        offsets = np.array([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]])
        assert span_mask(offsets, [(1, 2)]).tolist() == [0, 1, 1, 1, 0]

    def test_tokens_without_characters_belong_to_their_gap(self) -> None:
        # "a", a trimmed "\n" inside the span, "b", a trimmed "\n" behind the span, "c"
        offsets = np.array([[0, 1], [2, 2], [2, 3], [4, 4], [4, 5]])
        assert span_mask(offsets, [(0, 3)]).tolist() == [1, 1, 1, 0, 0]
        assert span_mask(offsets, [(2, 3)]).tolist() == [0, 0, 1, 0, 0]
        assert span_mask(offsets, [(4, 5)]).tolist() == [0, 0, 0, 0, 1]

    def test_no_tokens(self) -> None:
        assert span_mask(np.zeros((0, 2), dtype=np.int64), [(0, 1)]).tolist() == []

    @settings(deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 4), min_size=1, max_size=12),
        ends=st.lists(st.integers(0, 48), min_size=2, max_size=6),
    )
    def test_law_it_is_the_overlap(self, lengths: list[int], ends: list[int]) -> None:
        edges = np.cumsum([0, *lengths])
        offsets = np.array(list(pairwise(edges.tolist())))
        spans = [(a, b) for a, b in pairwise(sorted(ends)) if a < b][::2]
        expected = [any(a < stop and start < b for a, b in spans) for start, stop in offsets]
        assert span_mask(offsets, spans).tolist() == [int(e) for e in expected]
