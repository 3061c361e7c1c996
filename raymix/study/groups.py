"""Methods that run several times in one study: which runs belong together, what each chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymix.core.trial import RANKED, History, Role, Trial


@dataclass(frozen=True)
class Member:
    """Which run of which method a study's method `tpe#1` is: number `repeat` of the group `tpe`.

    `repeat` is added to the seed of everything that it asks for.
    """

    group: str
    repeat: int = 0


Members = Mapping[str, Member]
"""By name of the method."""


def runs_of(members: Members) -> dict[str, tuple[str, ...]]:
    """Names of the methods of each group, in the order of their repeats."""
    found: dict[str, list[str]] = {}
    for name in sorted(members, key=lambda name: members[name].repeat):
        found.setdefault(members[name].group, []).append(name)
    return {
        group: tuple(found[group]) for group in dict.fromkeys(m.group for m in members.values())
    }


def chosen(history: History, method: str) -> Trial | None:
    """What a method came to: its latest finished FINAL trial, else its best ranked one.

    None: none of its trainings came to a score.
    """
    own = [trial for trial in history.finished if trial.method == method]
    finals = [trial for trial in own if trial.role is Role.FINAL]
    if finals:
        return finals[-1]
    ranked = (t for t in history.ranking() if t.method == method and t.role in RANKED)
    return next(ranked, None)
