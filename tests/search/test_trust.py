"""Verdicts on rounds of IDEAL, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymix.core.codec import encode
from raymix.core.forecast import Forecast
from raymix.core.job import Status, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import Proposal, Trial
from raymix.search.trust import GROW, SHRINK, best, judge, predicted_well

NAMES = ("a", "b", "c")
MIXTURE = Mixture.normalised(NAMES, (1, 1, 1))
PREDICTED = np.array([-3.0, -2.0, 1.0])


def trial(
    score: float, losses: tuple[float, ...] = (), repeat: int = 0, violation: float = 0.0
) -> Trial:
    before = dict.fromkeys(NAMES, 1.0)
    forecast = Forecast(0, dict(zip(NAMES, PREDICTED.tolist(), strict=True)), before)
    proposal = Proposal(MIXTURE, repeat=repeat, note={"forecast": encode(forecast)})
    metrics = {f"eval/{n}/loss": v for n, v in zip(NAMES, losses, strict=False)}
    return Trial(1, "ideal", proposal, repeat, TrainResult(Status.DONE, metrics), score, violation)


def failed(repeat: int = 0) -> Trial:
    result = TrainResult(Status.FAILED, {}, error="NaN")
    return Trial(1, "ideal", Proposal(MIXTURE, repeat=repeat), 0, result)


# ---- prediction against realisation ----


@given(st.floats(0.01, 100))
def test_a_perfect_prediction_lets_the_step_grow_whatever_its_scale(scale):
    verdict = predicted_well(NAMES, PREDICTED, scale * PREDICTED[None], 0.0)
    assert (verdict.accepted, verdict.factor, verdict.wrong) == (True, GROW, ())
    assert verdict.scale == pytest.approx(scale)


def test_the_opposite_goes_back():
    verdict = predicted_well(NAMES, PREDICTED, -PREDICTED[None] / 10, 0.0)
    assert (verdict.accepted, verdict.factor) == (False, SHRINK)
    assert verdict.scale == pytest.approx(-0.1)
    assert verdict.wrong == NAMES


def test_one_wrong_sign_keeps_the_step():
    # s = (9 + 4 - 1) / 14 = 6 / 7; left is 14 - 12^2 / 14 = 3.71: 73% are explained.
    verdict = predicted_well(NAMES, PREDICTED, np.array([[-3.0, -2.0, -1.0]]), 0.0)
    assert (verdict.accepted, verdict.factor, verdict.wrong) == (True, 1.0, ("c",))
    assert verdict.scale == pytest.approx(6 / 7)
    assert "73%" in verdict.reason


def test_a_prediction_that_explains_little_halves_the_step():
    # s = (3 + 2) / 14; s^2 14 / |r|^2 = 25 / 14 / 27 = 7% are explained.
    verdict = predicted_well(NAMES, PREDICTED, np.array([[-1.0, -1.0, 5.0]]) * -1, 0.0)
    assert not verdict.accepted, "3 + 2 + 5 the other way"
    verdict = predicted_well(NAMES, PREDICTED, np.array([[-1.0, -1.0, -5.0 / 5]]), 0.0)
    # s = 4 / 14; 16 / 14 / 3 = 38%.
    assert (verdict.accepted, verdict.factor) == (True, 1.0)
    verdict = predicted_well(NAMES, PREDICTED, np.array([[-2.0, 2.0, 0.0]]), 0.0)
    # s = 2 / 14; 4 / 14 / 8 = 4%.
    assert (verdict.accepted, verdict.factor, verdict.wrong) == (True, SHRINK, ("b",))


def test_what_is_within_noise_says_nothing():
    verdict = predicted_well(NAMES, PREDICTED, -PREDICTED[None] / 10, 0.16)
    assert (verdict.accepted, verdict.factor) == (True, 1.0)
    # At .14 two standard errors are .28: a's change of .3 is beyond them.
    assert not predicted_well(NAMES, PREDICTED, -PREDICTED[None] / 10, 0.14).accepted


def test_noise_comes_from_the_repeats_where_there_are_two():
    changes = np.array([[-1.0, -1.0, 1.0], [1.2, 1.2, -1.2]])
    # Mean .1, standard error 1.1: within noise. The setting is not looked at.
    assert predicted_well(NAMES, PREDICTED, changes, 0.0).accepted
    assert not predicted_well(NAMES, PREDICTED, changes[1:], 0.0).accepted


def test_a_forecast_of_no_change_says_nothing():
    assert predicted_well(NAMES, 0 * PREDICTED, PREDICTED[None], 0.0).factor == 1.0


# ---- one verdict ----


@pytest.mark.parametrize("trust_region", [False, True])
def test_a_worse_score_goes_back_where_the_best_is_kept(trust_region):
    worse = judge([trial(1.0)], [trial(1.1)], True, trust_region)
    assert (worse.accepted, worse.factor) == (False, SHRINK)
    assert judge([trial(1.0)], [trial(0.9)], True, False).accepted
    assert judge([trial(1.0)], [trial(1.1)], False, False).accepted


def test_guards_come_before_scores():
    assert not judge([trial(1.0)], [trial(0.5, violation=0.1)], True, False).accepted
    assert judge([trial(1.0, violation=0.2)], [trial(1.5)], True, False).accepted


def test_scores_are_compared_over_the_repeats_that_both_have():
    parent = [trial(1.0, repeat=0), trial(3.0, repeat=1)]
    assert judge(parent, [trial(2.9, repeat=1)], True, False).accepted
    assert not judge(parent, [trial(3.1, repeat=1)], True, False).accepted
    assert not judge(parent, [trial(2.0, repeat=2)], False, False).accepted


@pytest.mark.parametrize("child", [[], [failed()]])
def test_a_failed_round_goes_back(child):
    verdict = judge([trial(1.0)], child, False, False)
    assert (verdict.accepted, verdict.factor) == (False, SHRINK)


def test_trust_looks_at_each_eval_loss():
    good = trial(0.9, tuple(1.0 + 0.1 * PREDICTED))
    assert judge([trial(1.0)], [good], False, True).factor == GROW
    bad = trial(0.9, tuple(1.0 - 0.1 * PREDICTED))
    assert not judge([trial(1.0)], [bad], False, True).accepted
    assert judge([trial(1.0)], [bad], False, True, noise=1.0).accepted
    # A loss that is missing, or no number, has no say.
    partial = trial(0.9, (0.7, math.nan))
    assert judge([trial(1.0)], [partial], False, True).factor == GROW
    assert judge([trial(1.0)], [trial(0.9)], False, True).factor == 1.0


def test_the_best_of_several():
    groups = [(trial(1.0),), (), (trial(0.2, violation=1.0),), (trial(0.5), trial(1.1))]
    assert best(groups) == groups[3]
    assert best([(), ()]) == ()
