"""The rule of thumb: the weakest domain of the proportional training, doubled."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from raymix.core.errors import SearchError
from raymix.core.job import Status, TrainResult
from raymix.core.mixture import Budget
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.search.doubled import Doubled
from raymix.strategy.multitask import MultiTask
from raymix.study.bill import bills
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.conformance import SEARCHER_LAWS, began, rng, tight
from raymix.testing.toy import Toy

TOY = Toy()
SPACE = TOY.space()


@pytest.mark.parametrize("law", SEARCHER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("searcher", [Doubled(), Doubled(5.0)], ids=str)
def test_conformance(searcher, law):
    law(searcher)


def seen(after, before=(2.0, 2.0, 2.0), space=SPACE, **fields):
    """A study whose proportional training took the losses from `before` to `after`."""

    def metrics(values):
        return {f"eval/{n}/loss": v for n, v in zip(TOY.names, values, strict=True)}

    base = TrainResult(Status.DONE, metrics(before))
    told = TrainResult(Status.DONE, metrics(after))
    proposal = Proposal(space.proportional(), role=Role.BASELINE, note={"names": ["proportional"]})
    trial = Trial(2, "proportional", proposal, 0, told, 1.0)
    return History((replace(trial, **fields),), "method", base)


def proposed(history, searcher=Doubled(), space=SPACE):  # noqa: B008 - frozen
    return searcher.propose(space, history, rng(0))


def test_the_weakest_domain_is_doubled_and_the_others_make_room():
    # Shares .1, .3, .6. Code went from 4 to 3.6: a tenth, less than the halves of the others.
    answer = proposed(seen((1.0, 3.6, 1.0), (2.0, 4.0, 2.0)))
    assert answer.mixture.weights == pytest.approx((0.1 * 4 / 7, 0.6, 0.6 * 4 / 7))
    assert (answer.role, answer.budget) == (Role.SEARCH, None)
    gains = answer.note.pop("gains")
    assert gains == pytest.approx({"math": 0.5, "code": 0.1, "chat": 0.5})
    assert answer.note == {"kind": "doubled", "charged": [2], "weakest": "code"}


def test_a_loss_that_rose_is_weakest_and_of_equals_it_is_the_first():
    assert proposed(seen((1.9, 1.0, 2.1))).note["weakest"] == "chat"
    assert proposed(seen((1.0, 1.5, 1.5))).note["weakest"] == "code"
    assert proposed(seen((1.0, 1.0, 1.0))).note["weakest"] == "math"


def test_a_share_ends_at_all_and_at_its_bounds():
    most = proposed(seen((1.0, 1.0, 1.9)))
    assert most.mixture.weights == pytest.approx((0, 0, 1))
    space = tight()
    prior = space.project(space.proportional().array())
    history = began(space)
    base = history.base
    lower = {f"eval/{n}/loss": v / 2 for n, v in zip(TOY.names, base.metrics.values(), strict=True)}
    told = replace(history.trials[1].result, metrics={**lower, "eval/code/loss": 9.0})
    trials = (history.trials[0], replace(history.trials[1], result=told))
    answer = proposed(replace(history, trials=trials), space=space)
    doubled = answer.mixture.as_dict()
    assert prior.as_dict()["code"] < doubled["code"] <= space.ceiling()[1] + 1e-9


def test_what_has_no_room_is_not_asked_for():
    # Math has 1000 rows, which one epoch of 10,000 draws takes: there is no more of it.
    space = TOY.space(10_000, max_epochs=1.0)
    assert proposed(seen((1.9, 1.0, 1.0), space=space), space=space) is Idle.DONE


def test_it_waits_for_the_baseline_and_asks_once():
    open_one = replace(seen((1.0, 1.0, 1.9)).trials[0], result=None)
    assert proposed(History((open_one,), "method")) is Idle.WAIT
    failed = seen((1.0, 1.0, 1.9), result=TrainResult(Status.FAILED, {}), score=math.nan)
    assert proposed(failed) is Idle.DONE
    history = seen((1.0, 1.0, 1.9))
    asked = Trial(3, "method", proposed(history), 0)
    assert proposed(replace(history, trials=(*history.trials, asked))) is Idle.DONE


def test_without_a_baseline_there_is_nothing_to_look_at():
    with pytest.raises(SearchError, match="Doubled looks at the proportional baseline"):
        proposed(History((), "method"))


@pytest.mark.parametrize("factor", [1.0, 0.5, -2.0, math.inf, math.nan])
def test_a_factor_that_adds_nothing_is_refused(factor):
    with pytest.raises(SearchError, match=r"Doubled\.factor must be a number above 1, got"):
        Doubled(factor)


@pytest.mark.parametrize(("bill", "asked"), [(None, 1), (2.0, 1), (1.5, 0)])
def test_the_baseline_it_looked_at_is_on_its_bill(tmp_path, bill, asked):
    method = Method("doubled", Doubled(), 1, least=2.0)
    plan = Plan(SPACE, MultiTask(), Objective(), (method,), confirm=Confirm(0, 0), bill=bill)
    study = Study(tmp_path, plan, {})
    run_serial(study, TOY)
    study.close()
    own = [t for t in study.history if t.method == "doubled"]
    assert len(own) == asked
    paid = bills(study.history, plan.members, Budget(1000), bill)["doubled"]
    assert paid.spent == 2.0 * asked


def test_a_domain_that_nobody_wants_better_is_left_alone():
    history = seen((1.9, 1.0, 0.5))
    assert proposed(history).note["weakest"] == TOY.names[0]
    proposal = proposed(history, Doubled(ignore=(TOY.names[0],)))
    assert proposal.note["weakest"] == TOY.names[1]
    with pytest.raises(SearchError, match=r"Doubled.ignore: no domain 'nowhere'; known: "):
        proposed(history, Doubled(ignore=("nowhere",)))
