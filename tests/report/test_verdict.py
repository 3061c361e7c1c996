"""The verdict against independent computations: t tests, ANOVA by hand, simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from raymix.report.facts import Repeats
from raymix.report.verdict import LEVEL, fit, holm, noisiest, verdict

NAMES = ("uniform", "proportional", "tpe-003", "tpe-007", "grid-004")


def table(
    scores: np.ndarray, best: int = 2, split: str = "test", names: tuple[str, ...] = NAMES
) -> Repeats:
    seeds = tuple(range(1000, 1000 + scores.shape[1]))
    bases = {name: names.index(name) for name in ("uniform", "proportional") if name in names}
    return Repeats(split, names[: len(scores)], seeds, scores, bases, best)


def noise(rng: np.random.Generator, methods: int, seeds: int, block: float = 0.2) -> np.ndarray:
    """Noise of sd .05 about 1, and a shift per seed that is much larger."""
    return 1 + 0.05 * rng.normal(size=(methods, seeds)) + block * rng.normal(size=seeds)


def test_fit_is_the_two_way_anova_by_hand():
    scores = noise(np.random.default_rng(0), 4, 3)
    found = fit(scores)
    rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    variance = np.sum(rest**2) / ((4 - 1) * (3 - 1))
    assert found.freedom == 6
    assert found.variance == pytest.approx(variance)
    for a in range(4):
        for b in range(4):
            assert found.effects[a] - found.effects[b] == pytest.approx(
                scores[a].mean() - scores[b].mean(), abs=1e-12
            )
            expected = 0.0 if a == b else math.sqrt(2 * variance / 3)
            assert found.error(a, b) == pytest.approx(expected, abs=1e-9)


def test_two_mixtures_are_the_paired_t_test():
    scores = noise(np.random.default_rng(1), 2, 6)
    scores[1] -= 0.03
    names = ("uniform", "mine")
    (comparison,) = verdict(table(scores, best=1, names=names)).comparisons
    expected = stats.ttest_rel(scores[1], scores[0])
    assert comparison.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (comparison.low, comparison.high) == (pytest.approx(low), pytest.approx(high))


def test_a_missing_training_is_least_squares_on_the_rest():
    scores = noise(np.random.default_rng(2), 3, 4)
    scores[2, 3] = np.nan
    found = fit(scores)
    assert found.freedom == 11 - (3 + 4 - 1)
    # By hand (Yates): the fitted value of the missing cell makes its own residual vanish.
    filled = np.nan_to_num(scores, nan=1.0)
    for _ in range(500):
        grand = filled.mean()
        filled[2, 3] = filled[2].mean() + filled[:, 3].mean() - grand
    means = filled.mean(axis=1)
    assert found.effects[2] - found.effects[0] == pytest.approx(means[2] - means[0])
    rest = filled - means[:, None] - filled.mean(axis=0) + filled.mean()
    assert found.variance == pytest.approx(np.sum(rest**2) / 5)


def test_holm_by_hand():
    # Ordered .01 .02 .03 .04 times 4 3 2 1, never falling.
    assert holm([0.02, 0.01, 0.04, 0.03]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert holm([0.5, 0.9]) == pytest.approx((1.0, 1.0))
    assert holm([]) == ()


def test_noise_is_called_a_difference_in_one_study_of_twenty_at_most():
    rng = np.random.default_rng(3)
    studies = 1500
    wrong = sum(
        any(c.p < LEVEL for c in verdict(table(noise(rng, 5, 3))).comparisons)
        for _ in range(studies)
    )
    assert wrong / studies < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / studies)
    assert wrong / studies > 0.015, "and it is not absurdly timid either"


def test_intervals_hold_all_true_differences_and_power_is_as_stated():
    rng = np.random.default_rng(4)
    studies, covered, found = 800, 0, 0
    plain = table(np.zeros((5, 4)))
    # The detectable difference for the true noise.
    se = math.sqrt(2 * 0.05**2 / 4)
    critical = stats.t(12).ppf(1 - LEVEL / 12)
    shifts = np.linspace(0, 10, 2001)
    shift = shifts[np.searchsorted(stats.nct.sf(critical, 12, shifts), 0.8)] * se
    truth = np.array([0.0, 0.0, -shift, 0.05, -0.02])
    for _ in range(studies):
        said = verdict(
            Repeats(
                "test", NAMES, plain.seeds, noise(rng, 5, 4) + truth[:, None], plain.baselines, 2
            )
        )
        names = {name: i for i, name in enumerate(NAMES)}
        inside = [
            c.low <= truth[names[c.name]] - truth[names[c.baseline]] <= c.high
            for c in said.comparisons
        ]
        covered += all(inside)
        first = next(c for c in said.comparisons if (c.name, c.baseline) == ("tpe-003", "uniform"))
        found += first.word == "better"
    assert covered / studies > 0.95 - 3 * math.sqrt(0.95 * 0.05 / studies)
    # Holm is at least as strong as the Bonferroni that the figure is computed for.
    assert found / studies > 0.8 - 3 * math.sqrt(0.16 / studies)
    assert found / studies < 0.92


def test_blocks_take_the_seeds_out():
    scores = noise(np.random.default_rng(5), 5, 3, block=0.0)
    plain = verdict(table(scores))
    shifted = verdict(table(scores + np.array([5.0, -3.0, 0.0])))
    for a, b in zip(plain.comparisons, shifted.comparisons, strict=True):
        assert a.difference == pytest.approx(b.difference)
        assert a.p == pytest.approx(b.p)
    assert plain.freedom == 8


def test_sentences():
    rng = np.random.default_rng(6)
    scores = noise(rng, 5, 3)
    scores[1] += 2.0  # proportional is bad
    scores[0] += 1.0
    said = verdict(table(scores))
    assert said.sentence.startswith("tpe-003 is better than proportional by ")
    assert "and better than uniform by " in said.sentence
    assert "(test losses, 3 seeds; least detectable: " in said.sentence
    assert "Eval" not in said.sentence
    same = verdict(table(noise(rng, 5, 3), split="eval"))
    assert "tpe-003 is not distinguishable from proportional" in same.sentence
    assert "Eval also guided the search" in same.sentence
    scores[2:] += 5.0
    worse = verdict(table(scores))
    assert {c.word for c in worse.comparisons} == {"worse"}
    lost = verdict(table(scores, best=0))
    assert lost.sentence.startswith("The baseline uniform is the best mixture found; the nearest ")
    assert "is worse than" in lost.sentence


def test_what_cannot_be_told_is_said():
    for scores, words in (
        (np.ones((5, 1)), "Cannot tell: 1 seed per mixture leaves nothing"),
        (np.array([[1.0, np.nan], [np.nan, 2.0]]), "Cannot tell: the mixtures share no seeds"),
    ):
        found = verdict(table(scores, best=1, names=("uniform", "mine", "x", "y", "z")))
        assert found.sentence.startswith(words)
        assert math.isnan(found.detectable)
        assert found.comparisons == ()
    assert "no mixture was confirmed" in verdict(None).sentence
    only = table(np.ones((1, 3)), best=0, names=("uniform",))
    assert "nothing to compare" in verdict(only).sentence


def test_groups_of_mixtures_that_share_no_seed_are_told_from_too_few_seeds():
    nan = np.nan
    apart = np.array([[1.0, 2.0, nan, nan], [1.1, 2.1, nan, nan], [nan, nan, 1.0, 1.0]])
    assert "share no seeds" in verdict(table(apart)).sentence
    # By way of the third, the first two share theirs; there is a seed too few for noise.
    chain = np.array([[1.0, nan], [nan, 2.0], [1.0, 1.0]])
    assert "leaves nothing to measure the noise with" in verdict(table(chain)).sentence


def test_what_did_not_compete_is_no_contradiction():
    scores = noise(np.random.default_rng(10), 5, 4)
    scores += np.array([-1.0, 2.0, -3.0, 0.0, 0.5])[:, None]
    plain = table(scores, best=0)
    lost = verdict(replace(plain, aside={2: "a confirmation of it failed", 4: "it breaks a guard"}))
    assert lost.sentence.startswith(
        "The baseline uniform is the best mixture that competed; the nearest other one, tpe-007 is"
    )
    assert "tpe-003 has lower losses than uniform, but did not compete: a confirmation" in (
        lost.sentence
    )
    assert "grid-004" not in lost.sentence, "it is no better"
    won = verdict(replace(plain, best=3, aside={2: "it breaks a guard by 0.1"}))
    assert won.sentence.startswith("tpe-007 is better than proportional")
    assert "tpe-003 has lower losses than tpe-007, but did not compete: it breaks" in won.sentence
    alone = verdict(replace(plain, aside={2: "x", 3: "x", 4: "x"}))
    assert "competed; the nearest other one, tpe-003" in alone.sentence


def test_what_is_missing_is_said():
    plain = replace(table(noise(np.random.default_rng(11), 5, 3)), missing=("a, b chose", "c lost"))
    assert verdict(plain).sentence.endswith(" Missing: a, b chose; c lost.")


def test_equal_baselines_are_compared_once():
    names = ("uniform = proportional", "mine", "other")
    scores = noise(np.random.default_rng(7), 3, 3)
    both = Repeats("test", names, (1, 2, 3), scores, {"uniform": 0, "proportional": 0}, 1)
    found = verdict(both)
    assert [(c.name, c.baseline) for c in found.comparisons] == [
        ("mine", names[0]),
        ("other", names[0]),
    ]


def test_without_noise_every_difference_is_real():
    scores = np.repeat([[1.0], [1.0], [0.9]], 3, axis=1) + np.array([0.0, 0.1, 0.2])
    found = verdict(table(scores))
    assert found.noise == 0.0
    assert {c.word for c in found.comparisons} == {"better"}
    equal = verdict(table(np.ones((3, 3))))
    assert {c.word for c in equal.comparisons} == {"not distinguishable"}


def test_a_mixture_that_is_much_noisier_is_named():
    rng = np.random.default_rng(8)
    sd = np.array([1, 1, 1, 5, 1])[:, None]
    named, falsely = 0, 0
    for _ in range(200):
        plain = rng.normal(size=(5, 4)) + rng.normal(size=4)
        named += noisiest(sd * plain) == 3
        falsely += noisiest(plain) is not None
    assert named > 150
    assert falsely < 200 * LEVEL + 3 * math.sqrt(200 * LEVEL)
    loud = 1 + 0.01 * sd * np.random.default_rng(9).normal(size=(5, 4))
    assert "tpe-007 varies more than the others" in verdict(table(loud)).sentence
    assert noisiest(np.ones((5, 3))) is None
    assert noisiest(np.ones((2, 3))) is None


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("row", [0, 9])
def test_a_noisy_row_is_not_called_a_difference(row, seeds):
    rng = np.random.default_rng(12)
    names = ("uniform", "proportional", *(f"tpe-{n:03d}" for n in range(15)))
    sd = np.full((17, 1), 0.01)
    sd[row] = 0.1
    studies = 400
    wrong = sum(
        any(
            c.p < LEVEL
            for c in verdict(table(sd * rng.normal(size=(17, seeds)), 2, names=names)).comparisons
        )
        for _ in range(studies)
    )
    assert wrong / studies <= 0.08


def test_a_noisy_row_has_its_own_noise_and_degrees_and_the_others_keep_theirs():
    rng = np.random.default_rng(13)
    scores = 1 + 0.01 * rng.normal(size=(5, 4))
    scores[3] += np.array([0.3, -0.3, 0.2, -0.2])
    assert noisiest(scores) == 3
    found, plain = verdict(table(scores)), fit(scores)
    rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    own = np.sum(rest[3] ** 2) / (3 * 4 / 5)
    critical = {df: stats.t.ppf(1 - LEVEL / 12, df) for df in (3, 12)}
    for c in found.comparisons:
        loud = c.name == "tpe-007"
        variance = own + plain.variance if loud else 2 * plain.variance
        width = critical[3 if loud else 12] * math.sqrt(variance / 4)
        assert (c.high - c.low) / 2 == pytest.approx(width)
    usual = verdict(table(scores)).detectable
    assert f"least detectable: {usual:.3g})" in found.sentence
    # What is told of the noisy one is told with what can be told of it.
    worse = verdict(table(scores, best=3))
    assert worse.detectable == usual
    assert f"least detectable: {usual:.3g})" not in worse.sentence
