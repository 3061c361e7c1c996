"""MoS: rewards by hand, both objectives against their fixed points, the schedule played back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from raymix.core.errors import ConfigError, MixtureError
from raymix.core.policy import (
    descended,
    policy_gradient,
    prior_logits,
    sampled_gradient,
    scorer_gradient,
)
from raymix.core.signals import Signal, Signals
from raymix.core.simplex import log_softmax
from raymix.reweight.mos import MoS, relaxed
from raymix.reweight.rewards import combined, measure, remembered
from raymix.reweight.schedule import Schedule
from raymix.testing.conformance import excluding, steer, steered, tight, window
from raymix.testing.toy import Toy

LOGITS = log_softmax(np.array([1.0, 0.2, -0.5]))
POLICY = np.exp(LOGITS)
REWARDS = np.array([0.3, 1.2, 0.9])


def numerical(function, at, width=1e-6):
    steps = width * np.eye(len(at))
    return np.array([(function(at + s) - function(at - s)) / (2 * width) for s in steps])


def cosines(size: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(size, 5)) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def told(step: int, size: int = 3, **values: np.ndarray) -> Signals:
    space = steered(size)
    found = {Signal(name): value for name, value in values.items()}
    return Signals(step, 0.1, space.prior, np.ones(size), found)


# ---- the policy ----


def test_the_prior_is_sizes_to_the_power_of_one_over_tau():
    sizes = np.array([100.0, 400.0, 1600.0])
    np.testing.assert_allclose(np.exp(prior_logits(sizes, 1.0)), sizes / sizes.sum())
    np.testing.assert_allclose(np.exp(prior_logits(sizes, 2.0)), np.array([1, 2, 4]) / 7)
    np.testing.assert_allclose(np.exp(prior_logits(sizes, math.inf)), 1 / 3)


def test_the_published_gradient_is_that_of_the_published_loss():
    def loss(logits):
        return -REWARDS @ log_softmax(logits)

    np.testing.assert_allclose(scorer_gradient(LOGITS, REWARDS), numerical(loss, LOGITS), atol=1e-8)
    fixed = np.log(REWARDS / REWARDS.sum())
    np.testing.assert_allclose(scorer_gradient(fixed, REWARDS), 0, atol=1e-15)


@pytest.mark.parametrize("entropy", [0.0, 0.5])
def test_the_policy_gradient_is_that_of_the_expected_reward(entropy):
    def value(logits):
        logs = log_softmax(logits)
        return np.exp(logs) @ REWARDS - entropy * np.exp(logs) @ logs

    found = policy_gradient(LOGITS, REWARDS, entropy)
    np.testing.assert_allclose(found, numerical(value, LOGITS), atol=1e-8)
    if entropy:
        fixed = log_softmax(REWARDS / entropy)
        np.testing.assert_allclose(policy_gradient(fixed, REWARDS, entropy), 0, atol=1e-15)


def test_the_two_objectives_may_disagree():
    # Much weight on what is worth a little less: the published update flees from it.
    logits, rewards = np.log([0.98, 0.01, 0.01]), np.array([1.0, 0.9, 0.1])
    published, true = -scorer_gradient(logits, rewards), policy_gradient(logits, rewards)
    cosine = published @ true / np.linalg.norm(published) / np.linalg.norm(true)
    assert cosine < -0.5


def test_draws_estimate_the_gradient_and_a_baseline_lowers_their_variance():
    exact = policy_gradient(LOGITS, REWARDS)
    rng, runs = np.random.default_rng(1), 4000
    variances = []
    for baseline in (0.0, float(POLICY @ REWARDS)):
        counts = rng.multinomial(1, POLICY, size=runs)
        found = np.array([sampled_gradient(LOGITS, REWARDS, n, baseline) for n in counts])
        z = (found.mean(axis=0) - exact) / (found.std(axis=0, ddof=1) / math.sqrt(runs))
        assert np.abs(z).max() < 3, z
        variances.append(found.var(axis=0).sum())
    assert variances[1] < 0.5 * variances[0]


def test_adam_by_hand():
    # The first step is lr * sign of the slope, whatever its size.
    found = descended(np.zeros(2), lambda at: np.array([3.0, -1e-3]), 1, 0.1)
    np.testing.assert_allclose(found, [-0.1, 0.1], rtol=1e-4)
    valley = descended(np.array([5.0]), lambda at: 2 * (at - 1.0), 2000, 0.05)
    np.testing.assert_allclose(valley, [1.0], atol=1e-6)
    start = np.zeros(1)
    descended(start, lambda at: np.ones(1), 3, 0.1)
    assert start.tolist() == [0.0]


# ---- rewards ----


def test_transferability_by_hand():
    cosine = np.array([[1.0, 0.5, 0.1], [0.5, 1.0, -0.2], [0.1, -0.2, 1.0]])
    names = ("a", "b", "c")
    values = {Signal.HIDDEN_SIMILARITY: cosine}
    mean = measure("transferability", values, names, names, None)
    np.testing.assert_allclose(mean, [1.6 / 3, 1.3 / 3, 0.9 / 3])
    # With a target that is not trained on.
    np.testing.assert_allclose(
        measure("transferability", values, names, ("a", "b"), "c"), [0.1, -0.2]
    )
    # Excluded domains are no part of the mean; absent ones neither.
    np.testing.assert_allclose(
        measure("transferability", values, names, ("a", "b"), None), [0.75, 0.75]
    )
    gone = cosine.copy()
    gone[1] = gone[:, 1] = np.nan
    found = measure("transferability", {Signal.HIDDEN_SIMILARITY: gone}, names, names, None)
    np.testing.assert_allclose(found, [0.55, np.nan, 0.55])


def test_difficulty_by_hand():
    names, values = ("a", "b"), {Signal.PERPLEXITY_RATIO: np.array([0.5, 0.8])}
    np.testing.assert_allclose(measure("difficulty", values, names, names, None), [0.5, 0.8])
    np.testing.assert_allclose(measure("difficulty", values, names, names, "a"), [1.0, 0.8])


def test_several_rewards_are_averaged_each_over_its_mean():
    found = combined([np.array([0.9, 0.3]), np.array([2.0, 6.0])])
    np.testing.assert_allclose(found, [(1.5 + 0.5) / 2, (0.5 + 1.5) / 2])
    np.testing.assert_allclose(combined([np.array([0.9, 0.3])]), [0.9, 0.3])
    partly = combined([np.array([0.9, 0.3, np.nan]), np.array([2.0, 6.0, 4.0])])
    np.testing.assert_allclose(partly, [1.0, 1.0, np.nan])
    assert np.isnan(combined([np.full(2, np.nan), np.ones(2)])).all()


def test_the_trajectory_gives_the_new_reward_most_of_the_weight():
    found = remembered(np.array([2.0, np.nan, 3.0]), np.array([1.0, 1.5, np.nan]), 0.9)
    np.testing.assert_allclose(found, [1.9, 1.5, 3.0])


def test_rewards_in_the_state():
    ratios = np.array([0.5, 1.0, 2.0])
    for rewards, expected in (
        (("difficulty",), ratios),
        (("trajectory",), 0.9 * ratios + 0.1),
        (("difficulty", "trajectory"), 0.9 * ratios + 0.1),
    ):
        method = MoS(rewards=rewards)
        assert method.needs == {Signal.PERPLEXITY_RATIO}
        _, state = method.init(steered(3), 10, 0)
        _, state = method.update(state, told(100, perplexity_ratio=ratios))
        assert state["rewards"] == pytest.approx(expected.tolist())
    # An unmeasured domain keeps its reward; before its first it counts as the mean of the others.
    method = MoS(rewards=("difficulty",), relax=1.0)
    _, state = method.init(steered(3), 10, 0)
    decision, state = method.update(state, told(100, perplexity_ratio=np.array([1.0, np.nan, 3.0])))
    assert state["rewards"] == [1.0, None, 3.0]
    assert decision.sampling.weights == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    both = MoS(rewards=("transferability", "difficulty", "trajectory"))
    assert both.needs == {Signal.PERPLEXITY_RATIO, Signal.HIDDEN_SIMILARITY}


# ---- the method ----


def updates(method: MoS, size: int, count: int, **values: np.ndarray) -> np.ndarray:
    windows = [told(method.every * i, size, **values) for i in range(1, count + 1)]
    *_, (decision, _) = steer(method, steered(size), windows)
    return decision.sampling.array()


def test_mos_converges_to_the_rewards_share():
    similarity = cosines(4)
    rewards = similarity.mean(axis=1)
    wanted = rewards / rewards.sum()
    assert np.abs(wanted - steered(4).prior.array()).max() > 0.03
    found = updates(MoS(lr=1e-3), 4, 60, hidden_similarity=similarity)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    relaxing = updates(MoS(relax=0.5), 4, 60, hidden_similarity=similarity)
    np.testing.assert_allclose(relaxing, wanted, atol=1e-12)
    assert updates(MoS(relax=1.0), 4, 1, hidden_similarity=similarity) == pytest.approx(wanted)


def test_pg_converges_to_the_softmax_of_rewards_over_entropy():
    ratios = np.array([0.5, 1.0, 0.8])
    exact = MoS("pg", rewards=("difficulty",), lr=0.02, entropy=0.2)
    wanted = np.exp(ratios / 0.2) / np.exp(ratios / 0.2).sum()
    found = updates(exact, 3, 20, perplexity_ratio=ratios)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    drawn = MoS("pg", rewards=("difficulty",), lr=0.005, entropy=0.2, draws=32)
    found = updates(drawn, 3, 40, perplexity_ratio=ratios)
    np.testing.assert_allclose(found, wanted, atol=0.05)
    # Without the bonus the best takes all.
    greedy = MoS("pg", rewards=("difficulty",), lr=0.05, entropy=0.0)
    assert updates(greedy, 3, 20, perplexity_ratio=ratios)[1] > 0.999


def test_the_published_update_hardly_moves():
    rewards = np.array([1.0, 1e-3])
    moved = descended(np.zeros(2), lambda at: scorer_gradient(at, rewards), 200, 1e-4)
    assert np.abs(moved).max() <= 0.0201
    found = updates(MoS(rewards=("difficulty",), tau=math.inf), 2, 1, perplexity_ratio=rewards)
    assert found == pytest.approx([0.51, 0.49], abs=1e-3)
    assert abs(found[0] - 0.5) <= 0.0101


def test_rewards_below_zero_count_as_nothing():
    found = updates(
        MoS(rewards=("difficulty",), relax=1.0), 3, 1, perplexity_ratio=np.array([-1.0, 1.0, 3.0])
    )
    np.testing.assert_allclose(found, [0, 0.25, 0.75], atol=1e-11)
    start = updates(MoS(), 3, 1, hidden_similarity=-np.ones((3, 3)))
    sizes = np.array([100, 200, 300])
    np.testing.assert_allclose(start, sizes / sizes.sum())
    assert np.isfinite(relaxed(np.log([0.5, 0.5]), np.array([1.0, 0.0]), 1.0)).all()


def test_sampling_is_projected_and_the_policy_is_not():
    space = tight()
    method = MoS(rewards=("difficulty",), relax=1.0)
    decision, state = method.init(space, 10, 0)
    prior = np.array([100, 300, 600]) / 1000
    assert decision.sampling.weights == pytest.approx(space.project(prior).weights)
    values = {Signal.PERPLEXITY_RATIO: np.array([8.0, 1.0, 1.0])}
    signals = Signals(100, 0.1, space.prior, np.ones(3), values)
    decision, state = method.update(state, signals)
    np.testing.assert_allclose(np.exp(state["logits"]), [0.8, 0.1, 0.1])
    assert decision.sampling.weights == pytest.approx(space.project([0.8, 0.1, 0.1]).weights)
    assert decision.sampling.weights[0] == pytest.approx(0.3), "the epoch cap of math"


def test_mospec_looks_at_its_target():
    names = (*Toy().names, "held")
    space = excluding(Toy().space(), ("held",))
    method = MoS(target="held", relax=1.0)
    assert method.targets == ("held",)
    decision, state = method.init(space, 10, 0)
    assert decision.sampling.as_dict() == pytest.approx(
        {"math": 0.1, "code": 0.3, "chat": 0.6, "held": 0.0}
    )
    similarity = np.eye(4)
    similarity[3, :3] = similarity[:3, 3] = (0.6, 0.3, 0.1)
    signals = Signals(
        100, 0.1, space.prior, np.array([1.0, 1, 1, 0]), {Signal.HIDDEN_SIMILARITY: similarity}
    )
    decision, _ = method.update(state, signals)
    assert decision.sampling.names == names
    assert decision.sampling.weights == pytest.approx((0.6, 0.3, 0.1, 0.0))
    # A target that is trained on: its difficulty counts twice.
    trained = MoS(target="math", held_out=False, rewards=("difficulty",), relax=1.0)
    assert trained.targets == ()
    found = updates(trained, 3, 1, perplexity_ratio=np.array([1.0, 1.0, 1.0]))
    assert found == pytest.approx([0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"objective": "ppo"}, "MoS.objective must be mos or pg"),
        ({"rewards": ()}, "MoS.rewards must be some of transferability, difficulty, trajectory"),
        ({"rewards": ("cosine",)}, "MoS.rewards must be some of"),
        ({"rewards": ("difficulty", "difficulty")}, "MoS.rewards must be some of"),
        ({"target": "x", "rewards": ("difficulty",)}, "only transferability looks at it"),
        ({"every": 0}, "MoS.every must be at least 1"),
        ({"tau": 0.0}, "MoS.tau must be above 0"),
        ({"lr": 0.0}, "lr above 0"),
        ({"relax": 0.0}, "MoS.relax must be in"),
        ({"relax": 0.5, "objective": "pg"}, "MoS.relax must be in"),
        ({"fresh": 0.0}, "MoS.fresh must be above 0"),
        ({"entropy": -1.0}, "MoS.entropy and draws must not be negative"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        MoS(**fields)


def test_a_target_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="no domain 'x'; known: math, d1"):
        MoS(target="x").init(steered(2), 10, 0)
    with pytest.raises(ConfigError, match="upper bound of 0"):
        MoS(target="math").init(steered(2), 10, 0)
    with pytest.raises(ConfigError, match="is not trained on: set held_out"):
        MoS(target="t", held_out=False).init(steered(2, ("t",)), 10, 0)


# ---- its schedule ----


def test_a_learned_schedule_replays_bit_for_bit():
    space = steered(3)
    method = MoS(rewards=("transferability", "difficulty"), every=5, lr=0.01)
    windows = [window(space, 5 * i) for i in range(1, 8)]
    learned = list(steer(method, space, windows))
    _, state = learned[-1]
    points = json.loads(json.dumps(state["schedule"]))
    replay = Schedule(tuple((step, shares) for step, shares in points))
    assert replay.every == 5
    replayed = [decision for decision, _ in steer(replay, space, windows)]
    assert [d.sampling for d in replayed] == [d.sampling for d, _ in learned]
    assert len({d.sampling for d in replayed}) == 8


def test_a_schedule_by_hand():
    schedule = Schedule(((4, {"math": 0.5, "d1": 0.5}), (10, {"d1": 1.0})))
    assert schedule.every == 2
    space = steered(2)
    decision, state = schedule.init(space, 20, 0)
    assert decision.sampling is None
    seen = {}
    for step in range(2, 16, 2):
        decision, state = schedule.update(state, window(space, step))
        if decision.sampling is not None:
            seen[step] = decision.sampling.weights
    assert seen == {4: (0.5, 0.5), 10: (0.0, 1.0)}
    static = Schedule(((0, {"math": 1.0}),))
    assert static.every == 1
    assert static.init(space, 20, 0)[0].sampling.weights == (1.0, 0.0)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ((), "Schedule.points is empty"),
        (((3, {"a": 1.0}), (3, {"a": 1.0})), "rising steps"),
        (((-1, {"a": 1.0}),), "rising steps"),
        (((0, {"a": 0.7}),), "step 0: weights must sum to 1"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(points, said):
    with pytest.raises(ConfigError, match=said):
        Schedule(points)


def test_a_schedule_outside_the_bounds_is_refused():
    with pytest.raises(MixtureError, match="mixture of step 7 breaks the bounds of 'code'"):
        Schedule(((0, {"code": 0.5, "chat": 0.5 - 0.05, "math": 0.05}), (7, {"math": 1.0}))).init(
            tight(), 10, 0
        )
    with pytest.raises(MixtureError, match="unknown domain 'x'"):
        Schedule(((0, {"x": 1.0}),)).init(tight(), 10, 0)
