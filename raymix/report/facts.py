"""What a history holds for a report: names, repeats by split, and what the objective was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raymix.core.codec import decode
from raymix.core.mixture import Mixture, Space
from raymix.core.simplex import Vector
from raymix.core.trial import History, Role, Trial
from raymix.study.bill import Bill, bills
from raymix.study.confirm import by_group, champion, choices, confirmed, favourite, winner
from raymix.study.groups import Members, runs_of
from raymix.study.objective import Objective, domain_losses
from raymix.study.plan import METHODS, Confirm
from raymix.study.record import Record

SPLITS = ("eval", "test")


@dataclass(frozen=True)
class Facts:
    """One study, ready to be told about.

    `members`: group and repeat of its methods, by name. `confirm`: what was trained again. `bill`:
    units that each method may spend.
    """

    history: History
    objective: Objective
    space: Space
    fingerprint: str
    failures: int
    pending: int
    members: Members
    confirm: Confirm
    bill: float | None

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return self.space.names

    @property
    def winner(self) -> Trial | None:
        """The best mixture; see `study.confirm.winner`."""
        return winner(self.history, self.confirm, self.members)

    @property
    def bills(self) -> dict[str, Bill]:
        """What each method has spent, in trainings on the study's budget."""
        return bills(self.history, self.members, self.space.budget, self.bill)

    @property
    def base(self) -> Mapping[str, float]:
        """The untrained model's metrics; empty while unknown."""
        return self.history.base.metrics if self.history.base is not None else {}

    def score(self, metrics: Mapping[str, float], split: str, mixture: Mixture) -> float:
        """The objective's aggregate of a split's losses, in nats per token; NaN without it.

        Without the pull to the prior: that is a preference, and a verdict is about losses.
        """
        losses = {f"eval/{name}/loss": x for name, x in domain_losses(metrics, split).items()}
        plain = replace(self.objective, kl_to_prior=0.0, constraints=())
        return plain.score(losses, self.base, mixture, self.space.prior)[0]


@dataclass(frozen=True)
class Row:
    """One line of the confirmations.

    `name`: of a mixture, or of a group of methods. `source`: the trial that was confirmed, of a
    group that whose confirmations did best. `trials`: whole confirmations, in order of blocks.
    """

    name: str
    source: Trial
    trials: tuple[Trial, ...]
    best: bool


@dataclass(frozen=True)
class Repeats:
    """Scores [M, S] of M confirmed mixtures over S shared seeds; NaN: that training is missing.

    `baselines` maps "uniform" and "proportional" (and the user's) to their row. Where methods are
    compared, a row is a group, and a column another run of it; `missing` are those that chose
    nothing.
    """

    split: str
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Vector
    baselines: Mapping[str, int]
    best: int
    """Row of the winner, which was chosen without looking at test."""
    missing: tuple[str, ...] = ()


def facts(record: Record) -> Facts:
    """Read off a record what reports need."""
    identity = record.header["identity"]
    trials = record.trials.values()
    return Facts(
        history=record.history,
        objective=decode(Objective, identity["objective"]),
        space=decode(Space, identity["space"]),
        fingerprint=str(record.header["fingerprint"]),
        failures=sum(not t.pending and not t.finished for t in trials),
        pending=len(record.pending),
        members=record.members,
        confirm=record.confirm,
        bill=record.bill,
    )


def label(trial: Trial) -> str:
    """How a trial is called in tables: a baseline by its name(s), else `tpe-012`."""
    if trial.role is Role.BASELINE:
        return " = ".join(trial.proposal.note["names"])
    return f"{trial.method}-{trial.number:03d}"


def used(trial: Trial) -> Mixture:
    """What a training was on: the mean over its steps where a reweighter moved the mixture."""
    result = trial.result
    if trial.proposal.reweighter is not None and result is not None and result.mean_mixture:
        return result.mean_mixture
    return trial.mixture


def rows(known: Facts) -> tuple[Row, ...]:
    """The confirmations: a row for each mixture, or for each group where methods are compared."""
    by_number = {t.number: t for t in known.history}
    if known.confirm.of != METHODS:
        groups, best = confirmed(known.history, known.confirm), known.winner
        return tuple(
            Row(label(by_number[n]), by_number[n], trials, best is not None and best.number == n)
            for n, trials in groups.items()
        )
    first = champion(known.history, known.members)
    found = []
    for group, blocks in by_group(known.history).items():
        source = by_number[favourite(blocks.values())]
        name = label(source) if source.role is Role.BASELINE else group
        found.append(Row(name, source, tuple(blocks.values()), group == first))
    return tuple(found)


def missing(known: Facts) -> tuple[str, ...]:
    """Methods that chose nothing though methods were compared: groups, or single runs of one."""
    compared = any("group" in t.proposal.note for t in known.history if t.role is Role.CONFIRM)
    if known.confirm.of != METHODS or not compared:
        return ()
    found: list[str] = []
    made, names = choices(known.history, known.members), runs_of(known.members)
    for group, runs in names.items():
        lost = [name for name, run in zip(runs, made[group], strict=True) if run is None]
        found += [group] if len(lost) == len(runs) else lost
    return tuple(found)


def repeats(known: Facts) -> Repeats | None:
    """The confirmations as a table, on test where all have it, else on eval.

    None without any, and before the winner of the search is among them.
    """
    table = rows(known)
    best = next((place for place, row in enumerate(table) if row.best), None)
    if best is None:
        return None
    seeds = tuple(sorted({t.seed for row in table for t in row.trials}))
    test, evals = (_scores(known, table, seeds, split) for split in ("test", "eval"))
    whole = bool(np.array_equal(np.isfinite(test), np.isfinite(evals)))
    return Repeats(
        split="test" if whole else "eval",
        names=tuple(row.name for row in table),
        seeds=seeds,
        scores=test if whole else evals,
        baselines={
            name: place
            for place, row in enumerate(table)
            if row.source.role is Role.BASELINE
            for name in row.source.proposal.note["names"]
        },
        best=best,
        missing=missing(known),
    )


def _scores(known: Facts, table: Sequence[Row], seeds: tuple[int, ...], split: str) -> Vector:
    scores = np.full((len(table), len(seeds)), np.nan)
    for place, row in enumerate(table):
        for trial in row.trials:
            if trial.result is not None:
                found = known.score(trial.result.metrics, split, trial.mixture)
                scores[place, seeds.index(trial.seed)] = found
    return scores
