"""Finds the assistant's text in a rendered conversation whose template does not mark it.

The conversation is rendered twice: as it is, and with each assistant text replaced by a sentinel.
What stands around the sentinels is the template's own text and the other turns, the same in both
renderings; so the true rendering is cut at those pieces, and what lies between them is the
assistant's. This needs no knowledge of any template, and holds where prefix differencing does not:
for templates that treat the last turn or the system prompt differently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raymix.core.errors import DataError

Span = tuple[int, int]
"""First character, and the one after the last."""

_SENTINEL = re.compile(r"QZX(\d{5})XZQ")


def sentinel(index: int) -> str:
    """Stands for the text of assistant turn `index`."""
    return f"QZX{index:05d}XZQ"


@dataclass(frozen=True)
class Turn:
    """One assistant turn: its text as written, and whether tool calls are rendered after it."""

    content: str
    calls: bool = False


@dataclass(frozen=True)
class Skeleton:
    """What a template puts around the assistant's texts.

    `pieces` [turns + 1]: before the first text, between texts, and after the last.
    `openings` [turns]: what stands between the assistant's header and its text, mostly nothing
    (Qwen3's empty thought): the model writes that, too.
    """

    pieces: tuple[str, ...]
    openings: tuple[str, ...]


def skeleton(rendered: str, turns: int, header: str) -> Skeleton:
    """Cut a rendering that has sentinels; `header` is what the template ends a prompt with.

    Raises:
        DataError: The template leaves out, repeats or reorders the assistant's texts.
    """
    found = [int(match[1]) for match in _SENTINEL.finditer(rendered)]
    if found != list(range(turns)):
        raise DataError("the chat template does not render each assistant turn once, in order")
    # Splitting at a pattern with a group gives piece, index, piece, index, ..., piece.
    pieces = _SENTINEL.split(rendered)[::2]
    openings = []
    for index in range(turns):
        before, found_header, after = pieces[index].rpartition(header) if header else ("", "", "")
        openings.append(after if found_header else "")
        if found_header:
            pieces[index] = before + found_header
    return Skeleton(tuple(pieces), tuple(openings))


def assistant_spans(
    rendered: str, frame: Skeleton, turns: Sequence[Turn], ending: str
) -> list[Span]:
    """Where each turn's text stands in the true rendering, its end marker included.

    `ending` is what the template writes after an assistant's text when nothing follows.

    Raises:
        DataError: The two renderings differ outside the assistant's texts.
    """
    spans = []
    position = 0
    for index, turn in enumerate(turns):
        start = position + len(frame.pieces[index])
        if not rendered.startswith(frame.pieces[index], position):
            raise _unlike()
        stop = _stop(rendered, start, frame, index, turn)
        spans.append((start, stop + _marker(frame.pieces[index + 1], ending, calls=turn.calls)))
        position = stop
    if rendered[position:] != frame.pieces[-1]:
        raise _unlike()
    return spans


def _stop(rendered: str, start: int, frame: Skeleton, index: int, turn: Turn) -> int:
    """Where the text of a turn ends, its end marker not included."""
    after, last = frame.pieces[index + 1], index + 1 == len(frame.openings)
    text = turn.content
    for form in (text, text.strip()):
        stop = start + len(frame.openings[index]) + len(form)
        if rendered.startswith(frame.openings[index] + form, start) and (
            rendered[stop:] == after if last else rendered.startswith(after, stop)
        ):
            return stop
    # The template changed the text (Qwen3 drops old thoughts): all up to the next piece is it.
    stop = len(rendered) - len(after) if last else rendered.find(after, start)
    if stop < start or not rendered.startswith(after, stop):
        raise _unlike()
    return stop


def _marker(after: str, ending: str, *, calls: bool) -> int:
    """How many characters of `after` say that the turn is over.

    White space behind the marker is not learned: generation stops before it. Where white space is
    all there is, it is the marker.
    """
    marker = ending.rstrip() or ending
    place = after.find(marker) if calls else 0
    return place + len(marker) if place >= 0 and after.startswith(marker, place) else 0


def _unlike() -> DataError:
    return DataError(
        "cannot tell the assistant's text apart in what the chat template renders; mark it in the "
        "template with {% generation %} ... {% endgeneration %}"
    )
