"""Objectives and guards, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymix.core.errors import ConfigError
from raymix.core.mixture import Mixture
from raymix.study.guard import Guard, parse_guard
from raymix.study.objective import Objective, divergence, domain_losses, summary

NAMES = ("math", "code", "chat")
PRIOR = Mixture(NAMES, (0.2, 0.3, 0.5))
MIXTURE = Mixture(NAMES, (0.5, 0.5, 0.0))


def metrics(math_loss: float, code: float, chat: float, **others: float) -> dict[str, float]:
    return {
        "eval/math/loss": math_loss,
        "eval/code/loss": code,
        "eval/chat/loss": chat,
        "test/math/loss": 99.0,
        "train/loss": 98.0,
        "train/math/loss": 97.0,
        "mix/math/share": 0.5,
        **others,
    }


BASE = metrics(2.0, 1.0, 1.5)


def score(objective: Objective, found: dict[str, float], base: dict[str, float] = BASE):
    return objective.score(found, base, MIXTURE, PRIOR)


def test_only_eval_losses_count():
    assert domain_losses(BASE) == {"math": 2.0, "code": 1.0, "chat": 1.5}
    assert domain_losses(BASE, "test") == {"math": 99.0}


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective(), 1.2),
        (Objective("worst"), 1.8),
        (Objective("weighted", {"math": 1, "code": 1, "chat": 2}), (1.8 + 0.6 + 2 * 1.2) / 4),
        (Objective("mean", {"math": 0}), 0.9),
        (Objective("mean", {"math": 7}), 1.2),  # for mean and worst only 0 has a meaning
        (Objective("worst", {"math": 0}), 1.2),
        (Objective("weighted", {"math": 0, "code": 3, "chat": 1}), (3 * 0.6 + 1.2) / 4),
    ],
)
def test_aggregates_by_hand(objective, expected):
    assert score(objective, metrics(1.8, 0.6, 1.2)) == (pytest.approx(expected), 0.0)


def test_kl_to_prior_by_hand():
    # KL = .5 ln(.5/.2) + .5 ln(.5/.3); the domain without share adds nothing.
    kl = 0.5 * math.log(2.5) + 0.5 * math.log(5 / 3)
    found, _ = score(Objective(kl_to_prior=0.1), metrics(1.8, 0.6, 1.2))
    assert found == pytest.approx(1.2 + 0.1 * kl)
    assert divergence(PRIOR, PRIOR) == 0.0
    assert divergence(PRIOR, MIXTURE) == math.inf


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_divergence_is_not_negative(weights):
    mixture = Mixture.normalised(NAMES, weights)
    assert divergence(mixture, PRIOR) >= -1e-12
    # The order in which domains are listed does not matter.
    turned = mixture.ordered(NAMES[::-1])
    assert divergence(turned, PRIOR) == pytest.approx(divergence(mixture, PRIOR))


@pytest.mark.parametrize(
    ("text", "guard"),
    [
        ("eval/chat/loss <= base + 0.02", Guard("eval/chat/loss", 1.0, 0.02)),
        ("eval/chat/loss<=base+.02", Guard("eval/chat/loss", 1.0, 0.02)),
        ("  eval/chat/loss  <=  base - 1e-3 ", Guard("eval/chat/loss", 1.0, -0.001)),
        ("eval/chat/loss <= base", Guard("eval/chat/loss", 1.0, 0.0)),
        ("eval/worst <= base * 1.05", Guard("eval/worst", 1.05, 0.0)),
        ("eval/a.b-c_1/loss <= 1.5", Guard("eval/a.b-c_1/loss", 0.0, 1.5)),
    ],
)
def test_guards_are_read(text, guard):
    assert parse_guard(text) == guard


@pytest.mark.parametrize(
    "text",
    [
        "eval/chat/loss < base",
        "eval/chat/loss >= 1",
        "eval/chat/loss <= bass + 0.02",
        "eval/chat/loss <= base / 2",
        "eval/chat/loss <= base + ",
        "eval/chat/loss <= nan",
        "chat <= 1 <= 2",
        "",
    ],
)
def test_guards_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConfigError, match="cannot read the constraint"):
        Objective(constraints=(text,))


def test_guards_never_see_test():
    with pytest.raises(ConfigError, match="only eval metrics can be guarded"):
        Objective(constraints=("test/chat/loss <= base",))


def test_violation_is_the_sum_of_excesses():
    objective = Objective(
        constraints=(
            "eval/chat/loss <= base + 0.02",  # 1.6 against 1.52: .08
            "eval/code/loss <= 0.5",  # .6: .1
            "eval/math/loss <= base * 0.95",  # 1.8 against 1.9: kept
            "eval/mean <= base - 0.1",  # 4/3 against 1.4: kept
            "eval/worst <= base",  # 1.8 against 2
        )
    )
    found, violation = score(objective, metrics(1.8, 0.6, 1.6))
    assert found == pytest.approx(4 / 3)
    assert violation == pytest.approx(0.18)


def test_what_is_missing_breaks_guards_and_has_no_score():
    partial = {"eval/math/loss": 1.0}
    found, violation = score(Objective(constraints=("eval/chat/loss <= 9",)), partial)
    assert math.isnan(found)
    assert violation == math.inf
    assert math.isnan(score(Objective(), {})[0])
    # A domain that the base has not (no eval split) is not missed.
    assert score(Objective(), partial, {"eval/math/loss": 2.0})[0] == 1.0


def test_nan_losses_give_no_score():
    for aggregate in ("mean", "worst"):
        assert math.isnan(score(Objective(aggregate), metrics(math.nan, 1, 1))[0])
    guard = Objective(constraints=("eval/math/loss <= 9",))
    assert score(guard, metrics(math.nan, 1, 1))[1] == math.inf


def test_summary_by_hand():
    # Relative changes: -.1, +.2, 0. Mean 1/30; variance ((4+25+1)/900 + ...)
    found = summary({"math": 1.8, "code": 1.2, "chat": 1.5}, {"math": 2, "code": 1, "chat": 1.5})
    changes = (-0.1, 0.2, 0.0)
    mean = sum(changes) / 3
    assert found == {
        "eval/mean": pytest.approx(1.5),
        "eval/worst": 1.8,
        "eval/imbalance": pytest.approx(math.sqrt(sum((c - mean) ** 2 for c in changes) / 3)),
        "eval/regressed": 1.0,
    }
    assert summary({}, {}) == {}
    assert summary({"math": 2.0}, {}) == {"eval/mean": 2.0, "eval/worst": 2.0}


def test_enrich_leaves_out_domains_of_weight_zero():
    objective = Objective(weights={"math": 0})
    found = objective.enrich(metrics(9.0, 0.5, 1.5), BASE)
    assert found["eval/mean"] == 1.0
    assert found["eval/worst"] == 1.5
    assert found["eval/regressed"] == 0.0
    assert found["eval/imbalance"] == 0.25  # changes -.5 and 0
    assert found["eval/math/loss"] == 9.0
    # A point without eval losses stays as it is.
    assert objective.enrich({"train/loss": 1.0}, BASE) == {"train/loss": 1.0}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            Objective(weights={"maths": 1.0}),
            "objective.weights: unknown name 'maths' (did you mean 'math'?)",
        ),
        (Objective("weighted", {"math": 1.0}), "objective.weights lacks 'code'"),
        (
            Objective(constraints=("eval/chatt/loss <= 1",)),
            "unknown name 'eval/chatt/loss' (did you mean 'eval/chat/loss'?)",
        ),
        (Objective(weights=dict.fromkeys(NAMES, 0.0)), "objective.weights are all 0"),
    ],
)
def test_objectives_that_do_not_fit_the_domains_are_refused(objective, message):
    with pytest.raises(ConfigError) as error:
        objective.check(NAMES, PRIOR)
    assert message in str(error.value)


def test_kl_needs_a_prior_everywhere():
    with pytest.raises(ConfigError, match="'chat' has 0"):
        Objective(kl_to_prior=0.1).check(NAMES, MIXTURE)
    Objective(kl_to_prior=0.1).check(NAMES, PRIOR)


@pytest.mark.parametrize(
    "fields",
    [
        {"aggregate": "median"},
        {"weights": {"math": -1.0}},
        {"weights": {"math": math.nan}},
        {"kl_to_prior": -0.1},
        {"kl_to_prior": math.inf},
    ],
)
def test_objectives_without_meaning_are_refused(fields):
    with pytest.raises(ConfigError, match=r"objective\."):
        Objective(**fields)


# ---- slope ----

LOSSES = st.floats(0.1, 5.0)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective(), (1 / 3, 1 / 3, 1 / 3)),
        (Objective("worst"), (1, 0, 0)),
        (Objective("weighted", {"math": 1, "code": 1, "chat": 2}), (0.25, 0.25, 0.5)),
        (Objective("mean", {"math": 0}), (0, 0.5, 0.5)),
        (Objective("worst", {"math": 0}), (0, 0, 1)),
        (Objective("weighted", {"math": 0, "code": 3, "chat": 1}), (0, 0.75, 0.25)),
        (Objective(kl_to_prior=9.0), (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_slope_by_hand(objective, expected):
    found = objective.slope(metrics(1.8, 0.6, 1.2), BASE)
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)))


@given(st.tuples(LOSSES, LOSSES, LOSSES), st.sampled_from(("mean", "worst", "weighted")))
def test_slope_is_the_derivative_of_the_score(losses, aggregate):
    objective = Objective(aggregate, {"math": 1, "code": 2, "chat": 0.5})
    slope = objective.slope(metrics(*losses), BASE)
    ordered = sorted(losses)
    if ordered[2] - ordered[1] < 1e-3:  # at a tie the worst loss has no derivative
        return
    for i, name in enumerate(NAMES):
        up, down = (
            metrics(*(loss + sign * 1e-6 * (j == i) for j, loss in enumerate(losses)))
            for sign in (1, -1)
        )
        change = (score(objective, up)[0] - score(objective, down)[0]) / 2e-6
        assert slope[name] == pytest.approx(change, abs=1e-6)


def test_of_several_worst_losses_the_first_has_the_slope():
    found = Objective("worst").slope(metrics(1.0, 1.0, 1.0), BASE)
    assert list(found.values()) == [1, 0, 0]


def test_slope_is_not_a_number_where_the_score_is_none():
    objective = Objective(weights={"math": 0})
    for found in ({"eval/math/loss": 1.0, "eval/code/loss": 1.0}, metrics(1.0, math.nan, 1.0)):
        slope = objective.slope(found, BASE)
        assert slope["math"] == 0.0
        assert math.isnan(slope["code"])


def test_metrics_of_influence_are_no_losses():
    more = {**BASE, "influence/math/predicted": -9.0, "influence/predicted": -9.0}
    assert domain_losses(more) == domain_losses(BASE)
    assert score(Objective(), more) == score(Objective(), BASE)
