"""Whole studies on a real Ray. What pools find is what a training in this process finds."""

import dataclasses
import time

import pytest
from pool_studies import ASHA, toy_setup, toy_study
from pool_trainers import TOY

from raymix.cluster.config import Cluster
from raymix.cluster.rehearsal import held
from raymix.cluster.single import train_on_pool
from raymix.cluster.tune import tune_study
from raymix.core.errors import ClusterError
from raymix.core.job import Status, TrainJob
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import equal_histories
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.train.local import LocalRunner

# Ray Train imports Ray Data, which reads settings of its own that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data")


def tiny_study(folder, space, trials=2, confirm=1):
    methods = (Method("dirichlet", Dirichlet(), trials),)
    plan = Plan(space, MultiTask(), Objective(), methods, confirm=Confirm(top_k=1, seeds=confirm))
    return Study(folder, plan, {"data": "tiny"})


def nothing_is_left():
    end = time.monotonic() + 90
    while left := held():
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_a_study_on_a_pool_is_the_study_in_this_process(ray_here, tiny, tmp_path):
    make, space = tiny
    there = tiny_study(tmp_path / "there", space)
    tune_study(there, make(tmp_path / "there"), Cluster(pools=1))
    here = tiny_study(tmp_path / "here", space)
    run_serial(here, LocalRunner(make(tmp_path / "here")))
    assert equal_histories(there.history, here.history)
    assert len(there.history) == 1 + 1 + 2 + 2
    assert all(trial.result.status is Status.DONE for trial in there.history)
    assert there.best() is not None
    nothing_is_left()
    assert ray_here.is_initialized()


def test_what_the_cluster_cannot_hold_is_refused_at_once(ray_here, tmp_path):
    begun = time.monotonic()
    study = toy_study(tmp_path)
    with pytest.raises(ClusterError, match=r"asked for 9 worker\(s\) .* has 1 node\(s\): 4 CPU"):
        tune_study(study, toy_setup(tmp_path), Cluster(num_workers=9))
    with pytest.raises(ClusterError, match="there is no GPU"):
        tune_study(study, toy_setup(tmp_path), Cluster(use_gpu=True))
    # Workers would wait for room for a minute, four times.
    assert time.monotonic() - begun < 60
    assert len(study.history) == 0
    nothing_is_left()


@pytest.mark.slow
def test_one_training_on_a_pool_of_its_own(ray_here, tmp_path):
    space, points = TOY.space(), []
    job = TrainJob(0, MultiTask().stages(space.prior, space.budget, {}), space, seed=3)

    def report(trial, point):
        points.append(point)
        return True

    trainer = "pool_trainers:ToyTrainer"
    found = train_on_pool(job, toy_setup(tmp_path), Cluster(num_workers=2), report, trainer)
    (expected,) = TOY.run([job], lambda trial, point: True)
    assert found == expected
    assert tuple(points) == expected.curve
    nothing_is_left()


@pytest.mark.slow
def test_two_pools_with_asha_stop_trainings_and_the_workers_live_on(ray_here, tmp_path):
    study = toy_study(tmp_path, trials=8, confirm=2)
    tune_study(study, toy_setup(tmp_path), Cluster(pools=2), ASHA, "pool_trainers:ToyTrainer")
    stopped = [t for t in study.history if t.result.status is Status.STOPPED]
    assert stopped
    assert all(t.method == "dirichlet" for t in stopped)
    assert all(len(t.result.curve) < 4 for t in stopped)
    after = [t for t in study.history if t.number > stopped[0].number]
    assert any(t.result.status is Status.DONE for t in after)
    nothing_is_left()


@pytest.mark.slow
def test_serial_with_asha_is_the_same_twice_and_when_cut_in_two(ray_here, tmp_path):
    histories = []
    for name in ("once", "twice"):
        study = toy_study(tmp_path / name, trials=8, confirm=1)
        folder = toy_setup(tmp_path / name)
        tune_study(study, folder, Cluster(pools=1), ASHA, "pool_trainers:ToyTrainer")
        histories.append(study.history)
        study.close()
    assert equal_histories(*histories)
    # The first half of the events, as if the driver had died; the rest from the file.
    lines = (tmp_path / "once" / "history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "history.jsonl").write_text("".join(lines[: len(lines) // 2]))
    study = toy_study(tmp_path / "cut", trials=8, confirm=1, resume=True)
    tune_study(study, toy_setup(tmp_path), Cluster(pools=1), ASHA, "pool_trainers:ToyTrainer")
    assert equal_histories(study.history, histories[0])


@pytest.mark.slow
def test_two_sharded_workers_find_what_one_finds(ray_here, tiny, tmp_path):
    make, space = tiny
    losses = {}
    for workers in (1, 2):
        setup = make(tmp_path / str(workers))
        batch = setup.training.per_device_train_batch_size // workers
        training = setup.training.model_copy(update={"per_device_train_batch_size": batch})
        study = tiny_study(tmp_path / str(workers), space, trials=1, confirm=0)
        tune_study(
            study,
            dataclasses.replace(setup, training=training),
            Cluster(pools=1, num_workers=workers),
        )
        losses[workers] = [t.score for t in study.history]
    assert losses[2] == pytest.approx(losses[1], abs=1e-4)
    nothing_is_left()


@pytest.mark.slow
def test_trainings_that_fail_are_recorded_and_the_study_ends(ray_here, tmp_path):
    study = toy_study(tmp_path, trials=2)
    tune_study(study, toy_setup(tmp_path), Cluster(pools=1), None, "pool_trainers:WrongTrainer")
    assert [t.result.status for t in study.history][1:] == [Status.FAILED] * 4
    assert study.history.trials[1].result.error == "loss is NaN"
    nothing_is_left()
