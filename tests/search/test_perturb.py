"""The truth by retraining, and how estimates are held against it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymix.core.errors import MixtureError, SearchError
from raymix.core.influence import centred
from raymix.core.job import Diagnostic, Status
from raymix.core.mixture import Space
from raymix.core.trial import History, Idle
from raymix.search.agreement import compare, spearman
from raymix.search.perturb import Perturb, truth
from raymix.study.job import space_of
from raymix.testing.conformance import SEARCHER_LAWS, began, rng, run, tight, told
from raymix.testing.toy import Toy

TOY = Toy(full=1000)
FINE = Perturb(0.01)


@pytest.mark.parametrize("law", SEARCHER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("searcher", [Perturb(), Perturb(total="free", start="uniform")], ids=str)
def test_conformance(searcher, law):
    law(searcher)


def whole(searcher: Perturb, space: Space | None = None, toy: Toy = TOY) -> History:
    return run(searcher, space or toy.space(), 999, toy=toy)


# ---- what is trained ----


def test_branches_wait_for_what_they_branch_off():
    searcher = Perturb(repeats=2, branch=0.5)
    history = run(searcher, TOY.space(), 999, lag=2)
    own = history.own
    assert len(own) == 14
    assert [t.proposal.note["kind"] for t in own[:3]] == ["parent", "parent", "plus"]
    assert {t.proposal.turn for t in own[:2]} == {0.5}
    trunks = {t.proposal.repeat: t.number for t in own[:2]}
    for trial in own[2:]:
        assert trial.proposal.branch == trunks[trial.proposal.repeat]
        # Half of the budget at 1.3 times the count is 1.15 times the count of all of it.
        assert abs(trial.proposal.note["change"]) == pytest.approx(0.15)
    begun = History(own[:2], history.method, history.base)
    assert searcher.propose(TOY.space(), begun, rng(0)).branch == trunks[0]
    pending = History((replace(own[0], result=None), own[1]), history.method, history.base)
    assert searcher.propose(TOY.space(), pending, rng(0)) is Idle.WAIT


def test_everything_is_asked_at_once_repeat_by_repeat():
    searcher = Perturb(repeats=2)
    history = run(searcher, TOY.space(), 999, lag=999)
    own = history.own
    assert len(own) == len(searcher.proposals(TOY.space())) == 2 * (1 + 2 * 3)
    assert sum(t.pending for t in own) == len(own)
    assert searcher.propose(TOY.space(), history, rng(0)) is Idle.DONE
    notes = [t.proposal.note for t in own]
    assert notes[0] == {"kind": "parent", "repeat": 0}
    assert notes[1] == {"kind": "plus", "domain": "math", "change": 0.3, "repeat": 0}
    assert notes[9] == {"kind": "minus", "domain": "math", "change": -0.3, "repeat": 1}
    assert [t.proposal.repeat for t in own] == [0] * 7 + [1] * 7
    measured = [bool(t.proposal.measure) for t in own]
    assert measured == [n["kind"] == "parent" for n in notes]


def test_counts_by_hand():
    plus, minus = Perturb(0.5).proposals(TOY.space())[5:7]
    # chat: 600 of 1000 and half of it more or less; the others keep their counts.
    np.testing.assert_allclose(plus.mixture.array(), np.array([100, 300, 900]) / 1300)
    np.testing.assert_allclose(minus.mixture.array(), np.array([100, 300, 300]) / 700)
    assert plus.budget is None
    plus, minus = Perturb(0.5, total="free").proposals(TOY.space())[5:7]
    assert (plus.budget.amount, minus.budget.amount) == (1300, 700)
    np.testing.assert_allclose(plus.mixture.array(), np.array([100, 300, 900]) / 1300)


@pytest.mark.parametrize("total", ["fixed", "free"])
def test_bounds_cut_a_step_short_on_its_way(total):
    space = tight()  # math at most 300 of 1000, code .1 to .6 or .7, chat at most .9
    begin = {"math": 0.28, "code": 0.12, "chat": 0.6}
    searcher = Perturb(0.5, 1, begin, total)
    changes = {}
    for proposal in searcher.proposals(space)[1:]:
        note = proposal.note
        changes[note["domain"], note["kind"]] = note["change"]
        within = space_of(space, proposal)
        shares = proposal.mixture.array()
        assert np.all(shares >= np.asarray(within.lower) - 1e-9)
        assert np.all(shares <= within.ceiling() + 1e-9)
        # Only one count moved: the others keep their ratios.
        counts = shares / np.array([0.28, 0.12, 0.6])
        others = [c for n, c in zip(space.names, counts, strict=True) if n != note["domain"]]
        assert others[0] == pytest.approx(others[1])
    if total == "fixed":
        # w (1 + b) / (1 + w b) = .3 at b = .02 / (.28 * .7) for math.
        assert changes["math", "plus"] == pytest.approx(0.02 / (0.28 * 0.7))
        # code falls to .1 at b = -.02 / (.12 * .9); so it does where chat grows to 1.2 times.
        assert changes["code", "minus"] == pytest.approx(-0.02 / (0.12 * 0.9))
        assert changes["chat", "plus"] == pytest.approx(0.2 / 0.6)
    else:
        # 300 rows of math: 20 more.
        assert changes["math", "plus"] == pytest.approx(20 / 280)


def test_a_domain_at_its_bound_is_moved_to_one_side_only():
    space = TOY.space(4000, max_epochs=1.0)
    begin = {"math": 0.25, "code": 0.25, "chat": 0.5}
    notes = [p.note for p in Perturb(0.3, 1, begin).proposals(space)]
    sides = [(n["domain"], n["kind"]) for n in notes[1:]]
    assert ("math", "plus") not in sides
    assert ("math", "minus") in sides
    # Less of another domain is more of math: that is forbidden, too.
    assert ("code", "minus") not in sides
    # The parent stands in for the other side.
    trials = whole(Perturb(0.001, 1, begin), space, Toy()).own
    found = truth(trials, TOY.names)[0]
    influence = Toy().influence(trials[0].mixture)
    expected = centred(influence.effect(), trials[0].mixture)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-4)


def test_a_domain_without_a_share_cannot_be_moved():
    searcher = Perturb(0.01, 2, {"math": 0.5, "chat": 0.5})
    own = whole(searcher).own
    assert len(own) == 2 * (1 + 2 * 2)
    found = truth(own, TOY.names)
    assert np.isnan(found[:, :, 1]).all()
    assert np.isfinite(found[:, :, [0, 2]]).all()
    agreement = compare(own)
    assert agreement.domains == ("math", "chat")
    assert agreement.rows[0].pearson == pytest.approx(1)


# ---- truth ----


@pytest.mark.parametrize("total", ["fixed", "free"])
def test_truth_is_the_derivative(total):
    own = whole(replace(FINE, total=total), TOY.space(100_000), replace(TOY, full=100_000)).own
    influence = TOY.influence(own[0].mixture)
    effect = influence.effect()
    expected = centred(effect, own[0].mixture) if total == "fixed" else effect
    found = truth(own, TOY.names)
    assert found.shape == (3, 3, 3)
    for matrix in found:
        np.testing.assert_allclose(matrix, expected, atol=2e-4)


def test_truth_by_hand_when_trainings_fail():
    history = run(Perturb(0.1, 1), TOY.space(), 999)
    own = list(history.own)
    losses = {t.proposal.note.get("domain", "") + t.proposal.note["kind"]: t for t in own}
    math_plus, parent = losses["mathplus"], losses["parent"]
    own[own.index(losses["mathminus"])] = told(
        replace(losses["mathminus"], result=None), TOY, Status.FAILED
    )
    found = truth(own, TOY.names)[0]
    key = "eval/code/loss"
    change = math_plus.result.metrics[key] - parent.result.metrics[key]
    assert found[1, 0] == pytest.approx(change / 0.1)
    # Both sides missing: unknown.
    own[own.index(math_plus)] = told(replace(math_plus, result=None), TOY, Status.FAILED)
    assert np.isnan(truth(own, TOY.names)[0][:, 0]).all()


# ---- agreement ----


@pytest.mark.parametrize("total", ["fixed", "free"])
def test_the_true_influence_agrees_with_retraining(total):
    agreement = compare(whole(replace(FINE, total=total)).own, total)
    rows = {(row.name, row.weighted): row for row in agreement.rows}
    assert agreement.repeats == 3
    assert rows["ekfac", True].pearson > 0.9999
    assert rows["ekfac", True].spearman == pytest.approx(1)
    assert rows["ekfac", True].cells > 0.9999
    # A scale does not matter, the sign does; sizes matter where they differ.
    assert rows["identity", True].pearson == pytest.approx(rows["ekfac", True].pearson)
    assert rows["adam", True].pearson == pytest.approx(-rows["ekfac", True].pearson)
    assert rows["ekfac", False].pearson < 0.99
    np.testing.assert_allclose(agreement.influence["ekfac"], agreement.truth, atol=1e-4)
    # Repeats without noise are alike.
    assert agreement.ceiling.pearson == pytest.approx(1)
    assert max(agreement.errors) < 1e-12


def test_one_repeat_has_no_ceiling_and_no_errors():
    agreement = compare(whole(replace(FINE, repeats=1)).own)
    assert agreement.ceiling is None
    assert all(map(math.isnan, agreement.errors))


def test_a_repeat_that_is_not_whole_does_not_count():
    own = list(whole(FINE).own)
    own[9] = told(replace(own[9], result=None), TOY, Status.FAILED)
    # One side failed: the parent stands in. Both: the repeat is left out.
    assert compare(own).repeats == 3
    own[8] = told(replace(own[8], result=None), TOY, Status.FAILED)
    assert compare(own).repeats == 2
    own[0] = told(replace(own[0], result=None), TOY, Status.FAILED)
    assert compare(own).repeats == 1
    # Where no repeat that is left has the domain, the others are compared.
    own[14] = told(replace(own[14], result=None), TOY, Status.FAILED)
    assert compare(own).domains == ("code", "chat")
    own = list(whole(replace(FINE, repeats=2)).own)
    for lost in (1, 2, 7 + 3, 7 + 4):
        own[lost] = told(replace(own[lost], result=None), TOY, Status.FAILED)
    with pytest.raises(SearchError, match="of no repeat all trainings"):
        compare(own)


def test_without_influence_there_is_nothing_to_compare():
    history = whole(replace(FINE, repeats=1))
    with pytest.raises(SearchError, match="of no trained parent was measured"):
        compare(history.own[1:])


def test_the_objectives_slope_counts():
    own = list(whole(FINE).own)
    key = Diagnostic.INFLUENCE.value
    for i, trial in enumerate(own):
        if trial.proposal.measure:
            plain = {**trial.result.diagnostics[key], "slope": [0.0, 0.0, 1.0]}
            own[i] = replace(trial, result=replace(trial.result, diagnostics={key: plain}))
    found = compare(own)
    np.testing.assert_allclose(found.truth, truth(own, TOY.names).mean(axis=0)[2])


def test_spearman_by_hand():
    assert spearman((1, 2, 3), (10, 20, 90)) == pytest.approx(1)
    assert spearman((1, 2, 3), (3, 2, 1)) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert spearman((1, 5, 5, 9), (1, 2, 3, 4)) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman((1, 1, 1), (1, 2, 3)))


@settings(deadline=None)  # scipy is imported in the first example
@given(st.lists(st.integers(-5, 5), min_size=3, max_size=12), st.integers(0, 99))
def test_spearman_is_scipys(values, seed):
    from scipy import stats

    other = np.random.default_rng(seed).integers(-5, 6, len(values))
    if len(set(values)) > 1 and len(set(other.tolist())) > 1:
        expected = stats.spearmanr(values, other).statistic
        assert spearman(values, other) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 1.0}, "Perturb.step must be between 0 and 1, got 1.0"),
        ({"step": 0.0}, "Perturb.step"),
        ({"repeats": 0}, "Perturb.repeats must be at least 1, got 0"),
        ({"total": "open"}, "Perturb.total"),
        ({"start": "median"}, "Perturb.start"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(SearchError, match=message):
        Perturb(**fields)


def test_shares_that_are_no_mixture_are_refused():
    with pytest.raises(MixtureError, match="must sum to 1"):
        Perturb(start={"math": 0.5})
    with pytest.raises(MixtureError, match="unknown domain 'maths'"):
        Perturb(start={"maths": 1.0}).propose(TOY.space(), began(TOY.space()), rng(0))
