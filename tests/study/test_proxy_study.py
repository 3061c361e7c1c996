"""Studies of methods that work inside trainings: references, proxies, finals and their cost."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from raymix.core.codec import from_spec, to_spec
from raymix.core.job import Report, TrainJob, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import History, Role, Trial
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.search.mos import MosSearch
from raymix.search.online import Online
from raymix.search.proxy import Proxy
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan, seeded
from raymix.study.record import costs, equal_histories
from raymix.study.serial import run_serial
from raymix.study.store import FILE
from raymix.study.study import Study
from raymix.testing.toy import Toy

MEAN = Mixture.of({"math": 0.4, "code": 0.35, "chat": 0.25})
PROXY = Proxy(to_spec(DoReMi()), model="small", budget=400)


@dataclass
class Learning:
    """The toy; a training with a reweighter ends with the mean mixture `MEAN`."""

    toy: Toy
    jobs: list[TrainJob]

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        self.jobs += jobs
        results = self.toy.run(jobs, report)
        return [
            replace(result, mean_mixture=MEAN)
            if any(stage.reweighter for stage in job.stages)
            else result
            for job, result in zip(jobs, results, strict=True)
        ]


def plan(*methods: Method) -> Plan:
    goal, confirm = Objective(), Confirm(0, 0)
    return Plan(Toy().space(), MultiTask(), goal, methods, confirm=confirm, seed=5)


def finished(folder: Path, the_plan: Plan, resume: bool = False) -> tuple[History, Learning]:
    runner = Learning(Toy(noise=0.01), [])
    study = Study(folder, the_plan, {}, resume=resume)
    try:
        run_serial(study, runner)
        return study.history, runner
    finally:
        study.close()


def own(history: History, method: str) -> list[Trial]:
    return [t for t in history if t.method == method]


def test_doremi_from_reference_to_final(tmp_path):
    history, runner = finished(tmp_path, plan(Method("doremi", PROXY, PROXY.most)))
    reference, proxy, final = own(history, "doremi")
    jobs = {job.trial: job for job in runner.jobs}
    assert jobs[reference.number].keep
    assert jobs[proxy.number].reference == reference.result.checkpoint
    assert (jobs[proxy.number].model, jobs[final.number].model) == ("small", "target")
    (stage,) = jobs[proxy.number].stages
    assert from_spec(stage.reweighter) == DoReMi()
    assert stage.budget.amount == 400
    (stage,) = jobs[final.number].stages
    assert stage.reweighter is None
    assert stage.mixture.weights == pytest.approx(MEAN.weights)
    assert stage.budget.amount == 1000
    # Only verdicts look at the test split.
    assert [jobs[t.number].test for t in (reference, proxy, final)] == [False, False, True]


def test_all_of_it_is_paid_for_and_only_the_end_is_ranked(tmp_path):
    history, _ = finished(tmp_path, plan(Method("doremi", PROXY, PROXY.most)))
    reference, proxy, final = own(history, "doremi")
    assert (reference.role, proxy.role, final.role) == (Role.REFERENCE, Role.PROXY, Role.FINAL)
    ranked = {t.number for t in history.ranking()}
    assert final.number in ranked
    assert not {reference.number, proxy.number} & ranked
    assert costs(history)["doremi"].rows == 400 + 400 + 1000


def test_resumed_after_every_event_it_is_the_same_study(tmp_path):
    asked = plan(
        *seeded(Method("doremi", replace(PROXY, rounds=2), 5), 2),
        *seeded(Method("mos", Online(to_spec(MoS())), 1), 2),
        Method("policy", MosSearch(), 4),
    )
    whole, _ = finished(tmp_path / "whole", asked)
    lines = (tmp_path / "whole" / FILE).read_text().splitlines(keepends=True)
    for cut in range(5, len(lines), 7):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / FILE).write_text("".join(lines[:cut]))
        again, _ = finished(folder, asked, resume=True)
        assert equal_histories(whole, again), cut
        shutil.rmtree(folder)


def test_online_searches_in_the_scored_training_itself(tmp_path):
    methods = seeded(Method("mos", Online(to_spec(MoS())), 1), 2)
    history, runner = finished(tmp_path, plan(*methods))
    (one,), (two,) = own(history, "mos#0"), own(history, "mos#1")
    assert one.role is two.role is Role.SEARCH
    assert two.seed == one.seed + 1
    assert {t.number for t in (one, two)} <= {t.number for t in history.ranking()}
    reweighters = [job.stages[0].reweighter for job in runner.jobs if job.stages]
    assert sum(r == to_spec(MoS()) for r in reweighters) == 2
