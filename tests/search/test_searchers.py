"""Every searcher on the conformance suite, and what is special to each."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from raymix.core.errors import MixtureError, SearchError
from raymix.core.mixture import Mixture, Space
from raymix.core.trial import History, Idle, Proposal
from raymix.search.dirichlet import Dirichlet
from raymix.search.fixed import Fixed, Proportional, Uniform
from raymix.search.grid import Grid
from raymix.search.optuna import Optuna
from raymix.search.swept import Swept
from raymix.testing.conformance import SEARCHER_LAWS, began, rng, run, tight
from raymix.testing.toy import Toy

TOY = Toy()
SYMMETRIC = Toy(
    ("a", "b", "c"), (0.5,) * 3, (1.0,) * 3, ((4, 1, 1), (1, 4, 1), (1, 1, 4)), (900,) * 3
)
SEARCHERS = (
    Uniform(),
    Proportional(),
    Dirichlet(),
    Dirichlet("proportional", 0.3),
    Dirichlet("prior", 5.0),
    Grid(4),
    Swept(),
    Optuna("tpe"),
    Optuna("gp"),
)


def shares(history: History) -> np.ndarray:
    return np.array([t.mixture.array() for t in history.own])


@pytest.mark.parametrize("law", SEARCHER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("searcher", SEARCHERS, ids=str)
def test_conformance(searcher, law):
    law(searcher)


# ---- fixed ----


def test_uniform_and_proportional_are_asked_once():
    for searcher, weights in ((Uniform(), (1 / 3,) * 3), (Proportional(), (0.1, 0.3, 0.6))):
        history = run(searcher, TOY.space(), 5)
        (trial,) = history.own
        assert trial.mixture.weights == pytest.approx(weights)
        assert searcher.propose(TOY.space(), history, rng(0)) is Idle.DONE


def test_given_mixtures_come_in_their_order():
    searcher = Fixed((Mixture.of({"chat": 1.0}), Mixture.of({"code": 0.5, "math": 0.5})))
    found = [t.mixture.weights for t in run(searcher, TOY.space(), 9).own]
    assert found == [(0, 0, 1), (0.5, 0.5, 0)]


def test_given_mixture_with_a_wrong_name_is_refused():
    with pytest.raises(MixtureError, match="unknown domain 'maths'"):
        Fixed((Mixture.of({"maths": 1.0}),)).propose(TOY.space(), began(TOY.space()), rng(0))
    with pytest.raises(SearchError, match="is empty"):
        Fixed(())


# ---- grid ----


def test_grid_proposes_every_allowed_point_once():
    # tight: math >= .05 and <= 3 * 100 / 1000; code .1 to .6; chat <= .9. In eighths:
    space = tight()
    expected = {
        (m, c, 8 - m - c)
        for m in range(9)
        for c in range(9 - m)
        if 0.05 <= m / 8 <= 0.3 and 0.1 <= c / 8 <= 0.6 and (8 - m - c) / 8 <= 0.9
    }
    found = [
        tuple((t.mixture.array() * 8).round().astype(int)) for t in run(Grid(8), space, 99).own
    ]
    assert len(found) == len(set(found)) == len(expected)
    assert set(found) == expected


def test_grid_leaves_out_what_a_baseline_has_trained():
    thirds = shares(run(Grid(3), TOY.space(), 99))
    assert len(thirds) == 10 - 1
    assert not np.any(np.all(np.isclose(thirds, 1 / 3), axis=1))


def test_grids_that_cannot_be_walked_are_refused():
    with pytest.raises(SearchError, match=r"Grid.parts must be at least 1, got 0"):
        Grid(0)
    with pytest.raises(SearchError, match=r"no multiple of 1/1 lies within the bounds"):
        Grid(1).propose(tight(), began(tight()), rng(0))
    names = tuple(f"d{i}" for i in range(12))
    big = Toy(names, (0.5,) * 12, (1.0,) * 12, ((1.0,) * 12,) * 12, (9,) * 12).space()
    with pytest.raises(SearchError, match="has 352716 points"):
        Grid(10).propose(big, History(), rng(0))


# ---- Dirichlet ----


@pytest.mark.parametrize(
    ("centre", "mean"), [("uniform", (1 / 3,) * 3), ("prior", (0.1, 0.3, 0.6))]
)
@pytest.mark.parametrize("strength", [0.5, 4.0])
def test_dirichlet_has_the_moments_it_promises(centre, mean, strength):
    found = shares(run(Dirichlet(centre, strength), TOY.space(), 200))
    # alpha = strength * K * mean, so variance = mean (1 - mean) / (strength * K + 1).
    sd = np.sqrt(np.array(mean) * (1 - np.array(mean)) / (3 * strength + 1))
    assert np.all(np.abs(found.mean(axis=0) - mean) < 4 * sd / math.sqrt(200))
    np.testing.assert_allclose(found.std(axis=0), sd, rtol=0.2)


def test_dirichlet_under_bounds_is_the_dirichlet_conditioned_on_them():
    # Only a band of the first share is allowed: the second then is uniform over what is left.
    plain = TOY.space()
    space = Space(
        plain.domains, plain.budget, plain.prior, (0.4, 0, 0), (0.5, 1, 1), plain.max_epochs
    )
    found = shares(run(Dirichlet(), space, 300))
    rest = found[:, 1] / (1 - found[:, 0])
    assert abs(rest.mean() - 0.5) < 4 * 0.29 / math.sqrt(300)
    assert np.mean((found[:, 0] < 0.4 + 1e-6) | (found[:, 0] > 0.5 - 1e-6)) < 0.01


@pytest.mark.parametrize("strength", [0.0, -1.0, math.inf, math.nan])
def test_dirichlet_refuses_a_strength_without_meaning(strength):
    with pytest.raises(SearchError, match=r"Dirichlet.strength must be positive"):
        Dirichlet(strength=strength)


def test_dirichlet_refuses_an_unknown_centre():
    with pytest.raises(SearchError, match="got 'median'"):
        Dirichlet("median")


# ---- Optuna ----


@pytest.mark.parametrize("bad", [{"sampler": "cma"}, {"startup": 1}])
def test_optuna_refuses_bad_settings(bad):
    with pytest.raises(SearchError, match=str(next(iter(bad.values())))):
        Optuna(**bad)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_optuna_beats_random_search_on_the_toy(sampler):
    best = TOY.mean_loss(TOY.optimum())

    def regret(searcher: object, seed: int) -> float:
        found = run(searcher, TOY.space(), 24, seed=seed)
        return min(TOY.mean_loss(t.mixture) for t in found.own) - best

    seeds = range(6 if sampler == "tpe" else 1)
    random = np.mean([regret(Dirichlet(), seed) for seed in range(12)])
    assert np.mean([regret(Optuna(sampler), seed) for seed in seeds]) < random


def test_tpe_puts_guards_before_scores():
    # In the conformance problem chat must improve by .2; without chat the guard breaks.
    found = run(Optuna("tpe"), TOY.space(), 40)
    late = found.own[-15:]
    assert np.mean([t.violation > 0 for t in late]) < 0.2


def test_tpe_keeps_away_from_pending_trials():
    space = TOY.space()
    told = run(Optuna("tpe"), space, 12)
    lagged = run(Optuna("tpe"), space, 12 + 6, lag=6)
    assert sum(t.pending for t in lagged.own) == 6
    found = shares(lagged)
    gaps = [np.abs(a - b).max() for i, a in enumerate(found) for b in found[:i]]
    assert min(gaps) > 1e-4
    assert len(told.own) == 12


@pytest.mark.parametrize(
    "searcher", [Dirichlet(), Grid(6), Optuna("tpe"), Optuna("tpe", startup=30)], ids=str
)
def test_no_domain_is_favoured_by_its_place(searcher):
    # A problem that looks the same from every domain: mean shares must be 1/3 in every place.
    runs = [
        shares(run(searcher, SYMMETRIC.space(), 24, toy=SYMMETRIC, seed=s)).mean(axis=0)
        for s in range(24)
    ]
    means = np.array(runs)
    error = means.std(axis=0, ddof=1) / math.sqrt(len(means))
    assert np.all(np.abs(means.mean(axis=0) - 1 / 3) < 3.5 * error), (means.mean(axis=0), error)


@pytest.mark.parametrize("searcher", [Dirichlet(), Grid(4), Optuna("tpe")], ids=str)
def test_renaming_domains_changes_nothing(searcher):
    renamed = Toy(names=("x", "y", "z"))
    first, second = run(searcher, TOY.space(), 14), run(searcher, renamed.space(), 14, toy=renamed)
    np.testing.assert_array_equal(shares(first), shares(second))


def test_optuna_is_imported_late_and_tpe_without_torch():
    code = """
import sys
import raymix.search.optuna, raymix.search.dirichlet, raymix.search.grid, raymix.search.fixed
assert "optuna" not in sys.modules and "scipy" not in sys.modules
from raymix.testing.conformance import run
from raymix.testing.toy import Toy
trials = run(raymix.search.optuna.Optuna(), Toy().space(), 10).own
assert len(trials) == 10 and "optuna" in sys.modules
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_proposals_are_plain_search_trials():
    for searcher in SEARCHERS:
        proposal = searcher.propose(TOY.space(), began(TOY.space()), rng(0))
        assert proposal == Proposal(proposal.mixture)
