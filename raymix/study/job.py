"""From a trial to its training."""

from __future__ import annotations

from dataclasses import replace

from raymix.core.errors import MixtureError, StudyError
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
            replace(
                stage,
                pools=proposal.pools or stage.pools,
                reweighter=proposal.reweighter or stage.reweighter,
            )
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
        keep=proposal.keep,
    )


def space_of(space: Space, proposal: Proposal) -> Space:
    """The space of one proposal: epoch caps depend on its budget and its pools."""
    domains = space.domains
    if proposal.pools is not None:
        if len(proposal.pools) != len(domains):
            raise MixtureError(f"{len(domains)} domains but {len(proposal.pools)} pools")
        pairs = zip(domains, proposal.pools, strict=True)
        domains = tuple(domain.pool(rows) for domain, rows in pairs)
    return replace(space, domains=domains, budget=proposal.budget or space.budget)


def _checkpoint(record: Record, trial: Trial, number: int | None) -> str | None:
    if number is None:
        return None
    source = record.trials.get(number)
    if source is not None and source.proposal.model != trial.proposal.model:
        raise StudyError(
            f"trial {trial.number} trains model '{trial.proposal.model}' but needs the checkpoint "
            f"of trial {number}, which is of model '{source.proposal.model}'"
        )
    path = source.result.checkpoint if source is not None and source.result is not None else None
    if path is None:
        raise StudyError(
            f"trial {trial.number} needs the checkpoint of trial {number}: none there "
            "(Proposal.keep asks for one)"
        )
    return path
