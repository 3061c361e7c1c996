"""The guard against forgetting: margins, the exact penalty, and searchers on a known optimum."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymix.core.codec import decode, encode
from raymix.core.errors import ConfigError
from raymix.core.forecast import Forecast
from raymix.core.mixture import Mixture
from raymix.core.trial import History, Proposal, Role, Searcher, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.search.ideal import Ideal
from raymix.search.mos import MosSearch
from raymix.search.optuna import Optuna
from raymix.strategy.multitask import MultiTask
from raymix.study.foresight import compared
from raymix.study.groups import chosen
from raymix.study.guard import Guard, parse_margin
from raymix.study.objective import KEEP_PENALTY, Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.forgetful import KEPT, forgetful, guarded_optimum, price

NAMES = ("math", "code", "chat")
PRIOR = Mixture(NAMES, (0.2, 0.3, 0.5))
TOY = forgetful()
MARGIN = 0.02


def metrics(*losses: float) -> dict[str, float]:
    return {f"eval/{name}/loss": loss for name, loss in zip(NAMES, losses, strict=True)}


BASE = metrics(2.0, 1.0, 1.5)


def score(objective: Objective, *losses: float) -> tuple[float, float]:
    return objective.score(metrics(*losses), BASE, PRIOR, PRIOR)


# ---- by hand ----


@pytest.mark.parametrize(
    ("margin", "guard"),
    [
        (0.02, Guard("eval/chat/loss", 1.0, 0.02)),
        (0, Guard("eval/chat/loss", 1.0, 0.0)),
        ("2%", Guard("eval/chat/loss", 1.02, 0.0)),
        (" 0.5 % ", Guard("eval/chat/loss", 1.005, 0.0)),
    ],
)
def test_margins_are_read(margin, guard):
    assert parse_margin("chat", margin) == guard


def test_a_kept_domain_is_left_out_and_pays_for_what_it_loses():
    objective = Objective(keep={"chat": 0.02}, keep_penalty=4.0)
    assert score(objective, 1.8, 0.6, 1.51) == (pytest.approx(1.2), 0.0)
    # .08 nats beyond the margin, at 4 nats each.
    assert score(objective, 1.8, 0.6, 1.6) == (
        pytest.approx(1.2 + 4 * 0.08),
        pytest.approx(0.08),
    )
    assert score(replace(objective, keep={"chat": "2%"}), 1.8, 0.6, 1.6)[1] == pytest.approx(0.07)
    # A guard alone, without a penalty.
    assert score(replace(objective, keep_penalty=0.0), 1.8, 0.6, 1.6) == (
        pytest.approx(1.2),
        pytest.approx(0.08),
    )
    found = objective.enrich(metrics(1.8, 0.6, 9.0), BASE)
    assert found["eval/mean"] == pytest.approx(1.2)
    assert found["eval/regressed"] == 0.0


def test_a_kept_domain_counts_if_it_has_a_weight():
    both = Objective(weights={"chat": 1.0}, keep={"chat": 0.02})
    assert score(both, 1.8, 0.6, 1.2)[0] == pytest.approx(1.2)
    weighted = Objective("weighted", {"math": 3.0, "code": 1.0}, keep={"chat": 0.02})
    weighted.check(NAMES, PRIOR)
    assert score(weighted, 1.8, 0.6, 9.0)[0] == pytest.approx(1.5 + KEEP_PENALTY * 7.48)


def test_a_kept_loss_that_is_missing_gives_no_score():
    objective = Objective(keep={"chat": 0.02})
    for lost in (metrics(1.8, 0.6, math.nan), {"eval/math/loss": 1.8, "eval/code/loss": 0.6}):
        found, violation = objective.score(lost, BASE, PRIOR, PRIOR)
        assert math.isnan(found)
        assert violation == math.inf


def test_guards_stand_together():
    objective = Objective(
        constraints=("eval/code/loss <= 0.5",), keep={"chat": "2%"}, keep_penalty=2.0
    )
    assert list(objective.guards) == ["chat within 2% of base", "eval/code/loss <= 0.5"]
    # Only what is kept pays; both are violations: .1 of code, .07 of chat.
    assert score(objective, 1.8, 0.6, 1.6) == (
        pytest.approx(1.2 + 2 * 0.07),
        pytest.approx(0.17),
    )
    assert decode(Objective, encode(objective)) == objective


@given(st.lists(st.floats(0.1, 3.0), min_size=3, max_size=3), st.sampled_from(["mean", "weighted"]))
def test_slope_is_the_derivative_of_the_score(losses, aggregate):
    objective = Objective(aggregate, {"math": 2.0, "code": 1.0}, keep={"chat": 0.02})
    if abs(losses[2] - 1.52) < 1e-4:
        return  # the bend
    slope = objective.slope(metrics(*losses), BASE)
    for place, name in enumerate(NAMES):
        ends = [
            score(objective, *(x + sign * 1e-6 * (i == place) for i, x in enumerate(losses)))[0]
            for sign in (1, -1)
        ]
        assert slope[name] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)
    assert slope["chat"] == (KEEP_PENALTY if losses[2] > 1.52 else 0.0)


def test_a_forecast_tells_what_the_penalty_will_be():
    objective = Objective(keep={"chat": 0.02}, keep_penalty=4.0)
    before = dict(zip(NAMES, (1.8, 0.6, 1.5), strict=True))
    # Inside the margin, predicted to leave it by .03: -.05 of the mean, + 4 * .03.
    forecast = Forecast(1, {"math": -0.1, "code": 0.0, "chat": 0.05}, before)
    note = {"forecast": encode(forecast), "scaled": True}
    proposal = Proposal(PRIOR, note=note)
    found = compared(objective, proposal, metrics(1.7, 0.6, 1.53), BASE)
    assert found["influence/predicted"] == pytest.approx(-0.05 + 4 * 0.03)
    assert found["influence/realised"] == pytest.approx(-0.05 + 4 * 0.01)
    # In a scale of its own a prediction cannot tell where it ends.
    unscaled = replace(proposal, note={**note, "scaled": False})
    told = compared(objective, unscaled, metrics(1.7, 0.6, 1.53), BASE)
    assert told["influence/predicted"] == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": {"chat": -0.1}}, "objective.keep.chat must be a margin >= 0"),
        ({"keep": {"chat": math.nan}}, "got nan"),
        ({"keep": {"chat": math.inf}}, "got inf"),
        ({"keep": {"chat": "-2%"}}, "got '-2%'"),
        ({"keep": {"chat": "nan%"}}, "got 'nan%'"),
        ({"keep": {"chat": "0.02"}}, "got '0.02'"),
        ({"keep": {"chat": "much"}}, "got 'much'"),
        ({"keep": {"chat": True}}, "got True"),
        ({"keep_penalty": -1.0}, "objective.keep_penalty must be a number >= 0, got -1"),
        ({"keep_penalty": math.inf}, "objective.keep_penalty"),
    ],
)
def test_margins_without_meaning_are_refused(fields, message):
    with pytest.raises(ConfigError) as error:
        Objective(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Objective(keep={"chatt": 0.1}), "objective.keep: unknown name 'chatt' (did you mean 'cha"),
        (Objective(keep=dict.fromkeys(NAMES, 0.1)), "objective.keep names every domain: nothing"),
        (Objective(weights={"math": 0, "code": 0}, keep={"chat": 0}), "objective.weights are all"),
    ],
)
def test_margins_that_do_not_fit_the_domains_are_refused(objective, message):
    with pytest.raises(ConfigError) as error:
        objective.check(NAMES, PRIOR)
    assert message in str(error.value)
    Objective(weights={"math": 1}, keep=dict.fromkeys(NAMES, 0.1)).check(NAMES, PRIOR)


def test_the_prior_need_have_nothing_of_what_is_only_evaluated():
    watched = Mixture(NAMES, (0.4, 0.6, 0.0))
    goal = Objective(kl_to_prior=0.1, keep={"chat": 0.02})
    goal.check(NAMES, watched, closed=("chat",))
    with pytest.raises(ConfigError, match="'chat' has 0"):
        goal.check(NAMES, watched)


# ---- ground truth: a constrained optimum that is known ----


def aggregate(mixture: Mixture) -> float:
    return float(TOY.losses(mixture.ordered(TOY.names).weights)[:2].mean())


def over(mixture: Mixture, margin: float = MARGIN) -> float:
    """How far chat ends above base + margin."""
    return float(TOY.losses(mixture.ordered(TOY.names).weights)[2] - TOY.c[2] - TOY.k[2]) - margin


def own(folder, searcher: Searcher, trials: int, objective: Objective) -> tuple[History, Trial]:
    """The method's trials, and what it chose."""
    methods = (Method("method", searcher, trials),)
    plan = Plan(TOY.space(), MultiTask(), objective, methods, confirm=Confirm(0, 0))
    study = Study(folder, plan, {})
    run_serial(study, TOY)
    study.close()
    best = chosen(study.history, "method")
    assert best is not None
    return replace(study.history, method="method"), best


