"""What methods have spent, in training units: one is one training on the study's budget.

All of a method counts: references, proxies and influence, trainings that failed, and baselines that
it looked at (`charged` in the note of a proposal). Of a smaller model a training counts as much as
of the target. The base model, baselines and confirmations are on nobody's bill. Nor are attempts
that were lost with their worker: of a training only its last attempt is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from raymix.core.errors import StudyError
from raymix.core.job import Spent, Status
from raymix.core.mixture import Budget, Unit
from raymix.core.trial import History, Proposal, Role, Trial
from raymix.study.groups import Member, Members

TOLERANCE = 1e-6
"""By how much a bill may be overdrawn: float dust."""

CHARGED = "charged"
"""In a proposal's note: numbers of the baselines that it was made from."""


@dataclass(frozen=True)
class Bill:
    """What one method has spent, in training units.

    `pending`: foreseen of its open trials. `unspent`: what is left of the limit once these are
    paid, below 0 where something cost more than was foreseen; infinite without a limit.
    """

    member: Member
    spent: float
    pending: float
    unspent: float


def units(trial: Trial, budget: Budget, history: Iterable[Trial] = ()) -> float:
    """What a trial has cost, in trainings on the study's `budget`; 0 before it was told.

    It is the part of that budget that was really spent: by the last point where the training was
    stopped, or by the steps that it has told of, if more, where it failed; and only what it paid
    itself where it branched off. To this comes what passed through the model beside the steps
    (`Spent.extra`), by the tokens of its own steps, and the trials that it was charged with.
    `history`: where a trial that trains nothing, and so has no steps to compare with, finds the one
    it measures; without that its extra is left out.
    """
    known = _by_number(history) if trial.role is Role.MEASURE else {}
    return _units(trial, budget, known)


def _units(trial: Trial, budget: Budget, known: Mapping[int, Trial]) -> float:
    if trial.result is None:
        return 0.0
    part = _part(trial, budget)
    return part + _extra(trial, part, budget, known) + _charged(trial.proposal)


def _by_number(history: Iterable[Trial]) -> dict[int, Trial]:
    return {trial.number: trial for trial in history}


def foreseen(proposal: Proposal, history: History, budget: Budget) -> float:
    """What a proposal of `history.method` will cost if it runs to its end.

    Beside the steps it is taken to need what the method's latest training of its kind needed, which
    is nothing known before there was one.

    Raises:
        StudyError: its budget is in another unit than the study's.
    """
    found = _charged(proposal)
    if proposal.role is not Role.MEASURE:
        found += _share(proposal, budget) * (1.0 - _shared(proposal, history))
    if proposal.measure or proposal.reweighter is not None:
        alike = (t for t in history.own if _kind(t.proposal) == _kind(proposal) and _done(t))
        latest, known = list(alike)[-1:], _by_number(history)
        found += sum(_extra(t, _part(t, budget), budget, known) for t in latest)
    return found


def spent(history: History, budget: Budget) -> tuple[float, float]:
    """Units that `history.method` has spent on told trials, and those foreseen of its open ones."""
    # Where there are many measurements, each looks for what it measures.
    known = _by_number(history)
    told = sum(_units(trial, budget, known) for trial in history.own)
    opened = [trial.proposal for trial in history.own if trial.pending]
    return told, sum(foreseen(proposal, history, budget) for proposal in opened)


def paid(history: History, searcher: object) -> History:
    """What `history.method` may see under a bill: of the baselines those that it is charged for.

    A searcher names these in `pays_for`. All others start from nothing, or the baselines would be
    trainings that nobody pays.
    """
    names = frozenset(getattr(searcher, "pays_for", ()))
    seen = (
        trial
        for trial in history
        if trial.role is not Role.BASELINE or names & {trial.method, *trial.proposal.note["names"]}
    )
    return replace(history, trials=tuple(seen))


def affordable(proposal: Proposal, history: History, budget: Budget, limit: float | None) -> bool:
    """Whether `history.method` can pay for `proposal` with all that it has asked for."""
    if limit is None:
        return True
    return sum(spent(history, budget)) + foreseen(proposal, history, budget) <= limit + TOLERANCE


def bills(
    history: History, members: Members, budget: Budget, limit: float | None = None
) -> dict[str, Bill]:
    """Spent and unspent units of each method, by its name."""
    found = {}
    for name, member in members.items():
        told, opened = spent(history.seen_by(name), budget)
        left = math.inf if limit is None else limit - told - opened
        found[name] = Bill(member, told, opened, left)
    return found


def _part(trial: Trial, budget: Budget) -> float:
    """The part of the study's budget that the steps of a told trial have spent."""
    result, proposal = trial.result, trial.proposal
    if result is None or trial.role is Role.MEASURE:
        return 0.0
    own = proposal.budget or budget
    # What a branch did not pay, and what another unit comes to, only the steps themselves tell.
    if proposal.branch is not None or own.unit is not budget.unit:
        return _amount(result.spent, budget.unit) / budget.amount
    whole = result.status is Status.DONE
    progress = 1.0 if whole else max((point.progress for point in result.curve), default=0.0)
    part = progress * own.amount / budget.amount
    if result.status is Status.FAILED:
        # After its last evaluation, or before the first one, it has trained on.
        part = max(part, _amount(result.spent, budget.unit) / budget.amount)
    return part


def _extra(trial: Trial, part: float, budget: Budget, known: Mapping[int, Trial]) -> float:
    """What passed through the model beside the steps of a told trial, in units."""
    if trial.result is None or not trial.result.spent.extra:
        return 0.0
    tokens = trial.result.spent.tokens
    if trial.role is Role.MEASURE:
        start = trial.proposal.start
        source = None if start is None else known.get(start)
        if source is None or source.result is None:
            return 0.0
        part, tokens = _part(source, budget), source.result.spent.tokens
    # Without a step there is nothing to compare with.
    return trial.result.spent.extra * part / tokens if tokens else 0.0


def _amount(found: Spent, unit: Unit) -> int:
    amounts = {
        Unit.EXAMPLES: found.rows,
        Unit.TOKENS: found.tokens,
        Unit.LOSS_TOKENS: found.loss_tokens,
    }
    return amounts[unit]


def _share(proposal: Proposal, budget: Budget) -> float:
    """The proposal's budget in units."""
    own = proposal.budget or budget
    if own.unit is not budget.unit:
        raise StudyError(
            f"a budget of {own.amount} {own.unit} cannot be held against a bill in trainings of "
            f"{budget.amount} {budget.unit}: ask for one in {budget.unit}"
        )
    return own.amount / budget.amount


def _shared(proposal: Proposal, history: History) -> float:
    """The part of its own budget that a proposal need not pay, as it branches off a training."""
    trunk = (t for t in history if t.number == proposal.branch)
    return next((t.proposal.turn or 0.0 for t in trunk), 0.0)


def _charged(proposal: Proposal) -> float:
    """Units of the baselines that the proposal was made from; each is one whole training."""
    note = proposal.note
    return float(len(note.get(CHARGED, ()))) if isinstance(note, Mapping) else 0.0


def _kind(proposal: Proposal) -> tuple[bool, bool, bool]:
    """Proposals of one kind need as much beside their steps."""
    works = proposal.reweighter is not None
    return proposal.role is Role.MEASURE, bool(proposal.measure), works


def _done(trial: Trial) -> bool:
    return trial.result is not None and trial.result.status is Status.DONE
