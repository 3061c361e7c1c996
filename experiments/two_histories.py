"""Two histories of one study held against each other: what must be the same, and whether it is.

A method that looks at what was told before asks for something else as soon as trainings end in
another order, which on a cluster they do. So a trial must be asked for in the same words where its
method saw the same when it was asked, to the last bit, or looks at nothing; and whatever was asked
for in the same words must come to the same results, to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from raymix.core.job import Json
from raymix.core.trial import History, Role, Trial
from raymix.study.record import Record, canonical
from raymix.study.store import Event

UNSEEING = (Role.MEASURE, Role.BASELINE)
"""The base model and the baselines are trained whatever there is in the history."""


@dataclass(frozen=True)
class Struck:
    """A training that was begun again from a checkpoint.

    `reached`: the last step that its first workers reported; `saved`: of the checkpoint from which
    the second ones went on, 0 where there was none; `silent`: seconds from the last report of the
    ones to the first of the others.
    """

    trial: int
    reached: int
    saved: int
    silent: float


def struck(events: Iterable[Event], save_steps: int) -> list[Struck]:
    """Trainings whose reports go back, in the order in which they did.

    A checkpoint is written every `save_steps` steps, so the first step that is reported again tells
    which one it was. One that died before it had reported anything since its checkpoint is not
    found.
    """
    found: list[Struck] = []
    last: dict[int, tuple[int, float]] = {}
    for event in events:
        if event["event"] != "reported":
            continue
        trial, step, now = int(event["trial"]), int(event["point"]["step"]), float(event["time"])
        reached, then = last.get(trial, (-1, now))
        if step <= reached:
            saved = (step - 1) // save_steps * save_steps
            found.append(Struck(trial, reached, saved, now - then))
        last[trial] = step, now
    return found


@dataclass(frozen=True)
class Asked:
    """A trial of a study that has ended.

    `saw`: what its method could look at when it was asked, trials that were open included.
    `request`: what was to be trained, and the seed. `answer`: all that came of it: each metric of
    each report, what was realised, the score.
    """

    trial: Trial
    saw: str
    request: str
    answer: str


def asked(events: Sequence[Event], blind: Collection[str]) -> list[Asked]:
    """The trials of a history; the methods in `blind` look at nothing."""
    record, saw = Record(), list[str]()
    for event in events:
        if event["event"] == "asked" and "proposal" in event:
            before = record.history
            record.apply(event)
            saw.append(_seen(before, record.trials[len(saw)], blind))
        else:
            record.apply(event)
    trials = record.trials.values()
    return [Asked(t, seen, *_told(t)) for t, seen in zip(trials, saw, strict=True)]


def _seen(before: History, trial: Trial, blind: Collection[str]) -> str:
    if trial.role in UNSEEING or trial.method in blind:
        return ""
    if trial.role is Role.CONFIRM:
        # What is confirmed depends on the whole search, and not on other confirmations.
        search = tuple(each for each in before if each.role is not Role.CONFIRM)
        return repr(canonical(replace(before, trials=search)))
    return repr(canonical(before.seen_by(trial.method)))


def _told(trial: Trial) -> tuple[str, str]:
    plain: Json = canonical(History((trial,)))[0]
    proposal = dict(plain["proposal"])
    if trial.role is Role.CONFIRM:
        proposal["note"] = None  # names the trial that it repeats
    answer = [plain["result"], plain["score"], plain["violation"]]
    return repr((trial.method, proposal, trial.seed)), repr(answer)


@dataclass(frozen=True)
class Pair:
    """A trial of one study and its counterpart in the other; None: there is none.

    `must`: the same had to be asked for, as the same was seen.
    """

    one: Asked | None
    other: Asked | None
    must: bool

    @property
    def alike(self) -> bool:
        """Whether the same was asked for."""
        if self.one is None or self.other is None:
            return False
        return self.one.request == self.other.request

    @property
    def equal(self) -> bool:
        """Whether the same came of it."""
        if self.one is None or self.other is None:
            return False
        return self.one.answer == self.other.answer

    @property
    def wrong(self) -> bool:
        """Whether something was lost or changed on the way."""
        return not self.equal if self.alike else self.must


def pairs(one: Sequence[Asked], other: Sequence[Asked]) -> list[Pair]:
    """Counterparts: trials of one number; of confirmations those that ask for the same."""
    first, second = ([a for a in each if not _confirms(a)] for each in (one, other))
    found = [
        Pair(a, b, a is None or b is None or a.saw == b.saw) for a, b in zip_longest(first, second)
    ]
    first, second = ([a for a in each if _confirms(a)] for each in (one, other))
    must = {a.saw for a in first} == {b.saw for b in second}
    rest = []
    for a in first:
        same = next((b for b in second if b.request == a.request), None)
        if same is None:
            rest.append(a)
        else:
            second.remove(same)
            found.append(Pair(a, same, must))
    return [*found, *(Pair(a, b, must) for a, b in zip_longest(rest, second))]


def _confirms(asked: Asked) -> bool:
    return asked.trial.role is Role.CONFIRM
