"""Ends of stages and forgetting, worked by hand, and their laws."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raymix.core.forgetting import ended, ends, forgotten, parted, read, several
from raymix.core.job import Point, Status, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import Proposal, Trial

NAN = math.nan
LOSSES = arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(0, 9)
)


def curve(*stages):
    return tuple(
        Point(step, step / len(stages), {"eval/b/loss": float(step)}, stage)
        for step, stage in enumerate(stages, start=1)
    )


def trial(points, status=Status.DONE, **fields):
    proposal = Proposal(Mixture(("b", "a"), (0.5, 0.5)), **fields)
    return Trial(1, "m", proposal, 0, TrainResult(status, {}, points))


def test_forgetting_worked_by_hand():
    table = [[0.9, 2.1, 1.2, 5.0], [1.6, 1.1, 1.4, 4.0], [1.8, 1.7, 0.6, 4.5]]
    np.testing.assert_allclose(forgotten(np.array(table)), [0.9, 0.6, 0.0, 0.5])


def test_an_unknown_end_is_unknown_and_an_unknown_stage_is_passed_over():
    table = np.array([[1.0, NAN, NAN], [2.0, 1.0, 3.0], [NAN, 1.5, 3.0]])
    np.testing.assert_allclose(forgotten(table), [NAN, 0.5, 0.0])


@given(LOSSES)
@settings(deadline=None)
def test_forgetting_is_never_negative_and_nothing_after_a_single_stage(losses):
    found = forgotten(losses)
    assert found.shape == losses.shape[1:]
    assert (found >= 0).all()
    assert not forgotten(losses[:1]).any()
    assert not forgotten(np.vstack([losses, losses.min(axis=0)])).any()
    np.testing.assert_array_equal(forgotten(losses[:, ::-1]), found[::-1])
    np.testing.assert_array_equal(forgotten(np.vstack([losses[:-1][::-1], losses[-1:]])), found)


def test_a_stage_ends_with_its_last_point():
    points = curve(0, 0, 1, 1, 1, 2)
    assert {s: p.step for s, p in ends(points, True).items()} == {0: 2, 1: 5, 2: 6}
    # The last stage of one that was stopped has not ended.
    assert {s: p.step for s, p in ends(points, False).items()} == {0: 2, 1: 5}
    assert ends((), True) == {}
    # A stage that drew nothing reports nothing.
    assert list(ends(curve(0, 2), True)) == [0, 2]


def test_a_training_cut_for_branches_has_one_stage():
    points = curve(0, 0, 1)
    plain, cut = trial(points), trial(points, turn=0.5, keep=True)
    branch = trial(points, branch=3)
    assert several(plain)
    assert list(ended(plain)) == [0, 1]
    for other in (cut, branch):
        assert parted(other.proposal)
        assert not several(other)
        assert {s: p.step for s, p in ended(other).items()} == {0: 3}
    assert not several(trial(curve(0, 0)))
    assert ended(trial(points, Status.STOPPED)).keys() == {0}
    assert not several(Trial(1, "m", plain.proposal, 0))


def test_losses_are_read_in_the_order_asked_for():
    metrics = {"eval/a/loss": 1.0, "eval/b/loss": 2.0, "swap/a/loss": 3.0}
    np.testing.assert_array_equal(read(metrics, ("b", "c", "a")), [2.0, NAN, 1.0])
    np.testing.assert_array_equal(read(metrics, ("a", "b"), "swap/{}/loss"), [3.0, NAN])
