"""From a trial to its training."""

from __future__ import annotations

from dataclasses import replace

from raymix.core.codec import from_spec
from raymix.core.errors import MixtureError, StudyError
from raymix.core.job import Stage, TrainJob
from raymix.core.mixture import Budget, Space
from raymix.core.trial import Proposal, Role, Trial
from raymix.study.plan import Plan
from raymix.study.record import Record


def make_job(plan: Plan, record: Record, trial: Trial) -> TrainJob:
    """The training that `trial` asks for.

    MEASURE trials have no stages: nothing is trained, and what is to be measured is told by which
    stages its start was trained. The test split is only for the base model, FINAL and CONFIRM
    trials. Raises StudyError when a checkpoint it needs does not exist.
    """
    proposal = trial.proposal
    space = space_of(plan.space, proposal)
    stages = _stages(plan, record, trial, space)
    trains = trial.role is not Role.MEASURE
    return TrainJob(
        trial=trial.number,
        stages=stages if trains else (),
        space=space,
        seed=trial.seed,
        model=proposal.model,
        attempt=record.attempts.get(trial.number, 0),
        test=trial.number == 0 or trial.role in (Role.CONFIRM, Role.FINAL),
        reference=_checkpoint(record, trial, proposal.reference),
        measure=proposal.measure,
        start=_checkpoint(record, trial, proposal.start),
        keep=proposal.keep,
        trained=stages if proposal.measure and not trains else (),
        turn=proposal.turn is not None,
        branch=_turn(record, trial),
    )


def _stages(plan: Plan, record: Record, trial: Trial, space: Space) -> tuple[Stage, ...]:
    """What the strategy makes of the proposal; in two parts where others branch off, or it does."""
    proposal, strategy = trial.proposal, plan.strategy
    if proposal.strategy is not None:
        strategy = from_spec(proposal.strategy)
    stages = tuple(
        replace(
            stage,
            pools=proposal.pools or stage.pools,
            reweighter=proposal.reweighter or stage.reweighter,
        )
        for stage in strategy.stages(proposal.mixture, space.budget, proposal.params)
    )
    trunk = proposal if proposal.branch is None else record.trials[proposal.branch].proposal
    if trunk.turn is None:
        return stages
    if len(stages) > 1:
        raise StudyError(
            "only trainings of a single stage can have branches (Proposal.turn), and "
            f"{type(strategy).__name__} makes {len(stages)}"
        )
    (stage,) = stages
    early = round(stage.budget.amount * trunk.turn)
    if not 0 < early < stage.budget.amount:
        raise StudyError(f"Proposal.turn {trunk.turn} leaves nothing before it or after it")
    first = replace(stage, mixture=trunk.mixture, budget=Budget(early, stage.budget.unit))
    rest = Budget(stage.budget.amount - early, stage.budget.unit)
    return first, replace(stage, budget=rest)


def _turn(record: Record, trial: Trial) -> str | None:
    """Path of the checkpoint at which the trial branches off another."""
    number = trial.proposal.branch
    if number is None:
        return None
    source = record.trials.get(number)
    found = source.result.diagnostics.get("turn") if source and source.result else None
    if found is None:
        raise StudyError(
            f"trial {trial.number} branches off trial {number}, which has no checkpoint for that "
            "(Proposal.turn asks for one)"
        )
    return str(found)


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
