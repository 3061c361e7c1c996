"""Claims about methods: worked by hand, against scipy's own tests, and when nothing can be told."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from raymix.core.job import Status, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import Proposal, Role, Trial
from raymix.report.claims import Claim, claims_table, findings
from raymix.report.facts import Row

MIX = Mixture.of({"a": 0.5, "b": 0.5})


def trial(block, **metrics):
    proposal = Proposal(MIX, role=Role.CONFIRM, note={"block": block, "of": 0})
    return Trial(block, "confirm", proposal, 0, TrainResult(Status.DONE, metrics), 0.0)


def row(name, values, other=None):
    others = other if other is not None else values
    pairs = enumerate(zip(values, others, strict=True))
    trials = tuple(trial(block, x=x, y=y) for block, (x, y) in pairs)
    return Row(name, trials[0], trials, False)


def x(found):
    return found.result.metrics["x"]


def y(found):
    return found.result.metrics["y"]


def test_two_methods_with_three_seeds_by_hand():
    # Differences -1.9, -2.0, -2.1: mean -2, standard deviation .1, error .1 / sqrt(3).
    rows = [row("low", [1.1, 1.0, 0.9]), row("high", [3.0, 3.0, 3.0])]
    (found,) = findings(rows, [Claim("low is lower", "low", "high", x, x)])
    error = 0.1 / math.sqrt(3)
    assert found.difference.value == pytest.approx(-2.0)
    assert found.difference.high == pytest.approx(-2.0 + stats.t.ppf(0.975, 2) * error)
    assert found.difference.p == pytest.approx(2 * stats.t.sf(2.0 / error, 2))
    assert found.word == "holds"


def test_of_two_methods_alone_it_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.0, 1.0, 6), rng.normal(2.0, 1.0, 6)
    (found,) = findings([row("a", first), row("b", second)], [Claim("", "a", "b", x, x)])
    assert found.difference.p == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_two_numbers_of_the_same_trainings_are_paired():
    values, others = [1.0, 1.2, 0.9, 1.1], [1.6, 1.7, 1.6, 1.5]
    rows = [row("a", values, others), row("loud", [0.0, 50.0, -50.0, 9.0])]
    (found,) = findings(rows, [Claim("", "a", "a", x, y)])
    assert found.difference.p == pytest.approx(stats.ttest_rel(values, others).pvalue)
    assert found.word == "holds"
    (other,) = findings(rows, [Claim("", "a", "a", y, x)])
    assert other.word == "the opposite"
    assert other.difference.value == pytest.approx(-found.difference.value)


def test_holm_over_all_claims_and_no_claim_is_found_in_noise():
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(100):
        rows = [row(name, rng.normal(0.0, 0.3, 3)) for name in "abcdef"]
        pairs = [("a", "b"), ("a", "c"), ("d", "e"), ("d", "f"), ("b", "e")]
        found = findings(rows, [Claim("", first, second, x, x) for first, second in pairs])
        wrong += any(f.word != "cannot be told" for f in found)
    assert wrong <= 12  # 5 expected; binomial: 12 or fewer in 99.9% of such runs


def test_rows_that_are_not_there_and_numbers_that_are_missing():
    rows = [row("a", [1.0, 2.0]), row("none", [math.nan, math.nan])]
    claims = [Claim("1", "a", "absent", x, x), Claim("2", "a", "none", x, x)]
    (found,) = findings(rows, claims)
    assert found.claim.words == "2"
    assert math.isnan(found.difference.p)
    assert found.word == "cannot be told"
    (single,) = findings([row("a", [1.0], [2.0])], [Claim("3", "a", "a", x, y)])
    assert single.word == "cannot be told"


def test_a_seed_that_one_of_them_lacks_is_left_out():
    short = row("b", [3.0, 3.5])
    rows = [row("a", [1.0, 1.4, 9.0]), short]
    (found,) = findings(rows, [Claim("", "a", "b", x, x)])
    assert found.difference.value == pytest.approx(-2.05)


def test_the_table_shows_every_claim():
    rows = [row("a", [1.0, 1.1, 1.2], [2.0, 2.1, 2.1]), row("b", [1.0, 1.3, 1.1])]
    found = findings(rows, [Claim("it forgets", "a", "a", x, y), Claim("a < b", "a", "b", x, x)])
    console = Console(width=100, file=io.StringIO())
    console.print(claims_table(found, "Claims"))
    text = console.file.getvalue()
    assert "it forgets" in text
    assert "holds" in text
    assert "cannot be told" in text
