"""Rows that differ, and the types of this folder's fixtures."""

from __future__ import annotations

from collections.abc import Callable

from raymix.data.source import DataSpec

Write = Callable[..., str]
Spec = Callable[..., DataSpec]


def rows(count: int, start: int = 0, word: str = "plus") -> list[dict[str, str]]:
    """Different prompt and completion rows."""
    numbers = range(start, start + count)
    return [{"prompt": f"{i} {word} 1?", "completion": f"{i + 1}"} for i in numbers]


def silent(domain: str, split: str, read: int) -> None:
    """Progress that nobody watches."""
