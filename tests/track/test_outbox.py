"""The outbox writes everything once, in order, and never makes its user wait."""

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from raymix.track.outbox import Batch, Outbox, UnreachableError


class Shelf:
    """Somewhere to write that fails as it is told to."""

    def __init__(self, outcomes=()):
        self.outcomes = list(outcomes)
        self.values = []
        self.calls = 0

    def _fail(self):
        self.calls += 1
        outcome = self.outcomes.pop(0) if self.outcomes else "ok"
        if outcome == "down":
            raise UnreachableError("nobody there")
        if outcome == "refused":
            raise ValueError("not that")

    def write(self, run, values):
        self._fail()
        self.values.extend((run, value) for value in values)

    def mark(self, name):
        self._fail()
        self.values.append(name)


ENTRIES = st.lists(st.one_of(st.integers(0, 2), st.just("action")), max_size=12)
OUTCOMES = st.lists(st.sampled_from(["ok", "down"]), max_size=8)


@given(ENTRIES, OUTCOMES)
def test_everything_is_written_once_and_in_order_of_its_run(entries, outcomes):
    shelf = Shelf(outcomes)
    told = []
    box = Outbox(shelf.write, told.append, gather=0.0, pause=0.0)
    expected = {run: [] for run in (0, 1, 2, "action")}
    for number, entry in enumerate(entries):
        if entry == "action":
            box.put(lambda number=number: shelf.mark(("action", number)))
        else:
            box.put(Batch(entry, (number,)))
        expected[entry].append(number)
    end = time.monotonic() + 60
    while len(shelf.values) < len(entries) and time.monotonic() < end:
        time.sleep(0.001)
    assert box.close(60) == 0
    for run, numbers in expected.items():
        assert [n for r, n in shelf.values if r == run] == numbers
    # An action stands between the batches before it and those after it.
    for number, entry in enumerate(entries):
        if entry == "action":
            place = shelf.values.index(("action", number))
            assert all(n < number for _, n in shelf.values[:place])
    assert len(told) <= 1


def test_neighbours_go_out_together():
    shelf = Shelf()
    box = Outbox(shelf.write, print, gather=60)  # which closing ends
    box.put(lambda: None)
    assert box.first_pass(60)
    for value in range(100):
        box.put(Batch(value % 2, (value,)))
    assert box.close(60) == 0
    assert shelf.calls == 2
    assert len(shelf.values) == 100


def test_what_is_refused_is_told_once_and_left_out():
    shelf = Shelf(["refused", "ok", "refused"])
    told = []
    box = Outbox(shelf.write, told.append)
    for name in "abcd":
        box.put(lambda name=name: shelf.mark(name))
    assert box.close(60) == 0
    assert shelf.values == ["b", "d"]
    assert told == ["not that"]


def test_nobody_waits_for_a_slow_other_side():
    slow = threading.Event()
    box = Outbox(lambda run, values: None, print)
    box.put(lambda: slow.wait(60) and None)
    begun = time.monotonic()
    for value in range(1000):
        box.put(Batch(0, (value,)))
    assert not box.first_pass(0.01)
    assert box.close(0.05) > 0
    assert time.monotonic() - begun < 30
    slow.set()
