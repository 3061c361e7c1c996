"""Trials and what a history says about them."""

from __future__ import annotations

import math

import pytest

from raymix.core.job import Status, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import RANKED, STOPPABLE, History, Proposal, Role, Trial

MIXTURE = Mixture.of({"math": 0.5, "code": 0.5})
DONE = TrainResult(Status.DONE, {})


def trial(
    number: int,
    method: str = "tpe",
    role: Role = Role.SEARCH,
    score: float = 1.0,
    violation: float = 0.0,
    result: TrainResult | None = DONE,
) -> Trial:
    return Trial(number, method, Proposal(MIXTURE, role=role), 0, result, score, violation)


def test_pending_and_finished():
    assert trial(0, result=None).pending
    assert not trial(0, result=None).finished
    assert trial(0).finished
    assert not trial(0, score=math.nan).finished
    assert not trial(0, score=math.inf).finished
    assert not trial(0, result=TrainResult(Status.FAILED, {})).finished
    assert trial(0, result=TrainResult(Status.STOPPED, {})).finished


def test_ranking_puts_guards_before_scores_and_earlier_before_later():
    history = History(
        (
            trial(0, score=2.0),
            trial(1, score=1.0, violation=0.1),
            trial(2, score=1.5),
            trial(3, score=1.5),
            trial(4, score=0.1, result=TrainResult(Status.FAILED, {})),
            trial(5, score=0.1, role=Role.PROXY),
            trial(6, score=1.7, role=Role.BASELINE),
            trial(7, score=0.1, role=Role.CONFIRM),
            trial(8, result=None),
        )
    )
    assert [t.number for t in history.ranking()] == [2, 3, 6, 0, 1]


def test_a_searcher_sees_its_own_trials_and_the_baselines():
    history = History(
        (
            trial(0, "base", Role.MEASURE),
            trial(1, "uniform", Role.BASELINE),
            trial(2, "tpe"),
            trial(3, "doremi", Role.PROXY),
            trial(4, "tpe", result=None),
            trial(5, "confirm", Role.CONFIRM),
        ),
        base=DONE,
    )
    seen = history.seen_by("tpe")
    assert [t.number for t in seen] == [1, 2, 4]
    assert [t.number for t in seen.own] == [2, 4]
    assert seen.base is DONE
    assert len(seen) == 3


@pytest.mark.parametrize("role", list(Role))
def test_roles(role):
    assert (role in RANKED) == (role in {Role.BASELINE, Role.SEARCH, Role.FINAL})
    assert (role in STOPPABLE) == (role is Role.SEARCH)