def test_the_optimum_of_the_toy_is_one():
    from scipy import optimize

    for margin in (0.0, MARGIN, 0.1, 0.4):
        found = optimize.minimize(
            lambda p: TOY.losses(p)[:2].mean(),
            np.full(3, 1 / 3),
            method="SLSQP",
            bounds=[(0.0, 1.0)] * 3,
            constraints=(
                {"type": "eq", "fun": lambda p: p.sum() - 1},
                {"type": "ineq", "fun": lambda p, m=margin: 1.1 + m - TOY.losses(p)[2]},
            ),
            options={"ftol": 1e-14, "maxiter": 500},
        )
        optimum = guarded_optimum(TOY, margin)
        assert optimum.weights == pytest.approx(tuple(found.x), abs=1e-4)
        assert over(optimum, margin) == pytest.approx(0.0, abs=1e-12)
        change = aggregate(guarded_optimum(TOY, margin + 1e-6)) - aggregate(optimum)
        assert -change / 1e-6 == pytest.approx(price(TOY, margin), rel=1e-3)
    assert over(guarded_optimum(TOY), 0.0) > 0.5


def test_the_default_penalty_is_exact_and_no_smaller_one_than_the_price_is():
    # The least score over a fine grid of mixtures is the guarded optimum's.
    grid = [
        Mixture.normalised(NAMES, (x * s, (1 - x) * s, 1 - s))
        for s in np.linspace(0.5, 1.0, 101)
        for x in np.linspace(0.3, 0.7, 41)
    ]
    base = {f"eval/{n}/loss": c + k for n, c, k in zip(NAMES, TOY.c, TOY.k, strict=True)}

    def least(penalty: float) -> Mixture:
        goal = Objective(keep={KEPT: MARGIN}, keep_penalty=penalty)

        def worth(mixture: Mixture) -> float:
            return goal.score(metrics(*TOY.losses(mixture.weights)), base, PRIOR, PRIOR)[0]

        return min(grid, key=worth)

    exact = guarded_optimum(TOY, MARGIN).array()
    for penalty in (1.2 * price(TOY, MARGIN), KEEP_PENALTY):
        assert np.abs(least(penalty).array() - exact).max() < 0.01
        assert over(least(penalty)) <= 0.01
    assert over(least(0.8 * price(TOY, MARGIN))) > 0.05


