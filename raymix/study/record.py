"""What a history file says: events in, trials out. Live and resumed studies share the code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from raymix.core.codec import decode, encode
from raymix.core.errors import MixtureError, StudyError
from raymix.core.job import Json, Point, Spent, TrainResult
from raymix.core.trial import History, Proposal, Trial
from raymix.storage.place import Where
from raymix.study.groups import Member
from raymix.study.plan import Confirm
from raymix.study.store import Event, file_of, read_events


class Record:
    """The state of a study as its events tell it; `apply` is the only thing that changes it.

    `attempts` counts how often a trial was launched again, `failures` how often it failed without
    a result, `points` holds what it reported so far, by step; nothing once it was told, as its
    result has the curve.
    """

    def __init__(self) -> None:
        self.header: Event = {}
        self.trials: dict[int, Trial] = {}
        self.attempts: dict[int, int] = {}
        self.failures: dict[int, int] = {}
        self.points: dict[int, dict[int, Point]] = {}
        self._words: dict[str, str] = {}

    @property
    def history(self) -> History:
        """All trials in the order in which they were asked."""
        base = self.trials[0].result if self.trials else None
        return History(tuple(self.trials.values()), "", base)

    @property
    def begun(self) -> bool:
        """Whether anything is known: a trial was told."""
        return any(not trial.pending for trial in self.trials.values())

    @property
    def members(self) -> dict[str, Member]:
        """Group and repeat of each method; a study written before there were any has none."""
        told = self.header.get("members")
        if told is None:
            return {name: Member(name) for name in self.header.get("methods", {})}
        return {name: decode(Member, member) for name, member in told.items()}

    @property
    def confirm(self) -> Confirm:
        """What is trained again; a study written before it was told has confirmed its best."""
        return decode(Confirm, self.header.get("confirm", {}))

    @property
    def bill(self) -> float | None:
        """Units that each method may spend; None: no limit."""
        found = self.header.get("bill")
        return None if found is None else float(found)

    @property
    def pending(self) -> tuple[int, ...]:
        """Numbers of the trials that were asked and not told."""
        return tuple(number for number, trial in self.trials.items() if trial.pending)

    def apply(self, event: Event) -> None:
        """Take in one event; raises ValueError, KeyError or StudyError when it does not fit."""
        kind = event["event"]
        if kind == "study" and self.header:
            self._anew()
        if kind in ("study", "resumed"):
            # A resumed study may have grown its number of trials: the newest config is in force.
            born = self.header.get("born", event["time"])
            self.header = {**self.header, **event, "event": "study", "born": born}
        elif kind == "asked" and "proposal" in event:
            self._asked(event)
        elif kind in ("asked", "started", "reported", "failed", "told"):
            self._happened(self.open(int(event["trial"])), kind, event)
        else:
            raise StudyError(f"unknown event '{kind}'")

    def _anew(self) -> None:
        """Forget a study that came to nothing; another one begins in its file."""
        if self.begun:
            raise StudyError("a study begins where another one is under way")
        self.header = {}
        for known in (self.trials, self.attempts, self.failures, self.points):
            known.clear()

    def _asked(self, event: Event) -> None:
        number = int(event["trial"])
        if number != len(self.trials):
            raise StudyError(f"trial {number} asked where {len(self.trials)} was next")
        proposal = decode(Proposal, shared(event["proposal"], self._words))
        self.trials[number] = Trial(number, event["method"], proposal, int(event["seed"]))
        self.attempts[number] = self.failures[number] = 0
        self.points[number] = {}

    def open(self, number: int) -> Trial:
        """The pending trial of that number; raises StudyError if there is none."""
        trial = self.trials.get(number)
        if trial is None:
            raise StudyError(f"trial {number} was never asked")
        if not trial.pending:
            raise StudyError(f"trial {number} was already told")
        return trial

    def _happened(self, trial: Trial, kind: str, event: Event) -> None:
        if kind == "asked":
            self.attempts[trial.number] = int(event["attempt"])
        elif kind == "reported":
            point = decode(Point, event["point"])
            self.points[trial.number][point.step] = point
        elif kind == "failed":
            self.failures[trial.number] += 1
        elif kind == "told":
            self.trials[trial.number] = dataclasses.replace(
                trial,
                # Else each trial has the names of all domains for itself, many times over.
                result=_slim(decode(TrainResult, shared(event["result"], self._words))),
                score=float(event["score"]),
                violation=float(event["violation"]),
            )
            self.points[trial.number] = {}


def shared(plain: Json, known: dict[str, str]) -> Json:
    """Equal JSON in which equal strings are one object, that of `known`, which learns new ones."""
    if isinstance(plain, Mapping):
        return {known.setdefault(key, key): shared(value, known) for key, value in plain.items()}
    if isinstance(plain, list):
        return [shared(item, known) for item in plain]
    return known.setdefault(plain, plain) if isinstance(plain, str) else plain


def _slim(result: TrainResult) -> TrainResult:
    """The result with its metrics not held twice, where they are the last point's."""
    if result.curve and result.curve[-1].metrics == result.metrics:
        return dataclasses.replace(result, metrics=result.curve[-1].metrics)
    return result


def replay(events: Iterable[Event], path: Where = "history") -> Record:
    """The state after all `events`; an error names the line of the event that does not fit."""
    record = Record()
    for line, event in enumerate(events, start=1):
        try:
            record.apply(event)
        except (ValueError, KeyError, TypeError, StudyError, MixtureError) as error:
            raise StudyError(f"{path}, line {line}: {error}") from error
    return record


def read(path: Where) -> Record:
    """What the history file at `path` (or in that folder) says; the study may be running."""
    record = replay(read_events(path), file_of(path))
    if "identity" not in record.header or "config" not in record.header:
        raise StudyError(f"{file_of(path)} is no history of a study: it does not start with one")
    return record


def costs(history: History) -> dict[str, Spent]:
    """What each method has spent, unranked trials included; confirmations stand on their own."""
    total: dict[str, Spent] = {}
    for trial in history:
        if trial.result is not None:
            total[trial.method] = _add(total.get(trial.method, Spent()), trial.result.spent)
    return total


def _add(a: Spent, b: Spent) -> Spent:
    fields = (f.name for f in dataclasses.fields(Spent))
    return Spent(**{name: getattr(a, name) + getattr(b, name) for name in fields})


def canonical(history: History) -> Json:
    """Everything that a rerun must reproduce, as JSON: no costs, times, attempts or paths."""
    return [_canonical(trial) for trial in history]


def equal_histories(a: History, b: History) -> bool:
    """Whether two histories say the same, costs, times and attempts aside (NaN equals NaN)."""
    return repr(canonical(a)) == repr(canonical(b))


def _canonical(trial: Trial) -> Mapping[str, Json]:
    plain: dict[str, Json] = encode(trial)
    if plain["result"] is not None:
        for name in ("spent", "checkpoint", "error"):
            del plain["result"][name]
    return plain


def differences(old: Json, new: Json, where: str = "") -> list[str]:
    """Dotted names of what differs between two pieces of JSON, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for name in [*old, *(n for n in new if n not in old)]:
            inner = f"{where}.{name}" if where else name
            found += differences(old.get(name, "absent"), new.get(name, "absent"), inner)
        return found
    return [] if old == new else [f"{where} was {old}, is {new}"]
