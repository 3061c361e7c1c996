"""Faults on a real cluster of two nodes; each study ends as the one that nothing happened to."""

import os
import signal
import time

import pytest
from pool_clusters import On, nothing_remains, pids, ranks, same, straight, through
from pool_processes import comes_to, finish, log
from pool_trainers import DEADLY, HANGING, QUIET, STOPPED

from raymix.cluster import fleet
from raymix.cluster.config import Cluster
from raymix.core.job import Status
from raymix.study.record import read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray's test cluster reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
    # It leaves the pipes of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    return straight(tmp_path_factory.mktemp("straight"))


def deliveries(folder, trial):
    """Numbers of the deliveries of a trial that took steps, in order."""
    seen = [attempt for number, attempt, *_ in log(folder) if number == trial]
    return list(dict.fromkeys(seen))


def test_a_killed_worker_process_of_two(nodes, tmp_path, untouched):
    import ray

    killed = []

    def kill():
        # Of two workers the one that only listens: rank 0 must not take that for a result.
        (victim,) = [pid for pid, (rank, *_) in ranks(tmp_path).items() if rank == 1]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    cluster = Cluster(pools=1, num_workers=2)
    history = through(tmp_path, "BriskTrainer", cluster, listeners=[On(2, 5, kill)])
    assert killed
    assert same(history, untouched)
    assert deliveries(tmp_path, 2) == [0, 1]
    steps = [step for number, *_, step, _ in log(tmp_path) if number == 2]
    # It goes on from the checkpoint: at most the step that was under way is taken again.
    assert len(steps) <= 11
    assert all(deliveries(tmp_path, number) == [0] for number in (1, 3, 4)), log(tmp_path)
    nothing_remains(ray, tmp_path)


@pytest.mark.parametrize("pools", [1, 2])
def test_a_killed_controller_of_a_pool(nodes, tmp_path, untouched, pools):
    import ray

    killed = []

    def kill():
        # Ray's own process on the head, which starts a pool's workers anew when they die.
        actors = ray._private.state.actors().values()
        alive = [a for a in actors if a["State"] == "ALIVE"]
        victim = next(a for a in alive if a["ActorClassName"] == "TrainController")
        os.kill(victim["Pid"], signal.SIGKILL)
        killed.append(victim["Pid"])

    history = through(tmp_path, "BriskTrainer", Cluster(pools=pools), listeners=[On(2, 5, kill)])
    assert killed
    assert same(history, untouched)
    # Another pool has taken its place, if only for the end of the study.
    assert pools > 1 or len(pids(tmp_path)) == 2
    nothing_remains(ray, tmp_path)


def test_a_training_that_hangs_is_ended_and_one_that_only_says_nothing_is_not(
    nodes, tmp_path, untouched
):
    import ray

    history = through(tmp_path, "HangingTrainer", Cluster(pools=1, step_timeout=15))
    assert same(history, untouched)
    # One slept in Python, one was stopped by a signal, one took steps for longer than the limit.
    assert deliveries(tmp_path, HANGING) == [0, 1]
    assert deliveries(tmp_path, STOPPED) == [0, 1]
    assert deliveries(tmp_path, QUIET) == [0]
    assert len(pids(tmp_path)) == 3
    nothing_remains(ray, tmp_path)


def test_workers_that_hang_as_they_start_are_replaced(nodes, tmp_path, untouched, monkeypatch):
    import ray

    monkeypatch.setattr(fleet, "START", 60.0)
    history = through(tmp_path, "StuckTrainer", Cluster(pools=1, step_timeout=30))
    assert same(history, untouched)
    assert all(deliveries(tmp_path, number) == [0] for number in range(1, 5))
    assert len(pids(tmp_path)) == 2
    nothing_remains(ray, tmp_path)


def test_a_trial_that_always_kills_its_worker_is_given_up_and_the_search_goes_on(
    nodes, tmp_path, untouched
):
    import ray

    history = through(tmp_path, "BriskDeadlyTrainer")
    failed = history.trials[DEADLY].result
    assert failed.status is Status.FAILED
    assert "workers died 3 times" in failed.error
    assert len(history) == len(untouched)
    others = [trial for trial in history if trial.number != DEADLY]
    expected = [trial for trial in untouched if trial.number != DEADLY]
    assert [(t.mixture, t.score) for t in others] == [(t.mixture, t.score) for t in expected]
    nothing_remains(ray, tmp_path)


def test_a_second_driver_is_refused_and_a_killed_one_is_followed_by_the_next(
    nodes, start, tmp_path, untouched
):
    import ray

    first = start(tmp_path, "HeldTrainer")
    comes_to(first, tmp_path, trial=2, step=4)
    second = start(tmp_path, "HeldTrainer")
    output = finish(second, 120)
    assert second.returncode == 1
    assert f"another driver (pid {first.pid} on " in output
    assert first.poll() is None
    first.kill()
    finish(first, 60)
    # The cluster lives on and has let go of everything that the driver held.
    nothing_remains(ray, tmp_path)
    pending = [trial.number for trial in read(tmp_path).history if trial.pending]
    assert pending == [2]

    third = start(tmp_path, "HeldTrainer")
    output = finish(third)
    assert third.returncode == 0, output
    assert same(read(tmp_path).history, untouched)
    assert deliveries(tmp_path, 2) == [0, 1]
    nothing_remains(ray, tmp_path)


def test_a_node_goes_in_mid_trial_and_another_comes(nodes, tmp_path, untouched):
    import ray

    removed = []

    def remove():
        (home,) = {node for *_, node in ranks(tmp_path).values()}
        (host,) = [node for node in nodes.list_all_nodes() if node.node_id == home]
        nodes.remove_node(host, allow_graceful=False)
        removed.append(home)

    begun = time.monotonic()
    try:
        history = through(tmp_path, "BriskTrainer", listeners=[On(2, 5, remove)])
    finally:
        nodes.add_node(num_cpus=2, object_store_memory=80_000_000)
    assert removed
    # Less than workers wait for room: they did not wait for the node that has gone.
    assert time.monotonic() - begun < 250
    assert same(history, untouched)
    assert deliveries(tmp_path, 2) == [0, 1]
    steps = [(attempt, step) for number, attempt, step, _ in log(tmp_path) if number == 2]
    last, first = max(s for a, s in steps if a == 0), min(s for a, s in steps if a == 1)
    assert first in (last, last + 1)
    homes = [node for *_, node in ranks(tmp_path).values()]
    assert homes[0] == removed[0] != homes[1]
    nothing_remains(ray, tmp_path)
