"""Pools on a cluster of several nodes: where they lie, and how many there are as nodes move."""

import pytest
from pool_clusters import nothing_remains, ranks, same, straight, through
from pool_processes import wait_for

from raymix.cluster.config import Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray's test cluster reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
    # It leaves the pipes of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def groups(folder):
    """Nodes of each worker group, a group being known by rank 0's place in the list."""
    found = {}
    for rank, size, node in ranks(folder).values():
        found.setdefault(size, []).append((rank, node))
    return found


def test_a_pool_lies_on_one_node_where_it_fits_and_is_spread_where_not(nodes, tmp_path):
    import ray

    through(tmp_path / "two", "BriskTrainer", Cluster(pools=1, num_workers=2), trials=0)
    (two,) = groups(tmp_path / "two").values()
    assert sorted(rank for rank, _ in two) == [0, 1]
    assert len({node for _, node in two}) == 1
    through(tmp_path / "three", "BriskTrainer", Cluster(pools=1, num_workers=3), trials=0)
    (three,) = groups(tmp_path / "three").values()
    assert sorted(rank for rank, _ in three) == [0, 1, 2]
    places = [node for _, node in three]
    assert sorted(places.count(node) for node in set(places)) == [1, 2]
    nothing_remains(ray, tmp_path / "two")
    nothing_remains(ray, tmp_path / "three")


class Moves:
    """A listener that has a node come and go, and notes how many trials ran at once.

    While it waits, trials train but none is asked, so that there are trials for what comes.
    """

    def __init__(self, folder, nodes, said):
        self.folder, self.nodes, self.said = folder, nodes, said
        self.running, self.at_once, self.after = set(), [], []
        self.node = None
        self.removed = self.noticed = False

    def trial_started(self, trial):
        self.running.add(trial.number)
        (self.after if self.noticed else self.at_once).append(len(self.running))

    def reported(self, trial, point):
        if self.node is None:
            self.node = self.nodes.add_node(num_cpus=2, object_store_memory=80_000_000)
            wait_for(lambda: self.node.node_id in homes(self.folder))
        elif self.removed and not self.noticed:
            wait_for(lambda: "the cluster has no room for it any more" in self.said.text)
            self.noticed = True
        elif not self.removed and len(self.running) == 3:
            self.nodes.remove_node(self.node, allow_graceful=False)
            self.removed = True

    def trial_ended(self, trial):
        self.running.discard(trial.number)


def homes(folder):
    return {node for *_, node in ranks(folder).values()}


def test_pools_come_with_a_node_and_go_with_it_and_the_others_go_on(nodes, tmp_path, caplog):
    import ray

    trials = 14
    moves = Moves(tmp_path, nodes, caplog)
    history = through(tmp_path, "BriskTrainer", Cluster(num_workers=2), trials, listeners=[moves])
    assert moves.noticed
    # A third pool on the new node and a trial for each of the three; then two of them, no more.
    assert max(moves.at_once) == 3
    assert len(moves.after) > 3
    assert max(moves.after[2:]) <= 2, moves.after
    # Random mixtures know nothing of each other, so the order of the trials is no matter.
    assert same(history, straight(tmp_path / "straight", trials))
    nothing_remains(ray, tmp_path)
