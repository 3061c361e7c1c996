"""A reweighter inside a searcher's settings."""

from __future__ import annotations

from typing import Any

from raymix.core.codec import from_spec
from raymix.core.errors import SearchError
from raymix.core.job import Spec
from raymix.core.signals import Reweighter, Signal

REFERENCE = frozenset({Signal.REFERENCE_LOSS, Signal.EXCESS_LOSS, Signal.CLIPPED_EXCESS_LOSS})
"""Signals that only a reference model can give."""


def reweighter_of(spec: Spec, where: str) -> Reweighter[Any]:
    """The reweighter that `spec` describes.

    Raises:
        SearchError: it describes something else.
    """
    made = from_spec(spec)
    for part in ("init", "update"):
        if not callable(getattr(made, part, None)):
            raise SearchError(f"{where}: '{spec.path}' is no reweighter, it has no method {part}")
    found: Reweighter[Any] = made
    return found


def compares(reweighter: Reweighter[Any]) -> bool:
    """Whether it needs the losses of a reference model."""
    return bool(reweighter.needs & REFERENCE)
