"""The mixture contract: examples by hand, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymix.core.errors import MixtureError
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit

NAMES = ("math", "code", "chat")
DOMAINS = (
    Domain("math", 100, 1000, 400),
    Domain("code", 300, 9000, 1600),
    Domain("chat", 600, 10000, 2000),
)
INF = math.inf
THOUSAND = Budget(1000)

weights = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 1e-3)


def space(
    budget: Budget = THOUSAND,
    lower: tuple[float, ...] = (0, 0, 0),
    upper: tuple[float, ...] = (1, 1, 1),
    max_epochs: tuple[float, ...] = (INF, INF, INF),
    replacement: bool = False,
) -> Space:
    prior = Mixture.of({"math": 0.2, "code": 0.3, "chat": 0.5})
    return Space(DOMAINS, budget, prior, lower, upper, max_epochs, replacement)


@pytest.mark.parametrize(
    ("names", "given_weights", "message"),
    [
        (("a", "b"), (0.5,), "2 domains but 1 weights"),
        (("a", "a"), (0.5, 0.5), "duplicate domain names in mixture: a, a"),
        (("a", "b"), (1.5, -0.5), "weight of 'b' must be a number >= 0, got -0.5"),
        (("a", "b"), (0.5, math.nan), "weight of 'b' must be a number >= 0, got nan"),
        (("a", "b"), (0.5, 0.6), "weights must sum to 1, got 1.1 for {'a': 0.5, 'b': 0.6}"),
        ((), (), "weights must sum to 1, got 0"),
    ],
)
def test_bad_weights_are_named(names, given_weights, message):
    with pytest.raises(MixtureError) as error:
        Mixture(names, given_weights)
    assert message in str(error.value)


@pytest.mark.parametrize("amount", [0, -3])
def test_budget_must_be_positive(amount):
    with pytest.raises(MixtureError, match=f"Budget.amount must be positive, got {amount}"):
        Budget(amount)


def test_ordered_fills_absent_domains_with_zero():
    mixture = Mixture.of({"chat": 0.75, "math": 0.25}).ordered(NAMES)
    assert mixture == Mixture(NAMES, (0.25, 0.0, 0.75))
    with pytest.raises(MixtureError, match="unknown domain 'maths' in mixture; known: math, code"):
        Mixture.of({"maths": 1.0}).ordered(NAMES)


def test_text_form():
    assert str(Mixture(NAMES, (0.25, 0.0, 0.75))) == "math .250 code .000 chat .750"
    assert str(Mixture(("a",), (1.0,))) == "a 1.000"


@given(weights)
def test_normalised_is_a_distribution_with_the_same_ratios(values):
    mixture = Mixture.normalised(NAMES, values)
    assert sum(mixture.weights) == pytest.approx(1.0)
    np.testing.assert_allclose(mixture.array() * sum(values), values, atol=1e-12)


@pytest.mark.parametrize("values", [(0, 0, 0), (1, math.nan, 1), (1, math.inf, 1)])
def test_normalised_refuses_what_has_no_sum(values):
    with pytest.raises(MixtureError, match="must have a positive finite sum"):
        Mixture.normalised(NAMES, values)


@given(weights, st.permutations(NAMES))
def test_reordering_keeps_every_share(values, names):
    mixture = Mixture.normalised(NAMES, values)
    assert mixture.ordered(names).as_dict() == mixture.as_dict()
    assert mixture.ordered(names).ordered(NAMES) == mixture


def test_proportional_depends_on_the_unit():
    # By hand: 100/1000; 1000/20000; 400/4000.
    for unit, share in ((Unit.EXAMPLES, 0.1), (Unit.TOKENS, 0.05), (Unit.LOSS_TOKENS, 0.1)):
        assert space(Budget(10, unit)).proportional().as_dict()["math"] == pytest.approx(share)
    assert space().uniform().weights == pytest.approx((1 / 3,) * 3)


def test_ceiling_is_the_lower_of_bound_and_epoch_cap():
    # math: 2 epochs of 100 rows are .2 of 1000; code: bound .5 before 2 * 300 rows; chat: no cap.
    found = space(upper=(0.9, 0.5, 0.8), max_epochs=(2, 2, INF)).ceiling()
    np.testing.assert_allclose(found, (0.2, 0.5, 0.8))


def test_with_replacement_no_cap_applies():
    found = space(max_epochs=(0.1, 0.1, 0.1), replacement=True).ceiling()
    np.testing.assert_allclose(found, (1, 1, 1))


def test_impossible_budget_says_who_is_short_by_how_much():
    with pytest.raises(MixtureError) as error:
        space(Budget(4000), max_epochs=(2, 2, 2))
    # 2 epochs of 1000 rows are 2000 of 4000.
    text = str(error.value)
    assert "only 50.0% of the budget of 4000 examples: 2000 examples short" in text
    assert "math 200, code 600, chat 1200" in text


def test_bounds_that_contradict_are_named():
    with pytest.raises(MixtureError, match=r"lower bounds sum to 1\.2, more than 1"):
        space(lower=(0.4, 0.4, 0.4))
    with pytest.raises(MixtureError, match=r"'math' must have at least 0\.5 .* allows 0\.3"):
        space(lower=(0.5, 0, 0), max_epochs=(3, INF, INF))
    with pytest.raises(MixtureError, match="must name the same domains in one order"):
        space(lower=(0.0, 0.0))


@given(st.lists(st.floats(-2, 3), min_size=3, max_size=3))
def test_projection_is_allowed_and_idempotent(point):
    limited = space(lower=(0.1, 0.0, 0.2), max_epochs=(2, 2, INF))
    mixture = limited.project(point)
    assert np.all(mixture.array() >= np.array(limited.lower) - 1e-9)
    assert np.all(mixture.array() <= limited.ceiling() + 1e-9)
    np.testing.assert_allclose(limited.project(mixture.array()).array(), mixture.array(), atol=1e-9)


def test_an_empty_domain_has_no_room_whatever_its_cap():
    domains = (Domain("math", 0, 0, 0), Domain("code", 10, 100, 50))
    prior = Mixture.of({"math": 0.5, "code": 0.5})
    for cap in (2.0, INF):
        found = Space(domains, Budget(10), prior, (0, 0), (1, 1), (cap, INF))
        assert found.ceiling().tolist() == [0.0, 1.0]
        assert found.project(prior.array()).weights == (0.0, 1.0)


def test_a_pool_is_a_part_of_its_domain():
    domain = Domain("math", 8, 100, 50)
    assert domain.pool(2) == Domain("math", 2, 25, 12)
    assert domain.pool(8) == domain
    assert Domain("none", 0, 0, 0).pool(0).rows == 0
    for rows in (0, 9):
        with pytest.raises(
            MixtureError, match=f"pool of 'math' must be 1 to its 8 rows, got {rows}"
        ):
            domain.pool(rows)
