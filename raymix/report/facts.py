"""What a history holds for a report: names, repeats by split, and what the objective was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raymix.core.codec import decode, encode
from raymix.core.job import Spec
from raymix.core.mixture import Mixture, Space
from raymix.core.simplex import Vector
from raymix.core.trial import History, Role, Trial
from raymix.report.guards import Standing, standings
from raymix.study.bill import Bill, bills
from raymix.study.confirm import (
    by_group,
    champion,
    choices,
    confirmed,
    failures,
    favourite,
    winner,
)
from raymix.study.groups import Members, runs_of
from raymix.study.objective import Objective, domain_losses
from raymix.study.plan import METHODS, Confirm
from raymix.study.record import Record

SPLITS = ("eval", "test")
MULTI_TASK = Spec("raymix.strategy.multitask:MultiTask")


@dataclass(frozen=True)
class Facts:
    """One study, ready to be told about.

    `members`: group and repeat of its methods, by name. `confirm`: what was trained again. `bill`:
    units that each method may spend. `strategy`: what a proposal without one is trained by.
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
    strategy: Spec = MULTI_TASK

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

        Without the pull to the prior and the penalty of kept domains: these are preferences, and a
        verdict is about losses.
        """
        losses = {f"eval/{name}/loss": x for name, x in domain_losses(metrics, split).items()}
        plain = replace(self.objective, kl_to_prior=0.0, constraints=(), keep_penalty=0.0)
        return plain.score(losses, self.base, mixture, self.space.prior)[0]


@dataclass(frozen=True)
class Row:
    """One line of the confirmations.

    `name`: of a mixture, or of a group of methods. `source`: the trial that was confirmed, of a
    group that whose confirmations did best. `trials`: whole confirmations, in order of blocks.
    `broken`: by how much these break guards, their mean violation (nats per token). `failed`: how
    many other confirmations failed. A row with either may not have competed for the best.
    """

    name: str
    source: Trial
    trials: tuple[Trial, ...]
    best: bool
    broken: float = 0.0
    failed: int = 0


@dataclass(frozen=True)
class Repeats:
    """Scores [M, S] of M confirmed mixtures over S shared seeds; NaN: that training is missing.

    `baselines` maps "uniform" and "proportional" (and the user's) to their row. Where methods are
    compared, a row is a group, and a column another run of it. `missing` says what has no row or
    not all of one; `guards` how the winner stands to them; `aside` why a row did not compete for
    the best.
    """

    split: str
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Vector
    baselines: Mapping[str, int]
    best: int
    """Row of the winner, which was chosen without looking at test."""
    missing: tuple[str, ...] = ()
    aside: Mapping[int, str] = field(default_factory=dict)
    guards: tuple[Standing, ...] = ()


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
        strategy=decode(Spec, identity.get("strategy", encode(MULTI_TASK))),
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
    by_number, failed = {t.number: t for t in known.history}, failures(known.history)
    if known.confirm.of != METHODS:
        groups, best = confirmed(known.history, known.confirm), known.winner
        return tuple(
            _row(n, by_number[n], trials, best is not None and best.number == n, failed)
            for n, trials in groups.items()
        )
    first, told = champion(known.history, known.members), by_group(known.history)
    return tuple(
        _row(
            group, by_number[favourite(told, group)], tuple(blocks.values()), group == first, failed
        )
        for group, blocks in told.items()
    )


def _row(
    key: str | int,
    source: Trial,
    trials: tuple[Trial, ...],
    best: bool,
    failed: Mapping[str | int, int],
) -> Row:
    """The row of a group, or of a trial by its number; `failed`: `failures` of the history."""
    named = isinstance(key, int) or source.role is Role.BASELINE
    broken = float(np.mean([t.violation for t in trials]))
    name = label(source) if named else str(key)
    return Row(name, source, trials, best, broken, failed.get(key, 0))


def evidence(known: Facts, best: Trial) -> tuple[Trial, ...]:
    """The confirmations that speak for the winner: of its whole group where methods are compared.

    Without any it is the trial itself.
    """
    if known.confirm.of == METHODS:
        row = next((row for row in rows(known) if row.best), None)
        if row is not None:
            return row.trials
    return confirmed(known.history, known.confirm).get(best.number, (best,))


def missing(known: Facts) -> tuple[str, ...]:
    """What the confirmations lack, in words, by reason.

    Of baselines: a search training that failed, so that they are not confirmed at all. Where
    methods were compared: groups or single runs that chose nothing, groups of which a confirmation
    failed, and groups that are not whole yet.
    """
    bases = [t for t in known.history if t.role is Role.BASELINE]
    reasons = {"failed as a baseline": [label(t) for t in bases if not (t.pending or t.finished)]}
    compared = any("group" in t.proposal.note for t in known.history if t.role is Role.CONFIRM)
    if known.confirm.of == METHODS and compared:
        failed = failures(known.history)
        names = {t.method: label(t) for t in bases}
        made = choices(known.history, known.members)
        short = [group for group in made if group not in failed and _short(known, made, group)]
        reasons |= {
            "chose nothing": _empty(known, made),
            "had a confirmation that failed": [names.get(str(g), str(g)) for g in failed],
            "not confirmed as a whole yet": [names.get(g, g) for g in short],
        }
    return tuple(f"{', '.join(who)} {why}" for why, who in reasons.items() if who)


def _empty(known: Facts, made: Mapping[str, Sequence[Trial | None]]) -> list[str]:
    """Groups that chose nothing, or single runs of one."""
    found: list[str] = []
    for group, runs in runs_of(known.members).items():
        lost = [name for name, run in zip(runs, made[group], strict=True) if run is None]
        found += [group] if len(lost) == len(runs) else lost
    return found


def _short(known: Facts, made: Mapping[str, Sequence[Trial | None]], group: str) -> bool:
    """Whether a block of a group lacks a confirmation though its run chose something."""
    told, runs = by_group(known.history).get(group, {}), made[group]
    wanted = (b for b in range(known.confirm.seeds) if runs[b % len(runs)] is not None)
    return any(block not in told for block in wanted)


def aside(table: Sequence[Row]) -> dict[int, str]:
    """Why rows did not compete for the best, by their place; see `study.confirm.winner`."""
    best = next(row for row in table if row.best)
    found = {}
    for place, row in enumerate(table):
        if row.failed and not best.failed:
            found[place] = "a confirmation of it failed"
        elif row.broken > 0 and not best.broken > 0:
            found[place] = f"it breaks a guard by {row.broken:.3g}"
    return found


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
        aside=aside(table),
        guards=standings(known.objective, known.base, table[best].trials),
    )


def _scores(known: Facts, table: Sequence[Row], seeds: tuple[int, ...], split: str) -> Vector:
    scores = np.full((len(table), len(seeds)), np.nan)
    for place, row in enumerate(table):
        for trial in row.trials:
            if trial.result is not None:
                found = known.score(trial.result.metrics, split, trial.mixture)
                scores[place, seeds.index(trial.seed)] = found
    return scores
