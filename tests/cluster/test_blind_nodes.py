"""Real trainings on nodes that do not see the driver's cache: they fetch the prepared data."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pool_clusters import On, nothing_remains, on_pools, ranks, same, serially
from pool_processes import log, wait_for

from raymix.cluster.config import Cluster as Settings
from raymix.core.errors import ClusterError
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.study import Study
from raymix.train.local import LocalRunner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray's test cluster reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
    # It leaves the pipes of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SMALL = {"object_store_memory": 80_000_000}

# Ray's process of a node, and with it the workers that it starts, in a mount namespace of its own:
# an empty file system lies over the driver's cache there, and there only.
HIDING = """#!/bin/sh
exec unshare --mount --propagation private sh -c '
    mount -t tmpfs -o size=16k tmpfs "{hidden}" && exec "{raylet}" "$@"' raylet "$@"
"""


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    """The driver's tables, in a folder of their own."""
    make, _ = tiny
    stores = make(Path("study")).stores
    folder = tmp_path_factory.mktemp("cache")
    for splits in stores.values():
        for path in splits.values():
            shutil.copy(path, folder)
    return folder, {
        name: {split: str(folder / Path(path).name) for split, path in splits.items()}
        for name, splits in stores.items()
    }


@pytest.fixture(scope="module")
def small(tiny, cache):
    """Makes a study of the tiny model, its checkpoints after every fifth of twenty steps."""
    (make, space), (_, stores) = tiny, cache

    def one(folder, listeners=()):
        method = Method("dirichlet", Dirichlet(), 2)
        plan = Plan(space, MultiTask(), Objective(), (method,), {}, Confirm(0, 0))
        setup = make(folder)
        training = setup.training.model_copy(update={"save_steps": 5})
        study = Study(folder, plan, {"data": "tiny"}, listeners=listeners)
        return study, replace(setup, training=training, stores=stores)

    return one


@pytest.fixture(scope="module")
def untouched(small, tmp_path_factory):
    study, setup = small(tmp_path_factory.mktemp("straight"))
    return serially(study, LocalRunner(setup))


@pytest.fixture
def cluster(cache, patient, tmp_path, monkeypatch):
    """A head without CPUs, where the driver is, and what adds nodes that see its cache or not."""
    import ray
    from ray._private import services
    from ray.cluster_utils import Cluster

    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"]).returncode != 0:
        pytest.skip("a mount namespace cannot be made here (needs root)")
    hiding = tmp_path / "hiding"
    hiding.write_text(HIDING.format(hidden=cache[0], raylet=services.RAYLET_EXECUTABLE))
    hiding.chmod(0o755)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    monkeypatch.setenv("PYTHONPATH", path)
    # A dead node is known to be dead after five seconds, in place of fifteen.
    soon = {"_system_config": {"health_check_period_ms": 1000}}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL, **soon})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)

    def add(sees, cpus, keeps=tmp_path / "node"):
        with monkeypatch.context() as patch:
            if not sees:
                patch.setattr(services, "RAYLET_EXECUTABLE", str(hiding))
                patch.setenv("RAYMIX_CACHE", str(keeps))
            return cluster.add_node(num_cpus=cpus, **SMALL)

    yield cluster, add
    ray.shutdown()
    cluster.shutdown()


def seen_from(node, folder):
    """What lies in a folder as processes of a node see it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    look = ray.remote(num_cpus=0)(lambda: sorted(path.name for path in folder.iterdir()))
    return ray.get(look.options(scheduling_strategy=there).remote())


def through(one, pools, trainer="RealTrainer"):
    return on_pools(*one, Settings(pools=pools), f"pool_trainers:{trainer}")


def arrows(folder):
    return sorted(path.name for path in folder.glob("*.arrow"))


def test_a_node_that_does_not_see_the_prepared_data_fetches_them_and_trains_the_same(
    cluster, cache, small, untouched, tmp_path
):
    import ray

    (_, add), (hidden, _) = cluster, cache
    node = add(sees=False, cpus=2)
    ray.init(log_to_driver=False)
    assert len(list(hidden.iterdir())) == 6
    assert seen_from(node, hidden) == []
    # Two pools of one worker, both on that node: whoever comes first fetches for both.
    history = through(small(tmp_path / "study"), pools=2)
    assert same(history, untouched)
    assert {home for *_, home in ranks(tmp_path / "study").values()} == {node.node_id}
    published = arrows(tmp_path / "study" / "data")
    assert len(published) == 6
    assert arrows(tmp_path / "node" / "fetched") == published
    nothing_remains(ray, tmp_path / "study")


def test_a_training_goes_on_from_its_checkpoint_on_a_node_that_came_later_and_does_not_see_them(
    cluster, cache, small, untouched, tmp_path
):
    import ray

    (nodes, add), (hidden, _) = cluster, cache
    first, folder = add(sees=True, cpus=1), tmp_path / "study"
    ray.init(log_to_driver=False)
    later = []

    def move():
        # All nodes that there were see the data, so that none had been published.
        assert not (folder / "data").exists()
        later.append(add(sees=False, cpus=1))
        wait_for(lambda: len(arrows(folder / "data")) == 6)
        wait_for(lambda: any(line[:3] == (2, 0, 15) for line in log(folder)))
        nodes.remove_node(first, allow_graceful=False)

    moving = small(folder, listeners=[On(2, 10, move)])
    assert same(through(moving, 1, "HeldRealTrainer"), untouched)
    assert seen_from(later[0], hidden) == []
    homes = {pid: home for pid, (*_, home) in ranks(folder).items()}
    before, after = first.node_id, later[0].node_id
    assert [(attempt, step, homes[pid]) for t, attempt, step, pid in log(folder) if t == 2] == [
        *((0, step, before) for step in (5, 10, 15)),
        *((1, step, after) for step in (15, 20)),
    ]
    nothing_remains(ray, folder)


def test_a_node_that_has_no_room_for_them_is_named_in_one_error_and_nothing_was_trained(
    cluster, cache, small, tmp_path
):
    import ray

    (_, add), (hidden, _) = cluster, cache
    # Its cache is the small file system that hides the driver's.
    add(sees=False, cpus=1, keeps=hidden)
    ray.init(log_to_driver=False)
    with pytest.raises(ClusterError) as error:
        through(small(tmp_path / "study"), pools=1)
    said = str(error.value)
    assert f"cannot fetch the prepared table '{hidden}/ants-train.arrow'" in said
    assert "No space left on device" in said
    assert log(tmp_path / "study") == []
    assert len(list(hidden.iterdir())) == 6
    nothing_remains(ray, tmp_path / "study")
