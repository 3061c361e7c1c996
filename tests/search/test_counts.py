"""Arithmetic on counts, by hand and by law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymix.core.errors import MixtureError
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.core.trial import Proposal
from raymix.search.counts import betas, changes, counts_of, pools, rescaled, starting
from raymix.study.job import space_of
from raymix.study.plan import check_allowed
from raymix.testing.conformance import tight
from raymix.testing.toy import Toy

SPACE = Toy().space()
NUMBERS = st.floats(-1e3, 1e3, allow_subnormal=False)
SHARES = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3)


def test_the_worked_example_of_the_paper():
    # reweighting.py of the released code gives improvements: influences of the other sign.
    improvements = np.array([6.58e-5, 7.74e-4, 1.31e-4, 1.93e-4, -4.43e-5])
    found = 100 * betas(-improvements, 0.15)
    np.testing.assert_allclose(found, (1.27, 15.0, 2.53, 3.73, -0.86), atol=0.02)


def test_without_influence_nothing_moves():
    assert betas(np.zeros(3), 0.5).tolist() == [0, 0, 0]


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.floats(0.01, 1.0))
def test_the_largest_change_is_the_step_and_lowers_the_objective(influence, step):
    influence = np.array(influence)
    assume(np.abs(influence).max() > 1e-9)
    found = betas(influence, step)
    assert np.abs(found).max() == pytest.approx(step)
    assert np.all(found * influence <= 0)
    np.testing.assert_allclose(betas(7 * influence, step), found, rtol=1e-9, atol=1e-12)


def test_counts_by_hand():
    counts = np.array([100.0, 300.0, 600.0])
    beta = np.array([0.5, 0.1, -0.2])
    # 150, 330, 480 are 960 in all.
    mixture, budget = rescaled(SPACE, counts, beta, "free")
    assert budget == Budget(960)
    np.testing.assert_allclose(mixture.array() * 960, (150, 330, 480))
    mixture, budget = rescaled(SPACE, counts, beta, "fixed")
    assert budget == SPACE.budget
    np.testing.assert_allclose(mixture.array(), np.array([150, 330, 480]) / 960)
    np.testing.assert_allclose(changes(counts, 960 * mixture.array()), beta)


def test_no_domain_is_lost_in_one_step():
    mixture, _ = rescaled(SPACE, np.array([500.0, 500.0, 0.0]), np.array([-2.0, 0, 1]), "free")
    np.testing.assert_allclose(mixture.array() * 525, (25, 500, 0), atol=1e-9)


def test_a_cap_ends_one_count_and_leaves_the_others_their_ratio():
    space = Toy().space(4000, max_epochs=1.0)  # math: 1000 rows, a quarter
    counts = np.array([900.0, 1400.0, 1700.0])
    beta = np.array([0.5, 0.0, 0.0])
    mixture, _ = rescaled(space, counts, beta, "fixed")
    np.testing.assert_allclose(mixture.array(), (0.25, 0.75 * 14 / 31, 0.75 * 17 / 31))
    mixture, budget = rescaled(space, counts, beta, "free")
    assert budget.amount == 1000 + 1400 + 1700
    np.testing.assert_allclose(mixture.array() * 4100, (1000, 1400, 1700))


def test_a_total_that_the_bounds_cannot_hold_stays_what_it_was():
    # a is at most half of the total, b at most 500 rows: beyond 1,000 there is no mixture.
    domains = (Domain("a", 9000, 9000, 9000), Domain("b", 500, 500, 500))
    prior = Mixture.of({"a": 0.5, "b": 0.5})
    space = Space(domains, Budget(900), prior, (0, 0), (0.5, 1), (1.0, 1.0))
    mixture, budget = rescaled(space, np.array([450.0, 450.0]), np.array([1.0, 0.1]), "free")
    assert budget.amount == 900
    np.testing.assert_allclose(mixture.array(), (0.5, 0.5))


def test_pools_follow_counts_and_end_at_the_rows():
    # 100 of 1000 rows once; 300 of 3000 once; all 6000 rows are seen twice.
    start = np.array([100.0, 300.0, 12_000.0])
    assert pools(SPACE, start, start) == (100, 300, 6000)
    # Fewer, more, half as many: half of the rows are still seen twice.
    assert pools(SPACE, np.array([80.0, 450.5, 6000.0]), start) == (80, 451, 3000)
    # Beyond 2x of all rows the pool is all of them: whole copies and a remainder are drawn.
    assert pools(SPACE, np.array([2300.0, 0.0, 15_000.0]), start) == (1000, 1, 6000)


@given(
    st.sampled_from(list(Unit)),
    SHARES,
    st.lists(st.floats(-0.9, 1.0), min_size=3, max_size=3),
    st.sampled_from(("fixed", "free")),
    st.sampled_from((1.0, 2.5, float("inf"))),
    st.integers(50, 9000),
)
def test_proposals_are_allowed_in_every_unit(unit, shares, beta, total, cap, amount):
    domains = (Domain("a", 90, 1234, 77), Domain("b", 311, 2000, 900), Domain("c", 5, 99, 50))
    names = ("a", "b", "c")
    prior = Mixture.normalised(names, shares)
    try:
        space = Space(
            domains, Budget(amount, unit), prior, (0.05, 0, 0), (0.9, 1, 0.8), (cap, 9.0, 9.0)
        )
    except MixtureError:
        assume(False)
    first = starting(space, "prior")
    counts = first.array() * amount
    for _ in range(3):
        mixture, budget = rescaled(space, counts, np.array(beta), total)
        after = mixture.array() * budget.amount
        for rows in (None, pools(space, after, first.array() * amount)):
            within = space_of(space, Proposal(mixture, budget, rows))
            check_allowed(within, mixture, "test")
        counts = after


def test_starts():
    assert starting(SPACE, "prior").weights == pytest.approx(SPACE.prior.weights)
    assert starting(SPACE, "uniform").weights == pytest.approx((1 / 3,) * 3)
    assert starting(SPACE, {"chat": 0.5, "math": 0.5}).weights == (0.5, 0, 0.5)
    # A named start that is forbidden is moved; the user's own shares are for the study to refuse.
    assert starting(tight(), "uniform").weights == pytest.approx((0.3, 0.35, 0.35))
    assert starting(tight(), {"chat": 1.0}).weights == (0, 0, 1)
    with pytest.raises(MixtureError, match="unknown domain 'maths'"):
        starting(SPACE, {"maths": 1.0})


def test_counts_are_those_of_the_proposals_own_budget():
    mixture = Mixture.of({"chat": 0.25, "math": 0.75})
    assert counts_of(SPACE, Proposal(mixture)).tolist() == [750, 0, 250]
    assert counts_of(SPACE, Proposal(mixture, Budget(8))).tolist() == [6, 0, 2]
    assert replace(SPACE, replacement=True).room().tolist() == [float("inf")] * 3
