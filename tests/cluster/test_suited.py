"""How long workers wait for room: as the cluster is, not as its plan is."""

import pytest

from raymix.cluster import session
from raymix.cluster.resources import Need, Plan

MACHINES = (({"CPU": 4.0}, 2),)


@pytest.mark.parametrize(
    ("nodes", "kinds", "seconds"),
    [(1, (), "60"), (3, (), "300"), (1, MACHINES, "1800"), (3, MACHINES, "1800")],
)
def test_a_lost_node_may_be_replaced_before_a_pool_is_given_up(monkeypatch, nodes, kinds, seconds):
    dead = {"Alive": False, "Resources": {}}
    alive = [{"Alive": True, "Resources": {"CPU": 4.0}}] * nodes
    monkeypatch.setattr(session.ray, "nodes", lambda: [*alive, dead])
    monkeypatch.setattr(session, "kinds", lambda: kinds)
    # Whether it grows says only that there is no room yet for all pools that are wanted.
    plan = Plan(1, Need(1, 1.0, 0.0), growing=False)
    assert session.suited(plan)["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == seconds
