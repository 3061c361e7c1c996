"""Studies in which influence is measured: IDEAL and the retraining that checks it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from raymix.core.codec import decode
from raymix.core.errors import SearchError
from raymix.core.forecast import forecast_of
from raymix.core.influence import Influence
from raymix.core.job import Diagnostic, Report, Status, TrainJob, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import RANKED, History, Idle, Role, Trial
from raymix.search.agreement import compare
from raymix.search.dirichlet import Dirichlet
from raymix.search.ideal import Ideal
from raymix.search.perturb import Perturb
from raymix.search.seen import trained
from raymix.strategy.multitask import MultiTask
from raymix.study.confirm import candidates
from raymix.study.objective import Objective, domain_losses
from raymix.study.plan import Confirm, Method, Plan, trainings
from raymix.study.record import costs, equal_histories, read
from raymix.study.serial import run_serial
from raymix.study.store import FILE
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.01, full=1000)
SEARCH = Ideal(line_search=True, rounds=2)
KEY = Diagnostic.INFLUENCE.value


def plan(
    *methods: Method,
    confirm: Confirm = Confirm(0, 0),  # noqa: B008 - frozen
    **fields: object,
) -> Plan:
    settings = {"objective": Objective(), "seed": 5, **fields}
    return Plan(TOY.space(), MultiTask(), methods=methods, confirm=confirm, **settings)


def finished(folder: Path, the_plan: Plan, runner: object = TOY, resume: bool = False) -> History:
    study = Study(folder, the_plan, {}, resume=resume)
    try:
        run_serial(study, runner)
        return study.history
    finally:
        study.close()


def own(history: History, method: str = "ideal") -> list[Trial]:
    return [t for t in history if t.method == method]


def influence(trial: Trial) -> Influence:
    return decode(Influence, trial.result.diagnostics[KEY])


# ---- what the study adds ----


@pytest.mark.parametrize(
    ("objective", "slope"),
    [
        (Objective(), (1 / 3,) * 3),
        (Objective("weighted", {"math": 1, "code": 0, "chat": 3}), (0.25, 0, 0.75)),
    ],
)
def test_an_influence_is_told_the_slope_of_the_objective(tmp_path, objective, slope):
    history = finished(tmp_path, plan(Method("ideal", Ideal(), 9), objective=objective))
    measured = [t for t in own(history) if t.proposal.measure]
    assert len(measured) == 3
    for trial in measured:
        assert influence(trial).slope == pytest.approx(slope)
    assert KEY not in own(history)[-1].result.diagnostics
    assert equal_histories(read(tmp_path).history, history)


def test_slope_comes_in_the_order_of_the_measured_domains(tmp_path):
    @dataclass(frozen=True)
    class Turned:
        def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
            (result,) = TOY.run(jobs, report)
            if KEY not in result.diagnostics:
                return [result]
            plain = {**result.diagnostics[KEY], "domains": ["chat", "math", "code"]}
            return [replace(result, diagnostics={KEY: plain})]

    objective = Objective("weighted", {"math": 1, "code": 0, "chat": 3})
    the_plan = plan(Method("ideal", Ideal(rounds=1), 9), objective=objective)
    history = finished(tmp_path, the_plan, Turned())
    assert influence(own(history)[0]).slope == (0.75, 0.25, 0)


def test_what_was_predicted_stands_beside_what_came_of_it(tmp_path):
    objective = Objective("weighted", {"math": 2, "code": 1, "chat": 1}, kl_to_prior=0.3)
    history = finished(tmp_path, plan(Method("ideal", Ideal(), 9), objective=objective))
    start, *steps = own(history)
    assert not [name for name in start.result.metrics if name.startswith("influence/")]
    assert len(steps) == 3
    for trial in steps:
        found, forecast = trial.result.metrics, forecast_of(trial.proposal)
        before = history.trials[forecast.parent].result.metrics
        changes = {}
        for name in TOY.names:
            changes[name] = found[f"eval/{name}/loss"] - before[f"eval/{name}/loss"]
            assert found[f"influence/{name}/realised"] == pytest.approx(changes[name])
            assert found[f"influence/{name}/predicted"] == forecast.predicted[name]
        predicted = forecast.predicted
        for what, of in (("realised", changes), ("predicted", predicted)):
            expected = 0.5 * of["math"] + 0.25 * of["code"] + 0.25 * of["chat"]
            assert found[f"influence/{what}"] == pytest.approx(expected)
        # Losses, summary and score are what they were.
        assert domain_losses(found).keys() == set(TOY.names)
        assert found["eval/mean"] == pytest.approx(sum(domain_losses(found).values()) / 3)


def test_confirmations_have_no_forecast(tmp_path):
    history = finished(tmp_path, plan(Method("ideal", Ideal(), 9), confirm=Confirm(1, 2)))
    confirms = [t for t in history if t.role is Role.CONFIRM]
    assert len(confirms) == 2 * 3
    assert not [n for t in confirms for n in t.result.metrics if n.startswith("influence")]


def test_a_failed_round_has_nothing_to_compare(tmp_path):
    study = Study(tmp_path, plan(Method("ideal", Ideal(), 9)), {})
    while (trial := study.ask()) is not Idle.DONE:
        if trial.proposal.note and trial.proposal.note.get("round") == 1:
            told = study.tell(trial.number, TrainResult(Status.FAILED, {}, error="NaN"))
            assert told.result.metrics == {}
        else:
            study.tell(trial.number, TOY.run([study.job(trial)], lambda *_: True)[0])
    assert len(own(study.history)) == 4
    study.close()


# ---- trials that only measure ----


def test_measuring_does_not_count_as_training(tmp_path):
    the_plan = plan(Method("ideal", SEARCH, 9), Method("random", Dirichlet(), 9))
    assert trainings(the_plan)["ideal"] == 9
    history = finished(tmp_path, the_plan, replace(TOY, noise=0.0))
    trials = own(history)
    # Start, a line search, its winner's influence, a line search.
    assert [t.role for t in trials] == [Role.SEARCH] * 5 + [Role.MEASURE] + [Role.SEARCH] * 4
    assert len(own(history, "random")) == 9
    assert costs(history)["ideal"].rows == 9 * 1000, "it trains nothing"


def test_num_trials_may_cut_a_line_search_short(tmp_path):
    for most in (1, 3, 5, 7):
        history = finished(tmp_path / str(most), plan(Method("ideal", SEARCH, most)))
        searched = [t for t in own(history) if t.role is Role.SEARCH]
        assert len(searched) == most
        # At 5 the winner would be measured for nothing.
        assert len(own(history)) == most + (most > 5)


def test_a_measurement_is_of_the_winner_as_it_was_trained(tmp_path):
    searcher = Ideal("paper", line_search=True, rounds=2, repeats=2)
    study = Study(tmp_path, plan(Method("ideal", searcher, 99)), {})
    jobs: dict[int, TrainJob] = {}
    while isinstance(trial := study.ask(), Trial):
        jobs[trial.number] = study.job(trial)
        study.tell(trial.number, TOY.run([jobs[trial.number]], lambda *_: True)[0])
    measures = [t for t in own(study.history) if t.role is Role.MEASURE]
    assert [t.seed for t in measures] == [5, 6]
    for trial in measures:
        job, winner = jobs[trial.number], jobs[trial.proposal.start]
        assert job.stages == ()
        assert job.trained == winner.stages
        assert job.seed == winner.seed
        assert winner.keep
        assert job.start == f"toy/trial-{winner.trial}"
        source = study.history.trials[winner.trial]
        assert trial.score == source.score, "the same model, evaluated again"
        truth = TOY.influence(source.mixture, source.proposal.budget.amount)
        np.testing.assert_allclose(influence(trial).effect(), truth.effect())
    study.close()


def test_measurements_are_never_ranked_confirmed_or_taken_for_trainings(tmp_path):
    history = finished(tmp_path, plan(Method("ideal", SEARCH, 9), confirm=Confirm(9, 1)))
    measure = next(t for t in own(history) if t.role is Role.MEASURE)
    assert math.isfinite(measure.score)
    assert measure.score == min(t.score for t in own(history)[:5])
    assert measure not in history.ranking()
    assert measure not in candidates(history, Confirm(99, 1))
    assert len(trained(TOY.space(), [measure])) == 0
    assert all(t.role in RANKED for t in history.ranking())
    confirmed = {t.proposal.note["of"] for t in history if t.role is Role.CONFIRM}
    assert measure.number not in confirmed


def test_a_mixture_with_repeats_is_confirmed_once(tmp_path):
    searcher = Ideal(repeats=2, rounds=1)
    history = finished(tmp_path, plan(Method("ideal", searcher, 9), confirm=Confirm(9, 2)))
    assert [t.seed for t in own(history)] == [5, 6, 5, 6]
    of = [t.proposal.note["of"] for t in history if t.role is Role.CONFIRM]
    # The baselines (the start is the proportional one) and the step, each in two blocks.
    assert len(of) == 3 * 2
    assert len(set(of)) == 3
    assert {t.seed for t in history if t.role is Role.CONFIRM} == {1005, 1006}


@pytest.mark.parametrize("searcher", [SEARCH, Ideal("paper", trust_region=True, repeats=2)])
def test_resuming_after_any_event_gives_the_same_history(tmp_path, searcher):
    the_plan = plan(Method("ideal", searcher, 99), confirm=Confirm(1, 1))
    whole = finished(tmp_path / "whole", the_plan)
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines) + 1, 7):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / FILE).write_bytes(b"".join(lines[:cut]))
        assert equal_histories(finished(folder, the_plan, resume=True), whole), cut


def test_a_runner_that_measures_nothing_is_named(tmp_path):
    @dataclass(frozen=True)
    class Blind:
        def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
            return [replace(result, diagnostics={}) for result in TOY.run(jobs, report)]

    with pytest.raises(SearchError, match="trial 3 of 'ideal' was asked for the influence"):
        finished(tmp_path, plan(Method("ideal", Ideal(), 9)), Blind())


# ---- a study that checks ----


def test_plans_without_standard_baselines(tmp_path):
    searcher = Perturb(0.05, 2)
    count = len(searcher.proposals(TOY.space()))
    the_plan = plan(Method("perturb", searcher, count), standard=False)
    assert trainings(the_plan) == {"baselines": 0, "perturb": 14, "confirmations": 0}
    history = finished(tmp_path, the_plan, replace(TOY, noise=0.0))
    assert [t.method for t in history] == ["base"] + ["perturb"] * 14
    assert {t.seed for t in history} == {5, 6}
    agreement = compare(own(history, "perturb"))
    assert agreement.rows[0].name == "ekfac"
    assert agreement.rows[0].pearson > 0.999
    # The user's own baselines stay.
    mine = {"mine": Mixture.of({"chat": 1.0})}
    assert trainings(plan(standard=False, baselines=mine))["baselines"] == 1


def test_noise_lowers_the_ceiling(tmp_path):
    toy = replace(TOY, noise=0.2)
    the_plan = plan(Method("perturb", Perturb(0.05, 4), 99), standard=False)
    agreement = compare(own(finished(tmp_path, the_plan, toy), "perturb"))
    assert agreement.repeats == 4
    assert agreement.ceiling.pearson < 0.99
    assert min(agreement.errors) > 0


def test_standard_baselines_are_no_part_of_a_studys_identity():
    assert plan().identity() == plan(standard=False).identity()
    assert set(plan().identity()) == {"seed", "objective", "space", "strategy"}
