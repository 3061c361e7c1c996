"""Two histories held against each other: what must be the same, and what is found where it isn't.

The studies are of the toy problem, trained in this process; one of them tells in another order.
"""

import dataclasses

import pytest
from scripts import loaded

from raymix.core.job import Point
from raymix.search import Dirichlet, Optuna
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.store import read_events
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy()


@pytest.fixture(scope="module")
def script():
    return loaded("two_histories.py")


def events(folder, at_once=1, change=None):
    """Of a study of which `at_once` trainings are open; the last one asked is told first."""
    methods = (Method("dirichlet", Dirichlet(), 4), Method("tpe", Optuna("tpe", startup=2), 4))
    plan = Plan(TOY.space(), MultiTask(), Objective(), methods, confirm=Confirm(top_k=1, seeds=1))
    study = Study(folder, plan, {"data": "toy"})
    opened = []
    while True:
        answer = study.ask() if len(opened) < at_once else None
        if hasattr(answer, "number"):
            opened.append(answer)
            continue
        if not opened:
            break
        trial = opened.pop()
        (result,) = TOY.run([study.job(trial)], lambda number, point: True)
        if trial.number == change:
            result = dataclasses.replace(result, metrics={**result.metrics, "extra": 1.0})
        study.tell(trial.number, result)
    study.close()
    return read_events(folder)


def compared(script, one, other):
    return script["pairs"](*(script["asked"](each, ("dirichlet",)) for each in (one, other)))


def test_the_same_order_must_give_the_same_and_does(script, tmp_path):
    found = compared(script, events(tmp_path / "a"), events(tmp_path / "b"))
    assert len(found) == 1 + 2 + 8 + 3
    assert all(pair.must and pair.alike and pair.equal and not pair.wrong for pair in found)


def test_another_order_frees_only_those_that_look_at_what_was_told(script, tmp_path):
    found = compared(script, events(tmp_path / "a"), events(tmp_path / "b", at_once=3))
    assert not any(pair.wrong for pair in found)
    free = {pair.one.trial.method for pair in found if not pair.must}
    assert "tpe" in free <= {"tpe", "confirm"}
    assert all(pair.must and pair.equal for pair in found if pair.one.trial.method == "dirichlet")


def test_one_metric_of_one_training_is_noticed(script, tmp_path):
    found = compared(script, events(tmp_path / "a"), events(tmp_path / "b", change=5))
    wrong = [pair for pair in found if pair.wrong]
    assert [pair.one.trial.number for pair in wrong] == [5]
    assert wrong[0].alike


def test_a_training_that_is_missing_is_noticed(script, tmp_path):
    one = script["asked"](events(tmp_path / "a"), ("dirichlet",))
    found = script["pairs"](one, [a for a in one if a.trial.number != 10])
    assert [pair.one.trial.number for pair in found if pair.wrong] == [10]


def reported(trial, step, time):
    point = Point(step, 0.5, {})
    return {
        "event": "reported",
        "trial": trial,
        "time": time,
        "point": dataclasses.asdict(point),
    }


def test_where_a_training_went_on_shows_in_what_it_reported_again(script):
    """Checkpoints at 50 and 100: one died after 70, another before its first checkpoint."""
    told = [
        *(reported(1, step, step / 10) for step in (10, 20, 30, 40, 50, 60, 70)),
        *(reported(2, step, step / 10) for step in (10, 20, 10, 20)),
        *(reported(1, step, step / 10 + 3.0) for step in (60, 70, 80)),
    ]
    second, first = script["struck"](told, 50)
    assert (first.trial, first.reached, first.saved) == (1, 70, 50)
    assert first.silent == pytest.approx(2.0)
    assert (second.trial, second.reached, second.saved) == (2, 20, 0)
