"""The saturating power law: recovered where it is true, honest where the data do not tell."""

import numpy as np
import pytest

from raymix.report.law import GROWS, SATURATED, WORSE, Law, fit

ROWS = np.repeat([450.0, 112.0, 28.0, 7.0, 2.0], 3)


def seen(law, noise=0.0, seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    return fit(rows, law(rows) + noise * rng.normal(size=len(rows)), law.base)


def test_the_law_by_hand():
    law = Law(base=3.0, floor=1.0, scale=10.0, power=2.0)
    # Half way at n0; at three times that, 1 / (1 + 9) of the way is left.
    np.testing.assert_allclose(law(np.array([0.0, 10.0, 30.0])), [3.0, 2.0, 1.2])
    # Far out it is the power law E + (B - E) (n / n0)^-a.
    far = np.array([1e4, 2e4])
    np.testing.assert_allclose(law(far) - 1.0, 2.0 * (far / 10.0) ** -2, rtol=1e-5)


@pytest.mark.parametrize(
    "law",
    [
        Law(2.44, 0.3, 150.0, 2.0),
        Law(2.44, 0.3, 20.0, 1.0),
        Law(2.44, 0.0, 3000.0, 0.5),
        Law(2.44, 2.9, 50.0, 1.0),
        Law(5.0, 1.0, 5000.0, 0.4),
    ],
    ids=str,
)
@pytest.mark.parametrize("repeats", [1, 3])
def test_a_law_without_noise_is_recovered(law, repeats):
    found = seen(law, rows=np.repeat(np.unique(ROWS), repeats))
    assert found.law.floor == pytest.approx(law.floor, abs=1e-5)
    assert found.law.scale == pytest.approx(law.scale, rel=1e-4)
    assert found.law.power == pytest.approx(law.power, rel=1e-5)
    near = law(np.array([225.0, 450.0, 900.0]))
    assert found.last.value == pytest.approx(near[0] - near[1], abs=1e-7)
    assert found.next.value == pytest.approx(near[1] - near[2], abs=1e-6)
    assert found.last.high - found.last.low < 1e-4


@pytest.mark.parametrize(
    "law", [Law(2.44, 0.3, 150.0, 2.0), Law(2.44, 0.3, 20.0, 1.0), Law(2.44, 1.0, 600.0, 1.0)]
)
def test_intervals_hold_the_truth_at_about_the_nominal_rate(law):
    where = law(np.array([225.0, 450.0, 900.0]))
    truth = {"floor": law.floor, "power": law.power}
    truth |= {"last": where[0] - where[1], "next": where[1] - where[2]}
    tries, rows = 100, np.unique(ROWS)
    held = dict.fromkeys(truth, 0)
    inside = 0
    for seed in range(tries):
        found = seen(law, 0.08, seed)
        for name, value in truth.items():
            interval = getattr(found, name)
            held[name] += interval.low <= value <= interval.high
        low, high = found.band(rows)
        inside += np.mean((low <= law(rows)) & (law(rows) <= high))
    # 95% nominal, less three standard errors.
    least = 0.95 - 3 * np.sqrt(0.95 * 0.05 / tries)
    for name, count in held.items():
        assert count / tries >= least, name
    assert inside / tries >= least


def test_a_flat_curve_is_saturated_and_has_no_parameters():
    flat = Law(2.44, 2.44, 100.0, 1.0)
    words = [seen(flat, 0.05, seed).word for seed in range(12)]
    assert words.count(SATURATED) >= 9
    found = seen(flat, 0.05)
    assert not found.floor.bounded
    assert not found.power.bounded
    assert seen(flat).word == SATURATED


def test_a_curve_that_has_come_to_its_floor_is_saturated():
    done = Law(2.44, 0.35, 10.0, 2.0)
    found = [seen(done, 0.03, seed) for seed in range(20)]
    assert [each.word for each in found].count(SATURATED) >= 19
    assert all(each.floor.bounded and each.floor.low < 0.36 for each in found)


def test_a_curve_with_no_floor_in_sight_still_grows():
    endless = Law(2.44, 0.0, 3000.0, 0.8)
    found = [seen(endless, 0.03, seed) for seed in range(20)]
    assert [each.word for each in found].count(GROWS) == 20
    # Its floor may be anywhere below (in as many studies as an interval must hold the truth).
    assert sum(each.floor.low == -np.inf for each in found) >= 18


def test_a_curve_that_rises_gets_worse():
    found = [seen(Law(2.44, 3.2, 100.0, 1.5), 0.03, seed) for seed in range(20)]
    assert [each.word for each in found].count(WORSE) >= 19


def test_a_late_onset_is_no_lack_of_fit():
    # Nothing but the last amount has fallen: the law can be flat first, and its floor is unknown.
    losses = np.repeat([0.67, 2.31, 2.45, 2.44, 2.44], 3) + np.tile([-0.02, 0.0, 0.02], 5)
    found = fit(ROWS, losses, 2.44)
    assert found.fits
    assert found.word == GROWS
    # Anything from next to nothing to what was seen.
    assert found.floor.low < 0.1
    assert found.floor.high > 0.6
    assert found.power.high == np.inf
    assert found.noise == pytest.approx(0.02)
    assert found.freedom == 10


def test_what_the_law_cannot_be_is_told():
    # Down and up again.
    losses = np.repeat([2.4, 1.2, 1.1, 2.3, 2.44], 3) + np.tile([-0.02, 0.0, 0.02], 5)
    assert not fit(ROWS, losses, 2.44).fits


def test_too_little_gives_no_fit_or_no_interval():
    assert fit(np.array([1.0, 1.0, 4.0]), np.array([2.0, 2.1, 1.0]), 2.5) is None
    assert fit(np.array([1.0, 4.0, 16.0]), np.array([2.0, np.nan, 1.0]), 2.5) is None
    assert fit(np.array([1.0, 4.0, 16.0]), np.array([2.0, 1.5, 1.0]), np.nan) is None
    bare = fit(np.array([1.0, 4.0, 16.0]), np.array([2.4, 1.5, 1.0]), 2.5)
    assert np.isnan([bare.last.low, bare.floor.high, bare.power.low]).all()
    assert bare.word == "cannot tell"


def test_no_floor_below_zero():
    rows = np.array([10.0, 40.0, 160.0, 640.0])
    found = fit(np.repeat(rows, 2), np.repeat(2.4 - 0.3 * np.log2(rows), 2), 2.4)
    assert found.law.floor >= 0
    assert (found.law(rows) >= 0).all()
