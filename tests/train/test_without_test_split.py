"""Domains without a test split: what would look at it does without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raymix.core.job import Status, TrainJob
from raymix.core.trial import Role
from raymix.report.facts import facts, repeats
from raymix.report.verdict import verdict
from raymix.search.fixed import Fixed
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.train.local import LocalRunner
from raymix.train.worker import Worker

LACKING = {"all": ("ants", "bees", "cats"), "one": ("bees",)}


@pytest.fixture(params=LACKING)
def setup(request, setup_of):
    made = setup_of()
    bare = LACKING[request.param]
    stores = {
        name: {split: p for split, p in paths.items() if split != "test" or name not in bare}
        for name, paths in made.stores.items()
    }
    return replace(made, stores=stores)


def splits(result):
    return {key.split("/")[0] for key in result.metrics} & {"eval", "test"}


def test_a_job_that_asks_for_the_test_split_ends_without(setup, job_of, keep_points):
    worker = Worker(setup)
    base = worker.run(TrainJob(0, (), job_of().space, 3, test=True), keep_points)
    trained = worker.run(job_of(80, test=True), keep_points)
    for result in (base, trained):
        assert result.status is Status.DONE, result.error
        assert splits(result) == {"eval"}
    assert {f"eval/{name}/loss" for name in setup.stores} <= trained.metrics.keys()


def test_the_other_domains_of_a_setup_do_not_count(setup_of, job_of, keep_points):
    """`bees` is in the setup and not in the job."""
    setup, job = setup_of(), job_of(80, test=True)
    stores = {**setup.stores, "dogs": {"train": setup.stores["ants"]["train"]}}
    result = Worker(replace(setup, stores=stores)).run(job, keep_points)
    assert splits(result) == {"eval", "test"}


def test_a_study_ends_with_a_verdict_on_eval(setup, job_of, tmp_path):
    space = job_of(80).space
    other = replace(space.uniform(), weights=(0.2, 0.3, 0.5))
    methods = (Method("fixed", Fixed((other,)), 1),)
    plan = Plan(space, MultiTask(), Objective(), methods, confirm=Confirm(1, 2), seed=5)
    folder = tmp_path / "study"
    study = Study(folder, plan, {})
    try:
        run_serial(study, LocalRunner(setup))
        trials = list(study.history)
    finally:
        study.close()
    assert {t.result.status for t in trials} == {Status.DONE}
    assert Role.CONFIRM in {t.role for t in trials}
    assert all(splits(t.result) == {"eval"} for t in trials)
    assert verdict(repeats(facts(read(folder)))).split == "eval"
