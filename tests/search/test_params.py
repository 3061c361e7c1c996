"""Searchers that set the strategy's parameters beside the mixture, and domains only evaluated."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from raymix.core.codec import decode, encode, from_spec, to_spec
from raymix.core.errors import MixtureError, SearchError
from raymix.core.job import Spec
from raymix.core.mixture import Mixture, Parameter, in_words
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.search.grid import Grid
from raymix.search.optuna import Optuna
from raymix.search.seen import comparable, key, trained
from raymix.search.swept import Swept
from raymix.testing.conformance import began, rng, run, tunable, watching
from raymix.testing.toy import Toy

TOY = Toy()
K = Parameter("k", 1 / 256, values=(0.0, 1 / 256, 1.0))
RATE = Parameter("rate", 0.01, 1e-4, 1.0, log=True)
EVEN = Parameter("even", 0.5)
SPACE = replace(TOY.space(), params=(K, RATE))


def said(history: History, name: str) -> list[float]:
    return [t.proposal.params[name] for t in history.own]


def shares_of(history: History) -> list[tuple[float, ...]]:
    return [t.mixture.weights for t in history.own]


# ---- parameters ----


def test_points_of_a_parameter_by_hand():
    assert K.points(7) == K.values
    assert EVEN.points(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert RATE.points(5) == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1, 1.0))
    # No rounding leads out of the range.
    assert RATE.at(0.0) == 1e-4
    assert RATE.at(1.0) == 1.0
    assert [K.at(part) for part in (0.0, 0.33, 0.34, 0.67, 1.0)] == [0, 0, 1 / 256, 1, 1]


def test_what_a_parameter_allows():
    assert K.allows(0.0)
    assert not K.allows(0.5)
    assert EVEN.allows(1.0)
    assert not RATE.allows(0.0)


def test_parameters_in_words():
    assert in_words({"k": 1 / 256, "replay": 0.5, "n": 2.0}) == "k .0039 replay .5 n 2"
    assert in_words({}) == ""
    assert in_words({"x": 1e-6, "y": -0.5}) == "x 1e-06 y -.5"


def test_what_is_left_out_has_its_default():
    assert SPACE.settings({"rate": 0.5}) == {"k": 1 / 256, "rate": 0.5}


# ---- the same training twice ----


def test_the_same_mixture_with_another_parameter_is_another_trial():
    mixture = TOY.space().uniform()
    plain, zero = Proposal(mixture), Proposal(mixture, params={"k": 0.0})
    default = key(mixture, {"k": 1 / 256, "rate": 0.01})
    known = trained(SPACE, [Trial(1, "a", plain, 0), Trial(2, "a", zero, 0)])
    assert known == {default, key(mixture, {"k": 0.0, "rate": 0.01})}
    # To say the default is to say nothing.
    spelt = Trial(1, "a", Proposal(mixture, params={"k": 1 / 256, "rate": 0.01}), 0)
    assert trained(SPACE, [spelt]) == {default}
    # Small numbers are no dust.
    assert key(mixture, {"x": 1e-8}) != key(mixture, {"x": 2e-8})
    # A parameter that is none of the space's: something else.
    assert not trained(TOY.space(), [Trial(1, "a", zero, 0)])


def test_a_baseline_by_another_strategy_is_no_repeat():
    mixture, spec = TOY.space().uniform(), Spec("raymix.strategy.dmt:DMT", {})
    baseline = Trial(1, "uniform", Proposal(mixture, role=Role.BASELINE), 0)
    corner = Proposal(Mixture(mixture.names, (1.0, 0.0, 0.0)))
    same = [baseline, Trial(2, "a", corner, 0)]
    other = [baseline, Trial(2, "a", replace(corner, strategy=spec), 0)]
    assert len(trained(TOY.space(), same)) == 2
    assert trained(TOY.space(), other) == {key(corner.mixture)}
    assert comparable(same) == tuple(same)
    assert comparable(other) == tuple(other[1:])


# ---- Dirichlet ----


def test_dirichlet_draws_parameters_evenly():
    history = run(Dirichlet(), replace(TOY.space(), params=(K, RATE, EVEN)), 300)
    counts = [said(history, "k").count(value) for value in K.values]
    assert sum(counts) == 300
    assert all(abs(count - 100) < 4 * math.sqrt(300 * 2 / 9) for count in counts)
    for name, parts in (
        ("even", np.array(said(history, "even"))),
        ("rate", np.log10(said(history, "rate")) / 4 + 1),
    ):
        assert abs(parts.mean() - 0.5) < 4 * 0.289 / math.sqrt(300), name
        assert parts.std() == pytest.approx(math.sqrt(1 / 12), rel=0.1)


def test_where_only_parameters_are_free_all_of_their_values_are_tried():
    one = Toy(("a",), (0.5,), (1.0,), ((3.0,),), (900,))
    space = replace(one.space(), params=(K,))
    for searcher in (Dirichlet(), Optuna("tpe", startup=2), Grid(3), Swept()):
        history = run(searcher, space, 9, toy=one)
        # The baseline has the default; the plain sweep has no hole all the same.
        expected = K.values if isinstance(searcher, Swept) else (0.0, 1.0)
        assert sorted(said(history, "k")) == sorted(expected), searcher


# ---- Grid, Swept ----


def test_grid_is_the_product_of_mixtures_and_settings():
    space = replace(TOY.space(), params=(K, EVEN))
    history = run(Grid(2), space, 99)
    found = {(t.mixture.weights, *t.proposal.params.values()) for t in history.own}
    assert len(history.own) == len(found) == 6 * 3 * 3
    assert {row[1:] for row in found} == set(itertools.product(K.values, (0.0, 0.5, 1.0)))


def test_grids_with_too_many_settings_are_refused():
    # C(6, 2) mixtures and 5 points of each parameter: 15 * 5^6.
    many = replace(TOY.space(), params=tuple(replace(EVEN, name=f"p{i}") for i in range(6)))
    with pytest.raises(SearchError, match=r"3 domains and p0 and p1 .* has 234375 points"):
        Grid(4).propose(many, History(), rng(0))


def test_swept_is_every_setting_of_one_mixture_in_order():
    space = replace(TOY.space(), params=(K, RATE))
    history = run(Swept(points=2), space, 99)
    assert [tuple(t.proposal.params.values()) for t in history.own] == [
        pytest.approx(pair) for pair in itertools.product(K.values, (1e-4, 1.0))
    ]
    assert {key(t.mixture) for t in history.own} == {key(space.prior)}
    given = Swept(Mixture.of({"code": 0.5, "math": 0.5}))
    weights = {t.mixture.weights for t in run(given, space, 99).own}
    assert weights == {(0.5, 0.5, 0.0)}
    written = Swept({"code": 0.5, "math": 0.5})
    assert shares_of(run(written, space, 99)) == shares_of(run(given, space, 99))
    for searcher in (given, written):
        assert from_spec(decode(Spec, encode(to_spec(searcher)))) == searcher
    assert given.propose(space, run(given, space, 99), rng(0)) is Idle.DONE


def test_swept_without_parameters_is_the_mixture_once():
    (trial,) = run(Swept(), TOY.space(), 9).own
    assert trial.mixture.weights == pytest.approx(TOY.space().prior.weights)
    assert not trial.proposal.params


def test_swept_refuses_what_it_cannot_sweep():
    with pytest.raises(SearchError, match=r"Swept.points must be at least 2, got 1"):
        Swept(points=1)
    with pytest.raises(MixtureError, match=r"weights must sum to 1, got 0\.5"):
        Swept({"math": 0.5})
    with pytest.raises(MixtureError, match="unknown domain 'maths'"):
        Swept(Mixture.of({"maths": 1.0})).propose(SPACE, began(SPACE), rng(0))


# ---- Optuna ----


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_optuna_learns_which_setting_is_best(sampler):
    # One domain, so that only parameters are free: .1 (x - .25)^2 nats of each come on top.
    one = Toy(("a",), (0.5,), (1.0,), ((3.0,),), (900,))
    space, asks = tunable(one.space()), 40 if sampler == "tpe" else 14
    history = run(Optuna(sampler, startup=6), space, asks, toy=one)
    late = history.own[-6:]
    assert np.mean([t.proposal.params["k"] == 0.25 for t in late]) >= 0.5
    assert np.mean([0.05 < t.proposal.params["rate"] < 0.5 for t in late]) >= 0.5


def test_a_default_that_may_not_be_said_is_left_out_of_the_replay():
    # The baselines have k = .5, which is none of the values, so they teach nothing.
    listed = replace(K, default=0.5)
    history = run(Optuna("tpe", startup=2), replace(TOY.space(), params=(listed,)), 12)
    assert set(said(history, "k")) <= set(K.values)
    assert len(history.own) == 12


# ---- domains that are only evaluated ----


def test_what_may_have_nothing_gets_nothing():
    space = watching(TOY.space())
    assert space.uniform().weights == (0.5, 0.5, 0.0)
    assert space.proportional().weights == (0.25, 0.75, 0.0)
    assert space.free().tolist() == [True, True, False]


def test_random_mixtures_are_uniform_over_the_domains_that_may_be_trained_on():
    found = [t.mixture.array() for t in run(Dirichlet(), watching(TOY.space()), 200).own]
    shares = np.array(found)
    assert not shares[:, 2].any()
    assert abs(shares[:, 0].mean() - 0.5) < 4 * 0.289 / math.sqrt(200)
    assert shares[:, 0].std() == pytest.approx(math.sqrt(1 / 12), rel=0.12)


def test_a_grid_leaves_them_out():
    found = {t.mixture.weights for t in run(Grid(4), watching(TOY.space()), 99).own}
    # One half and one quarter are the baselines'.
    assert found == {(0, 1, 0), (0.75, 0.25, 0), (1, 0, 0)}