SEARCHERS = (
    # What each needs, and how near it comes: part of the way from the start that is left.
    (Optuna("tpe"), 48, 0.1),
    (Optuna("gp"), 16, 0.15),
    (Ideal(rounds=10), 11, 0.15),
    (MosSearch(), 64, 0.2),
    (Dirichlet(), 64, 0.2),
)


@pytest.mark.parametrize(("searcher", "trials", "near"), SEARCHERS, ids=lambda x: str(x)[:16])
def test_searchers_end_inside_the_margin_near_the_optimum(tmp_path, searcher, trials, near):
    history, best = own(tmp_path / "kept", searcher, trials, Objective(keep={KEPT: MARGIN}))
    _, free = own(tmp_path / "free", searcher, trials, Objective(weights={KEPT: 0.0}))
    assert over(free.mixture) > 0.1, "without the guard it forgets"
    assert over(best.mixture) <= 0
    start = aggregate(TOY.space().prior)
    least = aggregate(guarded_optimum(TOY, MARGIN))
    assert (aggregate(best.mixture) - least) / (start - least) < near
    # Not only the ranking keeps the margin: the score alone leads there.
    told = [t for t in history.own if t.finished and t.role is Role.SEARCH]
    by_score = min(told, key=lambda t: t.score)
    assert over(by_score.mixture) <= 0.005


@pytest.mark.parametrize(("searcher", "trials"), [(Optuna("tpe"), 40), (Ideal(rounds=8), 9)])
def test_a_looser_margin_is_a_better_aggregate(tmp_path, searcher, trials):
    margins = (0.0, 0.1, 0.4)
    best = [own(tmp_path / str(m), searcher, trials, Objective(keep={KEPT: m}))[1] for m in margins]
    found = [aggregate(trial.mixture) for trial in best]
    assert found[0] > found[1] > found[2]
    truth = [aggregate(guarded_optimum(TOY, m)) for m in margins]
    assert truth[0] > truth[1] > truth[2]


def test_a_set_that_is_only_evaluated_is_kept(tmp_path):
    # Two specialities, of which only math spoils chat; chat is never trained on.
    toy = replace(TOY, t=(*TOY.t[:2], (-1.0, 0.5, 0.0)))
    space = replace(toy.space(), upper=(1.0, 1.0, 0.0))
    space = replace(space, prior=space.proportional())
    methods = (Method("method", Optuna("tpe"), 30),)
    plan = Plan(space, MultiTask(), Objective(keep={KEPT: "1%"}), methods, confirm=Confirm(0, 0))
    study = Study(tmp_path, plan, {})
    run_serial(study, toy)
    study.close()
    best = chosen(study.history, "method")
    # 1.1 * .01 nats: k (exp(p - .5 (1 - p)) - 1) = .011.
    most = (math.log1p(0.011 / toy.k[2]) + 0.5) / 1.5
    assert all(t.mixture.as_dict()[KEPT] == 0 for t in study.history)
    assert most - 0.1 < best.mixture.as_dict()["math"] <= most
