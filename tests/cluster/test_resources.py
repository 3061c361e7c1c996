"""How many pools fit, by hand; and what is said when none does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymix.cluster.config import Cluster
from raymix.cluster.resources import Change, Need, change, holds, plan
from raymix.core.errors import ClusterError


def node(cpu=0.0, gpu=0.0):
    return {"CPU": cpu, "GPU": gpu, "memory": 1e9} if gpu else {"CPU": cpu, "memory": 1e9}


def test_as_many_pools_as_fit():
    assert plan(Cluster(), [node(4)]).pools == 4
    assert plan(Cluster(num_workers=2), [node(5)]).pools == 2
    assert plan(Cluster(cpus_per_worker=3), [node(4), node(8)]).pools == 1 + 2
    assert plan(Cluster(pools=2), [node(16)]).pools == 2


def test_gpus_are_used_where_there_are_any():
    assert plan(Cluster(), [node(64, 8)]).need == Need(1, 1.0, 1.0)
    assert plan(Cluster(), [node(64, 8)]).pools == 8
    assert plan(Cluster(num_workers=4), [node(4), node(8, 4), node(8, 4)]).pools == 2
    assert plan(Cluster(gpus_per_worker=0.5), [node(8, 1)]).pools == 2
    assert plan(Cluster(use_gpu=False), [node(8, 1)]).need == Need(1, 1.0, 0.0)
    assert plan(Cluster(), [node(2, 4)]).pools == 2


def test_a_worker_needs_a_whole_node_for_itself():
    with pytest.raises(ClusterError, match=r"1 worker\(s\) with 6 CPU each"):
        plan(Cluster(cpus_per_worker=6), [node(4), node(4)])


def test_too_little_is_an_error_that_says_what_is_there():
    with pytest.raises(ClusterError) as error:
        plan(Cluster(num_workers=3), [node(2)])
    assert "asked for 3 worker(s) with 1 CPU each" in str(error.value)
    assert "the cluster has 1 node(s): 2 CPU, 0 GPU" in str(error.value)
    with pytest.raises(ClusterError, match="asked for 3 pools of 1 worker"):
        plan(Cluster(pools=3), [node(2)])
    with pytest.raises(ClusterError, match="no GPU"):
        plan(Cluster(use_gpu=True), [node(2)])
    with pytest.raises(ClusterError, match="1 GPU each; the cluster has 2 node"):
        plan(Cluster(num_workers=3), [node(2), node(8, 2)])


def test_an_autoscaler_may_bring_what_is_missing():
    most = {"CPU": 66.0, "GPU": 8.0}
    found = plan(Cluster(num_workers=4), [node(2)], most)
    assert (found.pools, found.growing, found.need.gpus) == (2, True, 1.0)
    assert not plan(Cluster(pools=1), [node(8, 4)], most).growing
    with pytest.raises(ClusterError, match="9 worker"):
        plan(Cluster(num_workers=9), [node(2)], most)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_what_is_planned_fits(sizes, workers, cpus):
    nodes = [node(cpu, gpu) for cpu, gpu in sizes]
    cluster = Cluster(num_workers=workers, cpus_per_worker=cpus)
    try:
        found = plan(cluster, nodes)
    except ClusterError:
        return
    places = sum(found.need.fit(n) for n in nodes)
    assert found.pools * workers <= places < (found.pools + 1) * workers


def test_pools_are_counted_on_the_nodes_that_are_there_and_those_that_may_come():
    need = Need(2, 1.0, 0.0)
    assert holds(need, [node(2), node(3)]) == 2
    assert holds(need, []) == 0
    assert holds(need, [node(2)], {"CPU": 7.0}) == 3


def test_pools_change_by_hand():
    up, down = True, False
    assert change(2, {"a": up, "b": down}) == Change()
    assert change(4, {"a": up, "b": up}) == Change(start=2)
    # A node has gone: who was on it ends, whoever that is.
    assert change(2, {"a": up, "b": down, "c": up}) == Change(end=("b",))
    assert change(1, {"a": down, "b": down, "c": up}) == Change(end=("b", "a"))
    assert change(2, {"a": down, "b": down, "c": up}) == Change(end=("b",))
    # It is not yet known who was there.
    assert change(1, {"a": up, "b": up}) == Change()
    # All nodes have gone: one waits.
    assert change(0, {"a": down, "b": down}) == Change(end=("b",))
    assert change(-3, {"a": down}) == Change()


@given(st.integers(-2, 6), st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_change_ends_no_working_pool_and_comes_to_what_is_wanted(wanted, states):
    pools = {f"pool-{i}": up for i, up in enumerate(states)}
    todo = change(wanted, pools)
    assert not any(pools[name] for name in todo.end)
    after = len(pools) + todo.start - len(todo.end)
    working = sum(states)
    assert after == (max(1, wanted) if max(1, wanted) >= working else max(working, 1))
    # Nothing is left to do.
    left = {name: up for name, up in pools.items() if name not in todo.end}
    assert change(wanted, left | {f"new-{i}": True for i in range(todo.start)}) == Change()
