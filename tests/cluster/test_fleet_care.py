"""The fleet without Ray: what it counts, and that its thread outlives what goes wrong."""

import threading
from types import SimpleNamespace

import pytest

from raymix.cluster import fleet, worker
from raymix.cluster.fleet import Fleet
from raymix.cluster.pool import Pool
from raymix.cluster.worker import paced
from raymix.core.errors import ClusterError


class Told:
    """A method of an actor, whose answer is there at once."""

    def __init__(self, answer):
        self.remote = lambda *args: answer


class IdleDesk:
    """All of its pools are up and none hangs."""

    gone = Told(None)
    watch = Told({"silent": {}, "up": {"pool-0": True, "pool-1": True}})


class IdlePool:
    def __init__(self, name):
        self.name = name

    def start(self):
        pass

    def forget(self):
        pass

    def close(self, hurry=False):
        pass


@pytest.fixture
def tended(monkeypatch):
    """Makes a fleet of idle pools, given how many are wanted; it is closed after the test."""
    monkeypatch.setattr(fleet.ray, "get", lambda answer: answer)
    monkeypatch.setattr(fleet, "close_all", lambda *args: None)
    monkeypatch.setattr(fleet, "_TICK", 0.01)
    made = []

    def make(wanted, failed):
        said = []
        one = Fleet(IdleDesk, lambda n, broke: IdlePool(n), wanted, 60.0, failed, said.append)
        made.append(one)
        return one, said

    yield make
    for one in made:
        one.close(hurry=True)


def test_the_place_of_a_pool_that_broke_is_given_up_before_anybody_looks(tended):
    failed = []

    def hear(name, error):
        # As the fleet's own thread may do as soon as it can.
        care._look()
        failed.append(name)

    care, resized = tended(lambda: 2, hear)
    care._add()
    care._add()
    care._broke("pool-1", ClusterError("no such model"))
    assert failed == ["pool-1"]
    assert list(care._pools) == ["pool-0"]
    assert resized == []


def test_whatever_goes_wrong_the_pools_are_looked_after(tended, caplog):
    looks = []
    enough = threading.Event()

    def wanted():
        looks.append(None)
        if len(looks) == 1:
            raise OSError("the cluster's description cannot be read")
        enough.set()
        return 1

    care, _ = tended(wanted, lambda name, error: None)
    care.start(1)
    assert enough.wait(30)
    assert "OSError: the cluster's description cannot be read" in caplog.text


def test_a_pool_that_cannot_free_what_it_held_still_tells_of_its_end(monkeypatch, caplog):
    def breaks(prefix):
        raise ConnectionError("no cluster")

    class Broken:
        def fit(self):
            raise ClusterError("no such model")

    monkeypatch.setattr("raymix.cluster.pool._free", breaks)
    failed = []
    pool = Pool.__new__(Pool)
    pool.name, pool._desk, pool._trainer = "pool-0", "desk", Broken()
    pool._closing, pool._failed = threading.Event(), lambda *args: failed.append(args)
    pool._fit()
    ((name, error),) = failed
    assert (name, str(error)) == ("pool-0", "no such model")
    assert "no cluster" in caplog.text


def test_signs_of_life_are_not_said_more_often_than_asked(monkeypatch):
    times = iter([100.0, 100.5, 109.9, 110.0, 110.1, 150.0, 151.0])
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: next(times)))
    said = []
    call = paced(lambda: said.append(None), 10.0)
    counts = []
    for _ in range(7):
        call()
        counts.append(len(said))
    assert counts == [1, 1, 1, 2, 2, 3, 3]
