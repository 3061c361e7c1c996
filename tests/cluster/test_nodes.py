"""A cluster that was there before: a head, two more nodes, one of them lost in mid-study."""

import os
import sys
import time
from pathlib import Path

import pytest
from pool_processes import comes_to, finish, log

from raymix.core.job import Status
from raymix.study.record import read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Ray's test cluster reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
    # It leaves the pipes of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs and two nodes with one each."""
    import ray
    from ray.cluster_utils import Cluster

    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, sys.path)]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def parents(pid):
    import psutil

    return {process.pid for process in psutil.Process(pid).parents()}


def test_a_training_moves_to_another_node_and_nothing_is_left(cluster, start, tmp_path):
    import ray
    from ray.util import placement_group_table

    cluster, nodes = cluster
    process = start(tmp_path, "SlowTrainer", trials=1)
    comes_to(process, tmp_path, trial=2, step=20)
    worker = log(tmp_path)[-1][3]
    theirs = parents(worker)
    (host,) = [n for n in nodes if n.all_processes["raylet"][0].process.pid in theirs]
    cluster.remove_node(host, allow_graceful=False)
    output = finish(process)
    assert process.returncode == 0, output
    assert all(trial.result.status is Status.DONE for trial in read(tmp_path).history)
    steps = [(attempt, step) for trial, attempt, step, _ in log(tmp_path) if trial == 2]
    assert {attempt for attempt, _ in steps} == {0, 1}
    last, first = max(s for a, s in steps if a == 0), min(s for a, s in steps if a == 1)
    assert first in (last, last + 1)
    assert worker != log(tmp_path)[-1][3]

    # The cluster lives on, and nothing of the study holds any of it.
    ray.init(address=cluster.address, log_to_driver=False)
    end = time.monotonic() + 30
    while left := [g for g in placement_group_table().values() if g["state"] != "REMOVED"]:
        assert time.monotonic() < end, left
        time.sleep(0.2)
    assert ray.available_resources().get("CPU") == 1
    living = [a for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
    assert {actor["Name"] for actor in living} <= {"AutoscalingCoordinator"}, living
