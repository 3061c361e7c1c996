"""DoGE on scripted gradients, whose weights have a closed form."""

from __future__ import annotations

import numpy as np
import pytest

from raymix.core.errors import ConfigError
from raymix.core.mixture import Mixture
from raymix.core.signals import Signal, Signals
from raymix.reweight.doge import DoGE, scores
from raymix.testing.conformance import excluding, steered
from raymix.testing.toy import Toy

GRADIENTS = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, -2.0]])
"""Of norms 5, 1 and 2; they sum to (4, 2)."""


def gram_of(gradients: np.ndarray, step: int, lr: float, absent: tuple[int, ...] = ()) -> Signals:
    space = steered(len(gradients))
    found = gradients @ gradients.T
    tokens = np.ones(len(gradients))
    for place in absent:
        found[place] = found[:, place] = np.nan
        tokens[place] = 0
    return Signals(step, lr, space.prior, tokens, {Signal.GRADIENT_GRAM: found})


def test_scores_by_hand():
    # <g_j, sum> = 3*4 + 4*2, 4, -2*2 = 20, 4, -4; the mean norm is 8/3.
    everyone = np.arange(3)
    found = scores(GRADIENTS @ GRADIENTS.T, everyone, everyone, 0.1, 5.0)
    norm = 8 / 3 + 1e-6
    np.testing.assert_allclose(found, [0.5, 0.1 * 4 / norm, 0.0], rtol=1e-14)
    assert 0.1 * 20 / norm > 0.5, "the first is clipped from above, the last from below"
    towards = scores(GRADIENTS @ GRADIENTS.T, np.array([1, 2]), np.array([0]), 0.1, 5.0)
    np.testing.assert_allclose(towards, [0.1 * 3 / (1.5 + 1e-6), 0.0])


@pytest.mark.parametrize("mu", [0.05, 1.0])
def test_weights_are_the_softmax_of_all_scores(mu):
    method = DoGE(mu=mu)
    rng = np.random.default_rng(0)
    decision, state = method.init(steered(3), 10, 0)
    assert decision.gradient_weights.weights == pytest.approx((1 / 3,) * 3)
    assert decision.sampling.weights == pytest.approx((1 / 3,) * 3)
    total = np.zeros(3)
    everyone = np.arange(3)
    for step, lr in enumerate((0.02, 0.01, 0.005, 0.0), start=1):
        gradients = rng.normal(size=(3, 5))
        signals = gram_of(gradients, step, lr)
        total += scores(gradients @ gradients.T, everyone, everyone, lr, 5.0) / mu
        decision, state = method.update(state, signals)
        expected = np.exp(total) / np.exp(total).sum()
        np.testing.assert_allclose(decision.gradient_weights.array(), expected, rtol=1e-12)
        assert decision.sampling is decision.loss_weights is None


def test_the_aligned_domain_wins_out_of_domain():
    names = ("math", "code", "chat", "held")
    space = excluding(Toy().space(), ("held",))
    method = DoGE(mu=0.01, target="held")
    assert method.targets == ("held",)
    gradients = np.array([[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [-1.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    decision, state = method.init(space, 100, 0)
    for step in range(100):
        # The target is not trained on: it has no tokens in any step.
        tokens = np.array([1.0, 1.0, 1.0, 0.0])
        values = {Signal.GRADIENT_GRAM: gradients @ gradients.T}
        decision, state = method.update(state, Signals(step, 1e-2, space.prior, tokens, values))
    weights = decision.gradient_weights
    assert weights.names == names
    assert weights.weights[3] == 0.0
    assert weights.weights[0] > 0.99
    assert weights.weights[1] > weights.weights[2] > 0
    # In closed form: scores .01 * (2, .4, 0) / mean norm, a hundred times.
    norm = (1 + np.sqrt(1.04) + np.sqrt(2)) / 3 + 1e-6
    ratio = np.exp(100 * 0.01 * np.array([2.0, 0.4, 0.0]) / norm / 0.01)
    np.testing.assert_allclose(weights.array()[:3], ratio / ratio.sum(), rtol=1e-9)


def test_one_step_moves_a_ratio_no_further_than_the_clip():
    method = DoGE(mu=0.05)
    _, state = method.init(steered(2), 10, 0)
    decision, _ = method.update(state, gram_of(np.array([[1e6, 0], [0, 1e-9]]), 1, 1e-3))
    a, b = decision.gradient_weights.weights
    assert np.log(a / b) == pytest.approx(5 * 1e-3 / 0.05)


def test_an_absent_domain_is_no_target_and_keeps_its_weight():
    method = DoGE()
    _, state = method.init(steered(3), 10, 0)
    decision, state = method.update(state, gram_of(GRADIENTS, 1, 0.01))
    before = decision.gradient_weights.array()
    decision, _ = method.update(state, gram_of(GRADIENTS, 2, 0.01, absent=(1,)))
    after = decision.gradient_weights.array()
    assert after[1] == pytest.approx(before[1], rel=1e-12)
    both = GRADIENTS[[0, 2]]
    gains = np.exp(scores(both @ both.T, np.arange(2), np.arange(2), 0.01, 5.0) / 0.05)
    expected = before[[0, 2]] * gains
    np.testing.assert_allclose(
        after[[0, 2]], expected / expected.sum() * (1 - before[1]), rtol=1e-12
    )


def test_without_the_target_nothing_moves():
    space = excluding(Toy().space(), ("held",))
    method = DoGE(target="held")
    decision, state = method.init(space, 10, 0)
    gram = np.ones((4, 4))
    gram[3] = gram[:, 3] = np.nan
    values = {Signal.GRADIENT_GRAM: gram}
    tokens = np.array([1.0, 1.0, 1.0, 0.0])
    again, after = method.update(state, Signals(1, 1e-2, space.prior, tokens, values))
    assert again.gradient_weights.weights == pytest.approx(decision.gradient_weights.weights)
    assert after == state


def test_it_acts_in_the_same_step_unless_told_otherwise():
    assert DoGE().same_step
    assert not DoGE(same_step=False).same_step


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mu": 0.0}, "DoGE.mu must be a number above 0, got 0.0"),
        ({"most": 0.0}, "DoGE.most must be above 0"),
        ({"sampling": "x"}, "DoGE.sampling must be"),
        ({"every": 0}, "DoGE.every must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        DoGE(**fields)


def test_a_target_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"DoGE.target: no domain 'mth' \(did you mean 'math'"):
        DoGE(target="mth").init(steered(3), 10, 0)
    with pytest.raises(ConfigError, match=r"give it an upper bound of 0 .*math: \[0, 0\]"):
        DoGE(target="math").init(steered(3), 10, 0)


def test_one_domain_has_all_the_weight():
    method = DoGE()
    _, state = method.init(steered(1), 10, 0)
    decision, _ = method.update(state, gram_of(np.array([[3.0, 4.0]]), 1, 0.1))
    assert decision.gradient_weights == Mixture(("math",), (1.0,))
