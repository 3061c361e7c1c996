"""From a trial to its training."""

from __future__ import annotations

from dataclasses import replace

from raymix.core.errors import StudyError
from raymix.core.job import Stage, TrainJob
from raymix.core.mixture import Space
from raymix.core.trial import Proposal, Role, Trial
from raymix.study.plan import Plan
from raymix.study.record import Record


def make_job(plan: Plan, record: Record, trial: Trial) -> TrainJob:
    """The training that `trial` asks for.

    MEASURE trials have no stages: nothing is trained. The test split is only for the base model,
    FINAL and CONFIRM trials. Raises StudyError when a checkpoint it needs does not exist.
    """
    proposal = trial.proposal
    space = space_of(plan.space, proposal)
    stages: tuple[Stage, ...] = ()
    if trial.role is not Role.MEASURE:
        stages = tuple(
            replace(stage, pools=proposal.pools, reweighter=proposal.reweighter)
            for stage in plan.strategy.stages(proposal.mixture, space.budget, proposal.params)
        )
    return TrainJob(
        trial=trial.number,
        stages=stages,
        space=space,
        seed=trial.seed,
        model=proposal.model,
        attempt=record.attempts.get(trial.number, 0),
        test=trial.number == 0 or trial.role in (Role.CONFIRM, Role.FINAL),
        reference=_checkpoint(record, trial, proposal.reference),
        measure=proposal.measure,
        start=_checkpoint(record, trial, proposal.start),
    )


def space_of(space: Space, proposal: Proposal) -> Space:
    """The space of one proposal: epoch caps depend on its budget."""
    return space if proposal.budget is None else replace(space, budget=proposal.budget)


def _checkpoint(record: Record, trial: Trial, number: int | None) -> str | None:
    if number is None:
        return None
    source = record.trials.get(number)
    path = source.result.checkpoint if source is not None and source.result is not None else None
    if path is None:
        raise StudyError(f"trial {trial.number} needs the checkpoint of trial {number}: none there")
    return path
