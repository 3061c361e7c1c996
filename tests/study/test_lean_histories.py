"""A long history: nothing of it is held twice, and no ask walks through it over and over."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from raymix.core.codec import decode, encode
from raymix.core.influence import Influence
from raymix.core.job import Diagnostic, Point, Spent, Status, TrainResult
from raymix.core.trial import History, Proposal, Role, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.search.ideal import Ideal
from raymix.search.mos import MosSearch
from raymix.search.seen import key
from raymix.strategy.multitask import MultiTask
from raymix.study.bill import foreseen, spent, units
from raymix.study.blind import blind
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read, shared
from raymix.study.serial import run_serial
from raymix.study.store import FILE
from raymix.study.study import Study
from raymix.testing.conformance import began, rng, told
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)
MIX = TOY.space().prior
BUDGET = TOY.space().budget


def plan(trials: int = 6) -> Plan:
    method = Method("dirichlet", Dirichlet(), trials)
    return Plan(TOY.space(), MultiTask(), Objective(), (method,), confirm=Confirm(1, 2))


@pytest.fixture
def study(tmp_path):
    found = Study(tmp_path, plan(), {"data": "toy"})
    run_serial(found, TOY)
    yield found
    found.close()


# ---- the record ----


@pytest.mark.parametrize("live", [True, False])
def test_names_are_held_once_and_curves_once(study, live):
    record = study._record if live else read(study.folder)
    results = [trial.result for trial in record.trials.values()]
    # Equal names are one object in all trials, points and tables of what was drawn.
    for names in (
        [name for result in results for point in result.curve for name in point.metrics],
        [drawn.domain for result in results for drawn in result.realised],
        [name for trial in record.history for name in trial.mixture.names],
    ):
        assert len(names) > len(set(names)) == len({id(name) for name in names})
    # What a training ended with is its last point's, and its points are in its curve only.
    assert all(r.metrics is r.curve[-1].metrics for r in results if r.curve)
    assert not any(record.points.values())


def test_what_is_open_keeps_its_points(tmp_path):
    study = Study(tmp_path, plan(), {})
    study.ask()
    study.reported(0, Point(1, 0.5, {"eval/math/loss": 2.0}))
    study.close()
    assert list(read(tmp_path).points[0]) == [1]


@pytest.mark.parametrize(
    "plain",
    [{"a": ["b", {"b": "a"}], "n": [1, 2.5, None, True]}, [], "a", 3, {"a": {"a": {"a": []}}}],
    ids=str,
)
def test_shared_json_is_equal_json(plain):
    known: dict[str, str] = {}
    assert shared(plain, known) == plain
    assert json.dumps(shared(plain, known)) == json.dumps(plain)


def test_a_resumed_study_does_not_keep_the_file_in_memory(study):
    before = encode(study.history)
    study.close()
    again = Study(study.folder, plan(), {"data": "toy"}, resume=True)
    assert again._store.events == []
    assert encode(again.history) == before
    study.close = again.close


def test_the_file_has_every_point_twice_still(study):
    """Reported and told: files look as they always did, for older readers."""
    events = [json.loads(line) for line in (study.folder / FILE).read_text().splitlines()]
    points = sum(event["event"] == "reported" for event in events)
    curves = sum(len(e["result"]["curve"]) for e in events if e["event"] == "told")
    assert points == curves > 0


# ---- what searchers see ----


def test_only_what_has_test_losses_is_copied(study):
    history = study.history
    seen = blind(history)
    for before, after in zip(history, seen, strict=True):
        tests = [name for name in before.result.metrics if name.startswith("test/")]
        assert (after is before) == (not tests)
        points = [after.result.metrics, *(point.metrics for point in after.result.curve)]
        assert not any(name.startswith("test/") for metrics in points for name in metrics)
    assert {t.role for t, s in zip(history, seen, strict=True) if s is not t} >= {Role.CONFIRM}


def test_a_point_with_test_losses_is_blinded_though_the_end_has_none():
    curve = (Point(1, 0.5, {"test/math/loss": 1.0, "eval/math/loss": 2.0}),)
    trial = Trial(
        1, "m", Proposal(MIX), 0, TrainResult(Status.DONE, {"eval/math/loss": 1.0}, curve)
    )
    (seen,) = blind(History((trial,), "m"))
    assert dict(seen.result.curve[0].metrics) == {"eval/math/loss": 2.0}


@pytest.mark.parametrize("dust", [0.0, 1e-9])
def test_keys_tell_trainings_apart_to_a_millionth(dust):
    mixture = Dirichlet().propose(TOY.space(), History(), rng(0)).mixture
    moved = [mixture.weights[0] + dust, mixture.weights[1] - dust, *mixture.weights[2:]]
    assert key(mixture) == key(replace(mixture, weights=tuple(moved)))
    assert key(mixture) == tuple(round(weight, 6) for weight in mixture.weights)
    other = [mixture.weights[0] + 2e-6, mixture.weights[1] - 2e-6, *mixture.weights[2:]]
    assert key(mixture) != key(replace(mixture, weights=tuple(other)))


# ---- bills ----


class Counted(tuple[Trial, ...]):
    """Trials that count how many of them were looked at."""

    looked = 0

    def __iter__(self):
        for trial in super().__iter__():
            type(self).looked += 1
            yield trial


def measured(count: int) -> list[Trial]:
    """Pairs: a training, and the measurement on it."""
    kind = frozenset({Diagnostic.INFLUENCE})
    found = []
    for number in range(0, 2 * count, 2):
        plain = Proposal(MIX, keep=True)
        result = TrainResult(Status.DONE, {}, spent=Spent(rows=BUDGET.amount, tokens=1000))
        found.append(Trial(number, "m", plain, 0, result, 1.0))
        asked = Proposal(MIX, role=Role.MEASURE, start=number, measure=kind)
        extra = TrainResult(Status.DONE, {}, spent=Spent(extra=100 + number))
        found.append(Trial(number + 1, "m", asked, 0, extra, 1.0))
    return found


def looks(count: int) -> int:
    Counted.looked = 0
    history = History(Counted(measured(count)), "m")
    total, _ = spent(history, BUDGET)
    asked = foreseen(history.trials[1].proposal, history, BUDGET)
    looked = Counted.looked
    assert total == pytest.approx(math.fsum(units(t, BUDGET, history) for t in history))
    assert asked == pytest.approx((100 + 2 * count - 2) / 1000)
    return looked


def test_a_bill_walks_through_a_history_as_often_however_long_it_is():
    assert looks(40) == 2 * looks(20)


# ---- replayed searchers ----


def test_the_policy_is_that_of_sums_taken_anew_at_each_trial():
    """Scales of advantages: the root mean square over all trials so far."""
    space, searcher = TOY.space(), MosSearch(entropy=0.01)
    start = began(space)
    trials = list(start.trials)
    for number in range(60):
        history = History(tuple(trials), "method", start.base)
        trials.append(
            told(Trial(number + 3, "method", searcher.propose(space, history, rng(number)), 0), TOY)
        )
    own = trials[2:]
    reward = [-(t.score + t.violation) + trials[1].score + trials[1].violation for t in own]
    logits = np.log(space.proportional().array())
    usual = [0.0]
    for worth in reward:
        usual.append(usual[-1] + searcher.fresh * (worth - usual[-1]))
    for place, trial in enumerate(own):
        over = np.array(reward[: place + 1]) - np.array(usual[: place + 1])
        counts = np.array(list(trial.proposal.note["counts"].values()))
        p = np.array(list(trial.proposal.note["policy"].values()))
        entropy = -p * (np.log(p) + -(p * np.log(p)).sum())
        step = over[-1] / np.sqrt((over**2).mean()) * (counts - counts.sum() * p)
        logits = logits + searcher.lr * (step / np.sqrt(counts.sum()) + searcher.entropy * entropy)
        logits -= np.log(np.exp(logits).sum())
    found = searcher.policy(space, History(tuple(trials), "method", start.base))
    assert found == pytest.approx(logits, abs=1e-9)


@pytest.mark.parametrize("line_search", [False, True])
def test_a_script_that_goes_on_asks_for_what_a_replayed_one_does(line_search):
    searcher = Ideal(mode="paper", rounds=5, line_search=line_search, repeats=2)
    space, problem = TOY.space(), TOY
    start, own = began(space), list[Trial]()
    script = searcher._script(space)
    batch = next(script)
    while len(own) < 20:
        made = []
        for proposal in batch:
            history = History((*start.trials, *own, *made), "method", start.base)
            assert searcher.propose(space, history, rng(0)) == proposal
            made.append(told(Trial(len(own) + len(made) + 3, "method", proposal, 0), problem))
        own += made
        try:
            batch = script.send(tuple(made))
        except StopIteration:
            break
    assert len(own) >= 12
    assert decode(Influence, own[0].result.diagnostics["influence"]).domains == TOY.names
