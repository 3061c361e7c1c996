"""Chat templates: from an example to text, and to the parts of the text that bear loss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from raymix.core.errors import DataError
from raymix.core.job import Json
from raymix.data.messages import Example, Message
from raymix.data.spans import Span, Turn, assistant_spans, sentinel, skeleton

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")

NO_TEMPLATE = (
    "the tokenizer '{tokenizer}' has no chat template; set chat_template to a Jinja file "
    "(or use rows of type text)"
)


@dataclass(frozen=True)
class Rendered:
    """Text of an example and the `spans` of it that bear loss, None: all of it.

    `whole`: the text is no conversation, so the tokenizer adds its own begin and end tokens.
    """

    text: str
    spans: tuple[Span, ...] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Chat:
    """Renders examples. `template` None: there is none; `specials`: names such as `bos_token`.

    `tokenizer` is named in errors only. `assistant_only` False: all of a conversation bears loss.
    """

    template: str | None
    specials: Mapping[str, Json] = field(default_factory=dict)
    assistant_only: bool = True
    tokenizer: str = ""

    def render(self, example: Example) -> Rendered:
        """The text of `example` and what of it is learned.

        Raises:
            DataError: There is no template, it fails, or the assistant's text cannot be found.
        """
        if example.text is not None:
            return Rendered(example.text, whole=True)
        messages = [message.for_template() for message in example.messages]
        text, marked = self._render(messages, example.tools)
        if not self.assistant_only:
            return Rendered(text)
        spans = marked if self.marked else self._search(example, messages, text)
        learned = [m.loss for m in example.messages if m.role == "assistant"]
        if len(spans) != len(learned):
            if not all(learned) or not spans:
                raise DataError(
                    f"the chat template marks {len(spans)} parts as generated, but there are "
                    f"{len(learned)} assistant turns"
                )
            return Rendered(text, tuple(spans))
        return Rendered(text, tuple(s for s, keep in zip(spans, learned, strict=True) if keep))

    def prompt(self, messages: Sequence[Message], tools: Json = None) -> str:
        """The text of `messages` and of the header of the answer that is to follow.

        Raises:
            DataError: There is no template, or it fails.
        """
        return self._render([m.for_template() for m in messages], tools, prompt=True)[0]

    @cached_property
    def marked(self) -> bool:
        """Whether the template says itself which text is the assistant's."""
        return self.template is not None and _MARKED.search(self.template) is not None

    @cached_property
    def header(self) -> str:
        """What the template puts at the end of a prompt, before the assistant's text."""
        question = [{"role": "user", "content": "question"}]
        try:
            plain, _ = self._render(question, None)
            prompt, _ = self._render(question, None, prompt=True)
        except DataError:
            return ""  # The template wants other turns: its header is then not looked for.
        return prompt[len(plain) :] if prompt.startswith(plain) else ""

    def _search(self, example: Example, messages: list[dict[str, Json]], text: str) -> list[Span]:
        """The assistant's spans under a template that does not mark them."""
        places = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
        blanked = [dict(message) for message in messages]
        for index, place in enumerate(places):
            blanked[place]["content"] = sentinel(index)
        seen, _ = self._render(blanked, example.tools)
        frame = skeleton(seen, len(places), self.header)
        ending = frame.pieces[-1]
        if places[-1] + 1 < len(messages):
            # Something follows the last answer; what the template writes when nothing does?
            short, _ = self._render(blanked[: places[-1] + 1], example.tools)
            ending = skeleton(short, len(places), self.header).pieces[-1]
        answers = (example.messages[place] for place in places)
        turns = [Turn(a.content, "tool_calls" in a.extra) for a in answers]
        return assistant_spans(text, frame, turns, ending)

    def _render(
        self, messages: list[dict[str, Json]], tools: Json, *, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The text, and the spans that the template marks (none where it marks nothing)."""
        from transformers.utils.chat_template_utils import render_jinja_template

        if self.template is None:
            raise DataError(NO_TEMPLATE.format(tokenizer=self.tokenizer))
        try:
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=self.marked,
                add_generation_prompt=prompt,
                **self.specials,
            )
        except Exception as error:
            # A template is a program of its own; whatever it raises, the user must hear it.
            raise DataError(f"the chat template fails: {error}") from error
        return texts[0], [(int(a), int(b)) for a, b in spans[0]] if self.marked else []


def chat_of(tokenizer: Any, template: str | None, *, assistant_only: bool) -> Chat:
    """The renderer for a tokenizer's own template, or for `template` instead of it."""
    if template is None:
        own = tokenizer.chat_template
        # A tokenizer may have several by name; the one for plain conversations is "default".
        template = own.get("default") if isinstance(own, dict) else own
    specials = dict(tokenizer.special_tokens_map)
    return Chat(template, specials, assistant_only, tokenizer.name_or_path)
