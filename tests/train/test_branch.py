"""A training that branches off another: the shared part is neither trained nor paid for again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raymix.core.job import Stage, Status, TrainJob
from raymix.core.mixture import Budget, Mixture
from raymix.search.agreement import compare
from raymix.search.perturb import Perturb
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.train.local import LocalRunner


def stages(*mixtures: Mixture, amount: int = 96) -> tuple[Stage, ...]:
    return tuple(Stage(mixture, Budget(amount)) for mixture in mixtures)


@pytest.fixture
def setup(setup_of):
    return setup_of()


@pytest.fixture
def space(job_of):
    return job_of().space


@pytest.fixture
def train(setup):
    runner = LocalRunner(setup)
    return lambda job: runner.run([job], lambda trial, point: True)[0]


def test_a_branch_equals_the_whole_training_and_costs_the_rest(train, space):
    even = space.uniform()
    other = Mixture.normalised(space.names, [6, 1, 1])
    trunk = train(TrainJob(1, stages(even, even), space, seed=3, turn=True))
    whole = train(TrainJob(2, stages(even, other), space, seed=3))
    job = TrainJob(3, stages(even, other), space, seed=3, branch=trunk.diagnostics["turn"])
    branch = train(job)
    assert branch.metrics == whole.metrics
    assert branch.realised == whole.realised
    assert branch.spent.rows == 96
    assert whole.spent.rows == trunk.spent.rows == 192
    assert branch.spent.steps * 2 == whole.spent.steps


def test_what_began_otherwise_is_refused(train, space):
    even = space.uniform()
    other = Mixture.normalised(space.names, [6, 1, 1])
    trunk = train(TrainJob(1, stages(even, even), space, seed=3, turn=True))
    at = trunk.diagnostics["turn"]
    for job in (
        TrainJob(2, stages(other, even), space, seed=3, branch=at),
        TrainJob(3, stages(even, even), space, seed=4, branch=at),
    ):
        result = train(job)
        assert result.status is Status.FAILED
        assert f"cannot branch off {at}" in result.error


def test_the_cheap_check_of_influence(setup, space, tmp_path):
    """Real trainings by the study: the moved mixtures go on from the parent's half-way."""
    searcher = Perturb(step=0.4, repeats=1, branch=0.5)
    small = replace(space, budget=Budget(192))
    number = len(searcher.proposals(small))
    plan = Plan(
        small,
        MultiTask(),
        Objective(),
        (Method("perturb", searcher, number),),
        confirm=Confirm(0, 0),
        standard=False,
    )
    study = Study(tmp_path / "study", plan, {})
    try:
        run_serial(study, LocalRunner(setup))
        trials = [t for t in study.history if t.method == "perturb"]
    finally:
        study.close()
    parent, moved = trials[0], trials[1:]
    assert len(moved) == 6
    assert all(t.result.status is Status.DONE for t in trials), [t.result.error for t in trials]
    assert parent.result.spent.rows == 192
    assert {t.result.spent.rows for t in moved} == {96}
    assert {round(abs(t.proposal.note["change"]), 6) for t in moved} == {0.2}
    # Half of the budget at .5, half at 1.4 times the count of the others' .5: .7 / 1.2.
    share = {d.domain: d.share for d in moved[0].result.realised}["ants"]
    assert share == pytest.approx((0.5 + 0.7 / 1.2) / 2, abs=0.005)
    found = compare(trials)
    assert found.domains == space.names
