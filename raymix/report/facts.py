"""What a history holds for a report: names, repeats by split, and what the objective was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from raymix.core.codec import decode
from raymix.core.mixture import Mixture, Space
from raymix.core.simplex import Vector
from raymix.core.trial import History, Role, Trial
from raymix.study.confirm import confirmed, winner
from raymix.study.objective import Objective, domain_losses
from raymix.study.record import Record

SPLITS = ("eval", "test")


@dataclass(frozen=True)
class Facts:
    """One study, ready to be told about."""

    history: History
    objective: Objective
    space: Space
    fingerprint: str
    failures: int
    pending: int

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return self.space.names

    @property
    def winner(self) -> Trial | None:
        """The best mixture; see `study.confirm.winner`."""
        return winner(self.history)

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
class Repeats:
    """Scores [M, S] of M confirmed mixtures over S shared seeds; NaN: that training is missing.

    `baselines` maps "uniform" and "proportional" (and the user's) to their row.
    """

    split: str
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Vector
    baselines: Mapping[str, int]
    best: int
    """Row of the winner, which was chosen without looking at test."""


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
    )


def label(trial: Trial) -> str:
    """How a trial is called in tables: a baseline by its name(s), else `tpe-012`."""
    if trial.role is Role.BASELINE:
        return " = ".join(trial.proposal.note["names"])
    return f"{trial.method}-{trial.number:03d}"


def repeats(known: Facts) -> Repeats | None:
    """The confirmations as a table, on test where all have it, else on eval; None without any."""
    groups = confirmed(known.history)
    best = known.winner
    if not groups or best is None:
        return None
    by_number = {t.number: t for t in known.history}
    rows = {number: row for row, number in enumerate(groups)}
    seeds = tuple(sorted({t.seed for trials in groups.values() for t in trials}))
    test, evals = (_scores(known, groups, seeds, split) for split in ("test", "eval"))
    whole = bool(np.array_equal(np.isfinite(test), np.isfinite(evals)))
    return Repeats(
        split="test" if whole else "eval",
        names=tuple(label(by_number[number]) for number in groups),
        seeds=seeds,
        scores=test if whole else evals,
        baselines={
            name: row
            for number, row in rows.items()
            if by_number[number].role is Role.BASELINE
            for name in by_number[number].proposal.note["names"]
        },
        best=rows[best.number],
    )


def _scores(
    known: Facts, groups: Mapping[int, tuple[Trial, ...]], seeds: tuple[int, ...], split: str
) -> Vector:
    scores = np.full((len(groups), len(seeds)), np.nan)
    for row, trials in enumerate(groups.values()):
        for trial in trials:
            if trial.result is not None:
                found = known.score(trial.result.metrics, split, trial.mixture)
                scores[row, seeds.index(trial.seed)] = found
    return scores
