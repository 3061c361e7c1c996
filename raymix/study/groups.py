"""Methods that run several times in one study: which runs belong together, what each chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

    A control (`kind` "control" or a `width` below 0 in its note) is never chosen: it is trained to
    compare with. A method that goes on from every step, and does not keep the best, came to its
    latest finished round. None: none of its trainings came to a score.
    """
    own = [trial for trial in history.finished if trial.method == method]
    finals = [trial for trial in own if trial.role is Role.FINAL]
    if finals:
        return finals[-1]
    ranked = [
        t
        for t in history.ranking()
        if t.method == method and t.role in RANKED and not _is_control(_note(t))
    ]
    if _keeps_latest(ranked):
        last = max(_note(t)["round"] for t in ranked)
        ranked = [t for t in ranked if _note(t)["round"] == last]
    return next(iter(ranked), None)


def _is_control(note: Mapping[str, Any]) -> bool:
    width = note.get("width", 1.0)
    return note.get("kind") == "control" or (isinstance(width, int | float) and width < 0)


def _keeps_latest(trials: Sequence[Trial]) -> bool:
    """Whether the latest of these steps is the choice: their notes say so in `keep_best`.

    Notes that were written before there was that key do not: there it is so where the steps differ
    in size, as scores of different sizes cannot be ranked.
    """
    notes = [_note(trial) for trial in trials]
    if not notes or not all(n.get("kind") in ("start", "step") and "round" in n for n in notes):
        return False
    told = [note["keep_best"] for note in notes if "keep_best" in note]
    if told:
        return not all(told)
    return len({trial.proposal.budget for trial in trials}) > 1


def _note(trial: Trial) -> Mapping[str, Any]:
    note = trial.proposal.note
    return note if isinstance(note, Mapping) else {}
