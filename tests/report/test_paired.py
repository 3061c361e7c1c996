"""Paired differences: worked by hand, and how often pure noise is called a difference."""

import numpy as np
import pytest
from scipy import stats

from raymix.report.paired import differences, moderated


def test_by_hand():
    # Means 2 and 0; squares about them .02 and .02 with one degree each: a pooled variance of .02.
    ((first, second),) = differences([np.array([[1.9, 2.1], [-0.1, 0.1]])])
    assert first.value == pytest.approx(2.0)
    error = np.sqrt(0.02 / 2)
    width = stats.t.ppf(1 - 0.05 / 4, 2) * error
    assert (first.low, first.high) == pytest.approx((2 - width, 2 + width))
    assert first.p == pytest.approx(2 * 2 * stats.t.sf(2 / error, 2))
    assert first.real
    assert second.value == pytest.approx(0.0)
    assert second.p == pytest.approx(1.0)
    assert not second.real


def test_all_tables_are_one_family():
    one = np.array([[1.9, 2.1], [-0.1, 0.1]])
    found = differences([one, one])
    # Four comparisons now, with the noise of all four: four degrees.
    assert found[0][0].p == pytest.approx(4 * 2 * stats.t.sf(20, 4))
    assert found[0] == found[1]


def test_variances_are_drawn_to_what_is_usual():
    # The law that is assumed: degrees 4 and scale 2; samples of three.
    rng = np.random.default_rng(0)
    true = 2.0 * 4 / rng.chisquare(4, 4000)
    own = true * rng.chisquare(2, 4000) / 2
    found, freedom = moderated(own, np.full(4000, 2))
    assert freedom == pytest.approx(np.full(4000, 6), rel=0.1)
    np.testing.assert_allclose(found, (4 * 2.0 + 2 * own) / 6, rtol=0.15)
    # Nearer to the truth than the samples are.
    assert np.mean(np.log(found / true) ** 2) < 0.5 * np.mean(np.log(own / true) ** 2)


def test_what_is_missing_is_left_out():
    table = np.array([[1.0, 1.1, np.nan], [np.nan] * 3, [0.0, 0.1, -0.1]])
    first, none, _ = differences([table])[0]
    assert first.value == pytest.approx(1.05)
    assert np.isnan([none.value, none.p, none.low]).all()
    assert not none.real
    (single,) = differences([np.array([[1.0]])])[0]
    assert single.value == 1.0
    assert np.isnan(single.p)


def test_equal_trainings_do_not_differ():
    (same,) = differences([np.zeros((1, 3))])[0]
    assert same.p == 1.0
    assert not same.real


@pytest.mark.parametrize("spread", [(1, 1, 1, 1, 1), (0.2, 1, 1, 1, 0.2), (0.1, 0.1, 3, 1, 0.1)])
def test_pure_noise_is_seldom_called_a_difference(spread):
    rng, wrong, tries = np.random.default_rng(3), 0, 200
    for _ in range(tries):
        tables = [rng.normal(size=(5, 3)) * np.array(spread)[:, None] for _ in range(4)]
        wrong += any(d.real for row in differences(tables) for d in row)
    # 5% of families nominally; three standard errors are .046.
    assert wrong / tries < 0.1
