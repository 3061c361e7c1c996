"""MosSearch: a policy over domains, one update for each finished trial."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from raymix.core.codec import decode, encode
from raymix.core.errors import SearchError
from raymix.core.job import Status, TrainResult
from raymix.core.policy import policy_gradient
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.search.mos import MosSearch, rewarded
from raymix.testing.conformance import SEARCHER_LAWS, began, rng, run, tight
from raymix.testing.toy import Toy

TOY = Toy()


@pytest.mark.parametrize("law", SEARCHER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    "searcher", [MosSearch(), MosSearch(tau=math.inf, draws=4, entropy=0.1, fresh=1.0)], ids=str
)
def test_conformance(searcher, law):
    law(searcher)


def test_a_bandit_is_learned():
    """The score is a linear function of the shares, with noise: the best arm takes most."""
    worth, space = np.array([0.0, 0.3, 0.1]), TOY.space()
    searcher = MosSearch(tau=math.inf)
    ends = []
    for seed in range(3):
        noise = np.random.default_rng(seed)
        trials = list(began(space).trials)
        for number in range(80):
            history = History(tuple(trials), "method")
            proposal = searcher.propose(space, history, rng(number, seed))
            if proposal is Idle.DONE:
                break
            score = 1.0 - worth @ proposal.mixture.array() + 0.03 * noise.normal()
            result = TrainResult(Status.DONE, {})
            trial = Trial(len(trials) + 1, "method", proposal, 0, result, float(score))
            trials.append(trial)
        history = History(tuple(trials), "method")
        ends.append(np.exp(searcher.policy(space, history)))
    found = np.mean(ends, axis=0)
    assert found[1] > 0.8, found
    assert found[0] < 0.1


def test_it_finds_better_mixtures_than_its_prior():
    space, best = TOY.space(), TOY.mean_loss(TOY.optimum())
    start = TOY.mean_loss(space.proportional()) - best
    ends, mixtures = [], []
    for seed in range(6):
        history = run(MosSearch(), space, 30, seed=seed)
        ends.append(TOY.losses(np.exp(MosSearch().policy(space, history))).mean() - best)
        mixtures.append(min(TOY.mean_loss(t.mixture) for t in history.own) - best)
    assert np.mean(ends) < 0.15 * start
    assert np.mean(mixtures) < 0.02 * start


def told(number: int, counts: dict[str, int], policy: dict[str, float], score: float) -> Trial:
    space = TOY.space()
    mixture = space.project(np.array(list(counts.values())) / sum(counts.values()))
    note = {"kind": "policy", "counts": counts, "policy": policy}
    result = TrainResult(Status.DONE, {})
    return Trial(number, "method", Proposal(mixture, note=note), 0, result, score)


def test_updates_by_hand():
    space, start = TOY.space(), began(TOY.space())
    usual = next(t for t in start if t.method == "proportional").score
    prior = np.array([0.1, 0.3, 0.6])
    asked = dict(zip(TOY.names, prior.tolist(), strict=True))
    first = told(4, {"math": 8, "code": 4, "chat": 4}, asked, usual - 0.2)
    searcher = MosSearch(lr=0.5, fresh=0.25)
    found = searcher.policy(space, replace(start, trials=(*start.trials, first)))
    # Better than proportional by .2, which is its own root mean square: an advantage of 1.
    logits = np.log(prior) + 0.5 * (np.array([8, 4, 4]) - 16 * prior) / 4
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.exp(found), expected)
    # The next is expected to be better by .25 * .2 and is not: an advantage of -.05.
    second = told(5, {"math": 0, "code": 2, "chat": 2}, asked, usual)
    found = searcher.policy(space, replace(start, trials=(*start.trials, first, second)))
    scale = math.sqrt((0.2**2 + 0.05**2) / 2)
    logits += 0.5 * -0.05 / scale * (np.array([0, 2, 2]) - 4 * prior) / 2
    np.testing.assert_allclose(np.exp(found), np.exp(logits) / np.exp(logits).sum())


def test_a_trial_is_an_unbiased_draw_of_the_policy_gradient():
    logits, worth, draws = np.log([0.2, 0.3, 0.5]), np.array([1.0, 0.2, 0.5]), 9
    random = np.random.default_rng(0)
    counts = random.multinomial(draws, np.exp(logits), size=4000)
    steps = np.array([rewarded(logits, n, float(n @ worth) / draws - 0.5, 0.0) for n in counts])
    # E[counts . worth / draws] has the policy gradient of worth; a step is 1 / sqrt(draws) of it.
    exact = policy_gradient(logits, worth) / math.sqrt(draws)
    z = (steps.mean(axis=0) - exact) / (steps.std(axis=0, ddof=1) / math.sqrt(len(steps)))
    assert np.abs(z).max() < 3, z


def test_the_state_is_the_history():
    space = TOY.space()
    history = run(MosSearch(), space, 20)
    again = decode(History, encode(history))
    np.testing.assert_array_equal(
        MosSearch().policy(space, again), MosSearch().policy(space, history)
    )


def test_it_waits_for_the_proportional_baseline_only_when_it_has_something_to_compare():
    space = TOY.space()
    start = began(space)
    pending = replace(start.trials[1], result=None)
    assert pending.method == "proportional"
    waiting = replace(start, trials=(start.trials[0], pending))
    proposal = MosSearch().propose(space, waiting, rng(0))
    assert isinstance(proposal, Proposal)
    told_one = replace(
        Trial(3, "method", proposal, 0), result=TrainResult(Status.DONE, {}), score=1.0
    )
    later = replace(waiting, trials=(*waiting.trials, told_one))
    assert MosSearch().propose(space, later, rng(1)) is Idle.WAIT
    # Where the study trains it under another name, or not at all, it does without.
    other = Trial(
        2, "uniform", replace(pending.proposal, note={"names": ["uniform", "proportional"]}), 0
    )
    named = replace(waiting, trials=(other, told_one))
    assert MosSearch().propose(space, named, rng(1)) is Idle.WAIT
    none = History((told_one,), "method")
    assert isinstance(MosSearch().propose(space, none, rng(1)), Proposal)


def test_domains_that_cannot_be_trained_on_are_never_drawn():
    space = replace(TOY.space(), upper=(1.0, 0.0, 1.0))
    history = run(MosSearch(tau=math.inf), space, 12)
    assert len(history.own) == 12
    assert {t.mixture.weights[1] for t in history.own} == {0.0}
    assert np.exp(MosSearch().policy(space, history))[1] == 0.0


def test_failed_trials_teach_nothing():
    space, start = TOY.space(), began(TOY.space())
    proposal = MosSearch().propose(space, start, rng(0))
    failed = Trial(3, "method", proposal, 0, TrainResult(Status.FAILED, {}))
    after = replace(start, trials=(*start.trials, failed))
    np.testing.assert_array_equal(
        MosSearch().policy(space, after), MosSearch().policy(space, start)
    )


def test_one_domain_is_asked_for_once_at_the_most():
    toy = Toy(("math",), (0.5,), (1.0,), ((3.0,),), (900,))
    assert len(run(MosSearch(), toy.space(), 9, toy=toy).own) <= 1


def test_bounds_are_kept():
    for trial in run(MosSearch(), tight(), 20).own:
        assert trial.role is Role.SEARCH
        assert trial.mixture.weights[0] <= 0.3 + 1e-9


def test_a_history_of_another_searcher_is_refused():
    space = TOY.space()
    with pytest.raises(SearchError, match="was not asked by MosSearch"):
        MosSearch().propose(space, run(Dirichlet(), space, 2), rng(0))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tau": 0.0}, "MosSearch.tau must be above 0"),
        ({"draws": 0}, "MosSearch.draws must be at least 1"),
        ({"lr": -1.0}, "MosSearch.lr must be above 0"),
        ({"fresh": 2.0}, "MosSearch.fresh must be above 0 and at most 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, said):
    with pytest.raises(SearchError, match=said):
        MosSearch(**fields)
