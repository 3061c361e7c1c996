"""Proxy and Online: the scripts of whole searches, on trainings whose outcome is given."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import pytest

from raymix.core.codec import decode, encode, to_spec
from raymix.core.errors import SearchError
from raymix.core.job import Spec, Status, TrainResult
from raymix.core.mixture import Budget, Mixture
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.reweight.constant import Constant
from raymix.reweight.doge import DoGE
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.search.online import Online
from raymix.search.proxy import Proxy
from raymix.testing.conformance import SEARCHER_LAWS, began, rng, run, tight
from raymix.testing.toy import Toy

TOY = Toy()
SPACE = TOY.space()
DOREMI, DOGE, MOS = to_spec(DoReMi()), to_spec(DoGE()), to_spec(MoS())
START = SPACE.project(SPACE.prior.array())
FOUND = (0.5, 0.3, 0.2)
"""The mean mixture of a proxy."""

SEARCHERS = (
    Proxy(DOREMI),
    Proxy(DOREMI, model="small", budget=400, rounds=3, tolerance=0.0),
    Proxy(DOGE, start="uniform"),
    Online(MOS),
    Online(MOS, start="uniform"),
)


@pytest.mark.parametrize("law", SEARCHER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("searcher", SEARCHERS, ids=lambda s: f"{s.most}-{s.reweighter.path}")
def test_conformance(searcher, law):
    law(searcher)


def told(trial: Trial, mean: tuple[float, ...] = FOUND, status: Status = Status.DONE) -> Trial:
    """The trial after a training; the mean mixture is that of its reweighter, if it has one."""
    if status is Status.FAILED:
        return replace(trial, result=TrainResult(status, {}, error="out of memory"))
    moved = trial.proposal.reweighter is not None
    mixture = Mixture(TOY.names, mean) if moved else trial.mixture
    checkpoint = f"trial-{trial.number}" if trial.proposal.keep else None
    result = TrainResult(status, {}, mean_mixture=mixture, checkpoint=checkpoint)
    return replace(trial, result=result, score=1.0)


def ask(searcher, history, space=SPACE):
    return searcher.propose(space, history, rng(len(history)))


def added(history: History, proposal: Proposal, **told_by) -> History:
    """The history after `proposal` was asked, and told if there is anything to tell."""
    trial = Trial(len(history) + 1, history.method, proposal, 0)
    trial = told(trial, **told_by) if told_by else trial
    return dataclasses.replace(history, trials=(*history.trials, trial))


def played(searcher, means, space=SPACE):
    """Tell every trial as it is asked; each of `means` is what one proxy comes to."""
    history, left = began(space), list(means)
    while isinstance(answer := ask(searcher, history, space), Proposal):
        mean = left.pop(0) if answer.role is Role.PROXY else FOUND
        history = added(history, answer, mean=mean)
    assert answer is Idle.DONE
    assert not left
    return history.own


def test_doremi_trains_a_reference_then_the_proxy_then_the_target():
    searcher = Proxy(DOREMI, model="small", budget=400)
    assert searcher.most == 3
    reference, proxy, final = played(searcher, [FOUND])
    small = Budget(400)
    assert reference.proposal == Proposal(
        START,
        small,
        model="small",
        role=Role.REFERENCE,
        keep=True,
        note={"kind": "reference", "round": 1, "parent": []},
    )
    assert proxy.proposal == Proposal(
        START,
        small,
        model="small",
        reweighter=DOREMI,
        reference=reference.number,
        role=Role.PROXY,
        note={"kind": "proxy", "round": 1, "parent": [reference.number]},
    )
    assert final.mixture.weights == pytest.approx(FOUND)
    assert final.proposal.budget is final.proposal.reweighter is None
    assert (final.role, final.proposal.model) == (Role.FINAL, "target")
    note = final.proposal.note
    assert (note["kind"], note["parent"]) == ("final", [proxy.number])
    assert note["moved"] == pytest.approx(0.4), "chat had .6"
    assert note["mean"] == {"math": 0.5, "code": 0.3, "chat": 0.2}


def test_doge_needs_no_reference():
    searcher = Proxy(DOGE, start="uniform")
    assert searcher.most == 2
    proxy, final = played(searcher, [FOUND])
    assert (proxy.role, proxy.proposal.reference, proxy.proposal.keep) == (Role.PROXY, None, False)
    assert proxy.mixture.weights == pytest.approx((1 / 3,) * 3)
    assert proxy.proposal.budget is None
    assert final.mixture.weights == pytest.approx(FOUND)


def test_rounds_end_when_the_weights_no_longer_move():
    searcher = Proxy(DOREMI, rounds=5)
    means = [FOUND, (0.45, 0.35, 0.2), (0.4505, 0.3495, 0.2)]
    own = played(searcher, means)
    assert [t.role for t in own] == [Role.REFERENCE, Role.PROXY] * 3 + [Role.FINAL]
    # Each round's reference is trained on what the round before has found.
    assert own[2].mixture.weights == pytest.approx(FOUND)
    assert own[3].mixture.weights == pytest.approx(FOUND)
    assert own[3].proposal.reference == own[2].number
    assert own[4].mixture.weights == pytest.approx(means[1])
    assert own[6].mixture.weights == pytest.approx(means[2])
    assert own[6].proposal.note["moved"] == pytest.approx(5e-4)
    assert own[6].proposal.note["round"] == 3
    most = played(Proxy(DOREMI, rounds=2), means[:2])
    assert [t.role for t in most] == [Role.REFERENCE, Role.PROXY] * 2 + [Role.FINAL]


def test_what_was_learned_is_projected_into_bounds_and_caps():
    space = tight()
    *_, final = played(Proxy(DOGE), [(0.9, 0.1, 0.0)], space)
    # math has 100 of 1000 rows and 3 epochs at the most, code at least .1.
    assert final.mixture.weights == pytest.approx(space.project([0.9, 0.1, 0.0]).weights)
    assert final.mixture.weights[0] == pytest.approx(0.3)
    assert final.proposal.note["mean"] == {"math": 0.9, "code": 0.1, "chat": 0.0}


def test_it_waits_for_what_it_needs():
    searcher, history = Proxy(DOREMI), began(SPACE)
    history = added(history, ask(searcher, history))
    assert ask(searcher, history) is Idle.WAIT


@pytest.mark.parametrize("failing", [Role.REFERENCE, Role.PROXY, Role.FINAL])
@pytest.mark.parametrize("status", [Status.FAILED, Status.STOPPED])
def test_a_failed_training_ends_it(failing, status):
    searcher, history = Proxy(DOREMI), began(SPACE)
    while isinstance(answer := ask(searcher, history), Proposal):
        history = added(history, answer, status=status if answer.role is failing else Status.DONE)
    assert answer is Idle.DONE
    whole = [Role.REFERENCE, Role.PROXY, Role.FINAL]
    assert [t.role for t in history.own] == whole[: whole.index(failing) + 1]


def test_a_reference_without_a_checkpoint_leads_nowhere():
    searcher, history = Proxy(DOREMI), began(SPACE)
    trial = told(Trial(3, history.method, ask(searcher, history), 0))
    lost = replace(trial, result=replace(trial.result, checkpoint=None))
    assert ask(searcher, replace(history, trials=(*history.trials, lost))) is Idle.DONE


def test_resumed_at_any_point_it_goes_on_the_same():
    searcher = Proxy(DOREMI, rounds=2, tolerance=0.0)
    history = began(SPACE)
    while isinstance(answer := ask(searcher, history), Proposal):
        again = decode(History, encode(history))
        assert ask(searcher, again) == answer
        history = added(history, answer, mean=(0.2, 0.2, 0.6))
    assert len(history.own) == searcher.most == 5


def test_a_history_of_other_settings_is_refused():
    history = run(Proxy(DOREMI), SPACE, 9)
    for other in (Proxy(DOGE), Proxy(to_spec(DoReMi(eta=0.1)))):
        with pytest.raises(SearchError, match="was asked with other settings than now"):
            ask(other, history)


def test_one_domain_is_trained_on_whole():
    toy = Toy(("math",), (0.5,), (1.0,), ((3.0,),), (900,))
    history = run(Proxy(DOREMI, rounds=3), toy.space(), 9, toy=toy)
    assert [t.role for t in history.own] == [Role.REFERENCE, Role.PROXY, Role.FINAL]
    assert {t.mixture.weights for t in history.own} == {(1.0,)}


def test_online_trains_once():
    (one,) = run(Online(MOS), SPACE, 9).own
    assert one.proposal == Proposal(START, reweighter=MOS, note={"kind": "online"})
    (other,) = run(Online(DOGE, start={"math": 1.0}), SPACE, 9).own
    assert other.role is Role.SEARCH
    assert other.mixture.weights == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Online(DOREMI), "DoReMi needs the losses of a reference model; use Proxy"),
        (lambda: Online(MOS, start="best"), "Online.start must be prior"),
        (lambda: Online(to_spec(Proxy(DOREMI))), "is no reweighter, it has no method init"),
        (lambda: Proxy(Spec("nowhere:Thing")), "cannot import 'nowhere:Thing'"),
        (lambda: Proxy(DOREMI, budget=0), "Proxy.budget must be positive, got 0"),
        (lambda: Proxy(DOREMI, rounds=0), "Proxy.rounds must be at least 1, got 0"),
        (lambda: Proxy(DOREMI, tolerance=-1.0), "Proxy.tolerance must be a number >= 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, said):
    with pytest.raises(Exception, match=re.escape(said)):
        make()


def test_any_reweighter_has_a_proxy():
    proxy, final = played(Proxy(to_spec(Constant())), [SPACE.prior.weights])
    assert proxy.proposal.reference is None
    assert final.proposal.note["moved"] == pytest.approx(0.0)
