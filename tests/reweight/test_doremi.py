"""DoReMi against games whose minimax solution is known, and by hand."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy import optimize

from raymix.core.errors import ConfigError
from raymix.core.mixture import Mixture
from raymix.core.signals import Signal, Signals
from raymix.data.batches import Item
from raymix.reweight.doremi import DoReMi, reweighted
from raymix.testing.conformance import excluding, steered, tight, window
from raymix.testing.toy import Toy
from raymix.train.course import Course

ANCHORS = np.array([[-1.0, -0.5], [2.0, 0.0], [0.0, 2.0], [0.6, 0.6]])
CURVES = np.array([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])
"""Domain i's loss is .5 sum_d CURVES[i, d] (theta_d - ANCHORS[i, d])^2, over REFERENCE[i]."""

HARD, EASY = np.array([0.1, 0.8, 0.9, 0.4]), np.array([2.9, 2.5, 2.6, 2.4])
"""Losses of the reference: one that the model cannot match everywhere, and one it can beat."""


def excess(theta: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return 0.5 * (CURVES * (theta - ANCHORS) ** 2).sum(axis=1) - reference


def minimax(reference: np.ndarray) -> tuple[np.ndarray, float]:
    """The weights of max over alpha of min over theta of alpha . excess, and the game's value.

    For given alpha the best theta is a weighted mean of the anchors: what is left is concave.
    """

    def lowest(alpha: np.ndarray) -> float:
        weights = alpha @ CURVES
        theta = (alpha[:, None] * CURVES * ANCHORS).sum(axis=0) / weights
        return float(alpha @ excess(theta, reference))

    found = optimize.minimize(
        lambda alpha: -lowest(alpha),
        np.full(4, 0.25),
        method="SLSQP",
        bounds=[(0.0, 1.0)] * 4,
        constraints={"type": "eq", "fun": lambda alpha: alpha.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    return found.x, -float(found.fun)


class Played(NamedTuple):
    """`mean`: what the training says of its weights; `last` weights; `plain` mean of all."""

    mean: np.ndarray
    last: np.ndarray
    plain: np.ndarray


def play(
    method: DoReMi,
    reference: np.ndarray,
    steps: int = 8_000,
    noise: float = 0.0,
    absent: int | None = None,
    rate: float = 0.05,
) -> Played:
    """Gradient descent with DoReMi.

    `absent`: a domain that has no tokens in half of the steps, drawn at random. It adds nothing to
    their loss then.
    """
    rng, space = np.random.default_rng(0), steered(4)
    theta, course, total = np.array([0.8, 0.8]), Course(np.zeros(4)), np.zeros(4)
    decision, state = method.init(space, steps, 0)
    alpha = decision.loss_weights.array()
    (signal,) = method.needs
    for step in range(1, steps + 1):
        tokens = np.ones(4)
        if absent is not None and rng.random() < 0.5:
            tokens[absent] = 0
        found = excess(theta, reference) + noise * rng.normal(size=4)
        if method.clip:
            found = np.maximum(found, 0.0)
        found[tokens == 0] = np.nan
        signals = Signals(step, rate, space.prior, tokens, {signal: found})
        decision, state = method.update(state, signals)
        if method.same_step:
            alpha = decision.loss_weights.array()
        used = alpha * (tokens > 0)
        total += alpha
        items = [Item(domain, (0,), 2, 1) for domain in np.flatnonzero(tokens)]
        course.count(items, space.prior.array(), Mixture(space.names, tuple(alpha)))
        theta = theta - rate * (used[:, None] * CURVES * (theta - ANCHORS)).sum(axis=0)
        alpha = decision.loss_weights.array()
    mean = course.mean_mixture(space.names).array()
    return Played(mean, alpha, total / total.sum())


@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize(("reference", "sign"), [(HARD, 1), (EASY, -1)], ids=["behind", "ahead"])
def test_mean_weights_are_the_minimax_solution(reference, sign, same_step):
    wanted, value = minimax(reference)
    assert np.sign(value) == sign
    assert wanted.max() - wanted.min() > 0.3, "a game worth playing"
    mean = play(DoReMi(clip=False, same_step=same_step), reference).mean
    np.testing.assert_allclose(mean, wanted, atol=0.02)


def test_the_clipped_variant_finds_it_too_while_the_model_is_behind():
    wanted, value = minimax(HARD)
    assert value > 0
    mean = play(DoReMi(), HARD).mean
    np.testing.assert_allclose(mean, wanted, atol=0.02)


def test_the_clipped_variant_freezes_once_the_model_is_ahead():
    wanted, value = minimax(EASY)
    assert value < 0
    assert np.all(excess(np.array([0.8, 0.8]), EASY) < 0)
    # No excess is left, so nothing ever moves the weights from uniform ...
    mean, last, _ = play(DoReMi(), EASY, steps=3000)
    assert np.abs(mean - wanted).max() > 0.1
    np.testing.assert_allclose(last, 0.25, atol=0.02)
    # ... and what had moved them before is forgotten by smoothing alone.
    frozen = np.log([0.7, 0.1, 0.1, 0.1])
    for _ in range(3000):
        frozen = reweighted(frozen, np.zeros(4), 1.0, 1e-3)
    np.testing.assert_allclose(
        np.exp(frozen), 0.25 + 0.999**3000 * np.array([0.45, -0.15, -0.15, -0.15]), atol=1e-12
    )


@pytest.mark.parametrize("reference", [HARD, EASY], ids=["behind", "ahead"])
def test_noise_does_not_move_the_mean(reference):
    wanted, _ = minimax(reference)
    mean = play(DoReMi(clip=False), reference, noise=0.3).mean
    np.testing.assert_allclose(mean, wanted, atol=0.02)


@pytest.mark.parametrize("absent", range(4))
@pytest.mark.parametrize("reference", [HARD, EASY], ids=["behind", "ahead"])
def test_a_domain_that_is_absent_half_of_the_time_keeps_its_place(reference, absent):
    wanted, _ = minimax(reference)
    played = play(DoReMi(clip=False), reference, absent=absent)
    np.testing.assert_allclose(played.mean, wanted, atol=0.02)
    # A weight that acts half of the time is twice as large: its plain mean is no solution.
    half = wanted * np.where(np.arange(4) == absent, 2.0, 1.0)
    np.testing.assert_allclose(played.plain, half / half.sum(), atol=0.02)


# ---- by hand ----


def test_one_update_by_hand():
    space = steered(3)
    method = DoReMi(eta=0.5, smoothing=0.1)
    decision, state = method.init(space, 10, 0)
    assert decision.loss_weights.weights == pytest.approx((1 / 3,) * 3)
    assert decision.sampling.weights == pytest.approx((1 / 3,) * 3)
    assert decision.gradient_weights is decision.restore is None
    values = {Signal.CLIPPED_EXCESS_LOSS: np.array([2 * math.log(2), 0.0, 2 * math.log(5)])}
    signals = Signals(1, 0.1, space.prior, np.array([5.0, 1.0, 9.0]), values)
    decision, state = method.update(state, signals)
    # alpha * exp(.5 * excess) is proportional to 2, 1, 5; a tenth goes to all alike.
    expected = 0.9 * np.array([2, 1, 5]) / 8 + 0.1 / 3
    np.testing.assert_allclose(decision.loss_weights.array(), expected)
    assert decision.sampling is None
    # The second has no tokens, the third no number: the first has nobody to share with.
    values = {Signal.CLIPPED_EXCESS_LOSS: np.array([7.0, 3.0, np.nan])}
    signals = Signals(2, 0.1, space.prior, np.array([5.0, 0.0, 9.0]), values)
    decision, _ = method.update(state, signals)
    np.testing.assert_allclose(decision.loss_weights.array(), 0.9 * expected + 0.1 / 3)


def test_a_huge_excess_is_no_trouble():
    logs = reweighted(np.log([0.5, 0.5]), np.array([1e5, 0.0]), 1.0, 1e-3)
    np.testing.assert_allclose(np.exp(logs), [1 - 5e-4, 5e-4])
    logs = reweighted(np.log([0.5, 0.5]), np.array([1e5, 0.0]), 1.0, 0.0)
    assert logs.tolist() == [0.0, -1e5], "no weight is lost for good where nothing is smoothed"


def test_clipping_is_asked_of_the_workers():
    assert DoReMi().needs == {Signal.CLIPPED_EXCESS_LOSS}
    assert DoReMi(clip=False).needs == {Signal.EXCESS_LOSS}
    assert (DoReMi().same_step, DoReMi(same_step=True).same_step) == (False, True)


def test_sampling_obeys_the_space_and_weights_do_not():
    toy = Toy()
    space = excluding(toy.space(), ("held",))
    uniform, _ = DoReMi().init(space, 10, 0)
    assert uniform.sampling.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0.0))
    assert uniform.loss_weights.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0.0))
    sized, _ = DoReMi(sampling="proportional").init(space, 10, 0)
    assert sized.sampling.weights == pytest.approx((0.1, 0.3, 0.6, 0.0))
    own, _ = DoReMi(sampling=None).init(space, 10, 0)
    assert own.sampling is None
    # math may have 300 of 1000 examples at the most.
    bound, state = DoReMi().init(tight(), 10, 0)
    assert bound.sampling.weights == pytest.approx((0.3, 0.35, 0.35))
    signals = window(tight(), 1)
    values = {Signal.CLIPPED_EXCESS_LOSS: np.array([9.0, 0.0, 0.0])}
    signals = Signals(1, 0.1, signals.mixture, signals.tokens, values)
    assert DoReMi().update(state, signals)[0].loss_weights.weights[0] > 0.99


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"eta": 0.0}, "DoReMi.eta must be a number above 0, got 0.0"),
        ({"smoothing": 2.0}, "DoReMi.smoothing must be between 0 and 1"),
        ({"sampling": "prior"}, "DoReMi.sampling must be uniform, proportional or None"),
        ({"every": 0}, "DoReMi.every must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        DoReMi(**fields)


def test_an_excess_that_is_no_number_is_ignored():
    weights = Mixture.normalised(
        ("a", "b"), np.exp(reweighted(np.log([0.5, 0.5]), np.array([np.inf, 1.0]), 1.0, 0.0))
    )
    assert weights.weights == pytest.approx((0.5, 0.5))
