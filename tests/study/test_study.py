"""Ask and tell on the toy problem: order, seeds, resumption, failures, confirmation."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from raymix.core.errors import ConfigError, MixtureError, StudyError
from raymix.core.job import Diagnostic, Point, Report, Spec, Stage, Status, TrainJob, TrainResult
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.search.fixed import Fixed, Uniform
from raymix.search.grid import Grid
from raymix.search.optuna import Optuna
from raymix.search.seen import trained
from raymix.strategy.multitask import MultiTask
from raymix.study.confirm import content, winner
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan, generator
from raymix.study.record import canonical, costs, equal_histories, read, replay
from raymix.study.serial import run_serial
from raymix.study.store import FILE, read_events
from raymix.study.study import ATTEMPTS, Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)
IDENTITY = {"data": "d1", "model": "m1", "training": {"learning_rate": 1e-3, "max_length": 64}}


def plan(
    methods: Sequence[Method] = (Method("random", Dirichlet(), 3), Method("grid", Grid(4), 2)),
    confirm: Confirm = Confirm(2, 2),  # noqa: B008 - frozen
    toy: Toy = TOY,
    **fields: object,
) -> Plan:
    settings = {"objective": Objective(), "space": toy.space(), "seed": 5, **fields}
    return Plan(strategy=MultiTask(), methods=tuple(methods), confirm=confirm, **settings)


def finished(folder: Path, the_plan: Plan, runner: object = TOY, resume: bool = False) -> History:
    study = Study(folder, the_plan, IDENTITY, resume=resume)
    try:
        run_serial(study, runner)
        return study.history
    finally:
        study.close()


def losses(value: float) -> dict[str, float]:
    return {f"eval/{name}/loss": value for name in TOY.names}


def done(value: float = 1.0, status: Status = Status.DONE, **fields: object) -> TrainResult:
    return TrainResult(status, losses(value), **fields)


def told_base(study: Study) -> None:
    study.tell(study.ask().number, done(2.0))


# ---- order, seeds, jobs ----


def test_order_of_asks(tmp_path):
    history = finished(tmp_path, plan())
    assert [t.method for t in history] == [
        "base",
        "uniform",
        "proportional",
        *("random", "grid", "random", "grid", "random"),
        *("confirm",) * 8,
    ]
    assert [t.role for t in history][:4] == [
        Role.MEASURE,
        Role.BASELINE,
        Role.BASELINE,
        Role.SEARCH,
    ]
    assert [t.number for t in history] == list(range(16))


def test_seeds_are_shared_while_searching_and_fresh_when_confirming(tmp_path):
    history = finished(tmp_path, plan())
    assert {t.seed for t in history if t.role is not Role.CONFIRM} == {5}
    confirms = [t for t in history if t.role is Role.CONFIRM]
    # Blocks: the same seed for all mixtures, block after block.
    assert [t.seed for t in confirms] == [1005] * 4 + [1006] * 4
    assert [t.proposal.note["block"] for t in confirms] == [0] * 4 + [1] * 4


def test_only_base_and_confirmations_see_the_test_split(tmp_path):
    history = finished(tmp_path, plan())
    for trial in history:
        has_test = any(name.startswith("test/") for name in trial.result.metrics)
        assert has_test == (trial.number == 0 or trial.role is Role.CONFIRM)


def test_confirmed_are_the_baselines_and_the_best_others(tmp_path):
    history = finished(tmp_path, plan())
    others = [t for t in history.ranking() if t.role is not Role.BASELINE]
    confirmed = {t.proposal.note["of"] for t in history if t.role is Role.CONFIRM}
    assert confirmed == {1, 2, others[0].number, others[1].number}


def test_job_of_a_trial(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    base = study.ask()
    assert study.job(base) == TrainJob(0, (), TOY.space(), 5, test=True)
    study.tell(0, done())
    trial = study.ask()
    assert study.job(trial) == TrainJob(1, (Stage(trial.mixture, Budget(1000)),), TOY.space(), 5)
    study.close()


def test_a_bigger_study_asks_what_is_missing_only(tmp_path):
    first = finished(tmp_path, plan((Method("random", Dirichlet(), 2),)))
    methods = (Method("random", Dirichlet(), 4), Method("grid", Grid(3), 1))
    second = finished(tmp_path, plan(methods), resume=True)
    assert second.trials[: len(first)] == first.trials
    later = second.trials[len(first) :]
    assert [t.method for t in later if t.role is Role.SEARCH] == ["grid", "random", "random"]
    # Confirmations that exist are not asked again; each candidate has each block once.
    keys = [(t.proposal.note["of"], t.seed) for t in second if t.role is Role.CONFIRM]
    assert len(keys) == len(set(keys))


def test_no_confirmation_when_none_is_wanted(tmp_path):
    for i, confirm in enumerate((Confirm(0, 0), Confirm(3, 0))):
        history = finished(tmp_path / str(i), plan(confirm=confirm))
        assert not [t for t in history if t.role is Role.CONFIRM]
        assert winner(history) == history.ranking()[0]


# ---- baselines ----


def test_users_baselines_and_equal_ones_are_trained_once(tmp_path):
    toy = Toy(sizes=(700, 700, 700))
    own = {"mine": Mixture.of({"chat": 1.0}), "same": Mixture.normalised(toy.names, (1, 1, 1))}
    history = finished(tmp_path, plan((), toy=toy, baselines=own), toy)
    bases = [t for t in history if t.role is Role.BASELINE]
    assert [t.method for t in bases] == ["uniform", "mine"]
    assert bases[0].proposal.note == {
        "names": ["uniform", "proportional", "same"],
        "projected": False,
    }
    assert bases[1].mixture.weights == (0.0, 0.0, 1.0)


def test_forbidden_uniform_is_replaced_by_the_nearest_and_says_so(tmp_path):
    # Two epochs of 1000 rows are a fifth of 10,000.
    space = replace(TOY.space(10_000), max_epochs=(2.0, math.inf, math.inf))
    history = finished(tmp_path, plan((), space=space))
    uniform = history.trials[1]
    np.testing.assert_allclose(uniform.mixture.weights, (0.2, 0.4, 0.4), atol=1e-9)
    assert uniform.proposal.note["projected"]


def test_users_baseline_outside_the_bounds_is_refused():
    space = replace(TOY.space(10_000), max_epochs=(2.0, math.inf, math.inf))
    with pytest.raises(MixtureError, match=r"baseline 'mine' gives 'math' 0\.5 of the budget"):
        plan(space=space, baselines={"mine": Mixture.of({"math": 0.5, "code": 0.5})})


@pytest.mark.parametrize("name", ["base", "confirm", "uniform", "proportional"])
def test_reserved_names_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        Method(name, Uniform(), 1)
    with pytest.raises(ConfigError, match=name):
        plan(baselines={name: Mixture.of({"math": 1.0})})


def test_names_used_twice_are_refused():
    with pytest.raises(ConfigError, match="'a' is used twice"):
        plan((Method("a", Uniform(), 1), Method("a", Dirichlet(), 1)))


# ---- determinism and resumption ----

OPTUNA = (Method("tpe", Optuna(startup=3), 6), Method("random", Dirichlet(), 2))


def test_same_seed_same_history_other_seed_another(tmp_path):
    first = finished(tmp_path / "a", plan(OPTUNA))
    assert equal_histories(first, finished(tmp_path / "b", plan(OPTUNA)))
    assert not equal_histories(first, finished(tmp_path / "c", plan(OPTUNA, seed=6)))


def test_the_generator_depends_on_seed_method_and_number_only():
    draws = {
        generator(seed, method, number).random()
        for seed in (0, 1)
        for method in ("a", "b")
        for number in (0, 1)
    }
    assert len(draws) == 8
    assert generator(0, "a", 1).random() == generator(0, "a", 1).random()


def test_resuming_after_any_event_gives_the_same_history(tmp_path):
    the_plan = plan(OPTUNA, Confirm(1, 2))
    whole = finished(tmp_path / "whole", the_plan)
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines) + 1, 4):
        folder = tmp_path / str(cut)
        folder.mkdir()
        # The crash also tore the next line.
        torn = lines[cut][: len(lines[cut]) // 2] if cut < len(lines) else b""
        (folder / FILE).write_bytes(b"".join(lines[:cut]) + torn)
        resumed = finished(folder, the_plan, resume=True)
        assert equal_histories(resumed, whole), cut
        assert equal_histories(read(folder).history, whole)


def test_an_open_ask_is_asked_again_first_with_the_next_attempt(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    told_base(study)
    opened = [study.ask(), study.ask()]
    assert [study.job(t).attempt for t in opened] == [0, 0]
    study.close()
    for attempt in (1, 2, 3, 4):  # interruptions are no failures: there is no limit to them
        study = Study(tmp_path, plan(), IDENTITY, resume=True)
        again = [study.ask(), study.ask()]
        assert again == opened
        assert [study.job(t).attempt for t in again] == [attempt] * 2
        study.close()
    study = Study(tmp_path, plan(), IDENTITY, resume=True)
    assert [study.ask().number for _ in range(3)] == [1, 2, 3]
    study.close()


def test_points_of_an_earlier_attempt_stay_in_the_curve(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    told_base(study)
    trial = study.ask()
    for step in (1, 2):
        study.reported(trial.number, Point(step, step / 4, losses(2.0 - step / 10)))
    study.close()
    study = Study(tmp_path, plan(), IDENTITY, resume=True)
    assert study.ask() == trial
    # The worker went on from its checkpoint at step 1.
    late = tuple(Point(step, step / 4, losses(2.0 - step / 10)) for step in (2, 3, 4))
    told = study.tell(trial.number, done(1.6, curve=late))
    assert [p.step for p in told.result.curve] == [1, 2, 3, 4]
    assert [p.metrics["eval/mean"] for p in told.result.curve] == pytest.approx(
        [1.9, 1.8, 1.7, 1.6]
    )
    study.close()


def test_a_killed_driver_resumes_to_the_same_history(tmp_path):
    """The real thing: SIGKILL in mid-study, a new process, the same history."""
    code = """
import sys, time
from raymix.study.serial import run_serial
from raymix.study.study import Study
sys.path.insert(0, sys.argv[2])
from test_study import IDENTITY, TOY, Slow, plan, OPTUNA
study = Study(sys.argv[1], plan(OPTUNA), IDENTITY, resume=True)
run_serial(study, Slow())
study.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "killed"), str(Path(__file__).parent)]
    for after in (4, 9):
        driver = subprocess.Popen(command, stderr=subprocess.PIPE)
        while driver.poll() is None and len(told_lines(tmp_path / "killed")) < after:
            pass
        driver.send_signal(signal.SIGKILL)
        _, said = driver.communicate(timeout=60)
        assert len(told_lines(tmp_path / "killed")) >= after, said
    resumed = finished(tmp_path / "killed", plan(OPTUNA), resume=True)
    assert len(resumed) > 10
    assert equal_histories(resumed, finished(tmp_path / "whole", plan(OPTUNA)))


class Slow:
    """The toy, taking its time, so that a kill falls into a training."""

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        import time

        def slowly(trial: int, point: Point) -> bool:
            time.sleep(0.01)
            return report(trial, point)

        return TOY.run(jobs, slowly)


def told_lines(folder: Path) -> list[str]:
    path = folder / FILE
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if line.startswith('{"event":"told"')]


def test_a_study_is_not_started_over_by_accident(tmp_path):
    finished(tmp_path, plan())
    with pytest.raises(StudyError, match="already holds a study of 16 trials; resume it"):
        Study(tmp_path, plan(), IDENTITY)
    # The refusal wrote nothing and holds no lock; resuming a finished study asks nothing.
    before = (tmp_path / FILE).read_bytes()
    study = Study(tmp_path, plan(), IDENTITY, resume=True)
    assert study.ask() is Idle.DONE
    study.close()
    assert (tmp_path / FILE).read_bytes().startswith(before)


def test_resume_without_a_study_starts_one(tmp_path):
    assert len(finished(tmp_path, plan(), resume=True)) == 16


@pytest.mark.parametrize(
    ("changed", "identity", "message"),
    [
        ({"seed": 6}, IDENTITY, "seed was 5, is 6"),
        ({"objective": Objective("worst")}, IDENTITY, "objective.aggregate was mean, is worst"),
        ({"space": TOY.space(999)}, IDENTITY, "space.budget.amount was 1000, is 999"),
        ({}, {**IDENTITY, "data": "d2"}, "data was d1, is d2"),
        (
            {},
            {**IDENTITY, "training": {"learning_rate": 1e-4, "max_length": 64}},
            "training.learning_rate was 0.001, is 0.0001",
        ),
        ({}, {"data": "d1", "model": "m1"}, "training was"),
    ],
)
def test_a_changed_experiment_is_not_resumed(tmp_path, changed, identity, message):
    finished(tmp_path, plan((), Confirm(0, 0)))
    with pytest.raises(StudyError) as error:
        Study(tmp_path, plan((), Confirm(0, 0), **changed), identity, resume=True)
    assert message in str(error.value)
    assert str(error.value).count(" was ") == 1


def test_a_history_that_makes_no_sense_names_its_line(tmp_path):
    finished(tmp_path, plan((), Confirm(0, 0)))
    path = tmp_path / FILE
    lines = path.read_text().splitlines()
    told = next(i for i, line in enumerate(lines) if '"told"' in line)
    for bad in (
        [*lines[: told + 1], lines[told]],
        [*lines[:told], lines[told].replace(":0,", ":7,", 1)],
    ):
        path.write_text("\n".join(bad) + "\n")
        with pytest.raises(StudyError, match=f"line {len(bad)}: trial . was"):
            read(tmp_path)
    path.write_text("\n".join([*lines[:told], lines[told].replace('"status"', '"statos"')]) + "\n")
    with pytest.raises(StudyError, match=rf"(?s)line {told + 1}: .*status"):
        read(tmp_path)


# ---- failures ----


class Faulty:
    """The toy, with answers of its own for some trials."""

    def __init__(self, answers: Mapping[int, TrainResult]) -> None:
        self.answers = answers
        self.ran: list[int] = []

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        (job,) = jobs
        self.ran.append(job.trial)
        return [self.answers[job.trial]] if job.trial in self.answers else TOY.run(jobs, report)


def test_failed_and_nan_trials_are_recorded_and_the_search_goes_on(tmp_path):
    answers = {
        3: TrainResult(Status.FAILED, {}, error="loss is NaN at step 7"),
        4: done(math.nan),
        5: done(status=Status.STOPPED, value=0.9),
    }
    runner = Faulty(answers)
    history = finished(tmp_path, plan(OPTUNA), runner)
    assert history.trials[3].result.error == "loss is NaN at step 7"
    assert math.isnan(history.trials[3].score)
    assert math.isnan(history.trials[4].score)
    assert history.trials[5].score == pytest.approx(0.9)
    ranked = {t.number for t in history.ranking()}
    assert {3, 4} & ranked == set()
    assert 5 in ranked
    assert sum(t.role is Role.SEARCH for t in history) == 8
    assert runner.ran == sorted(runner.ran), "a told trial is never run again"
    assert len(runner.ran) == len(set(runner.ran)) == len(history)
    assert equal_histories(read(tmp_path).history, history)


def test_a_trial_that_never_gives_a_result_fails_for_good(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    told_base(study)
    first, second = study.ask(), study.ask()
    for attempt in range(ATTEMPTS):
        assert study.attempt(first.number) == attempt
        told = study.tell(first.number, None, f"worker died {attempt}")
        if attempt < ATTEMPTS - 1:
            assert told.pending
            assert study.ask() == first, "a failed attempt is repeated before anything new"
    assert told.result.status is Status.FAILED
    assert told.result.error == "3 attempts failed: worker died 2"
    assert study.ask().number == second.number + 1
    study.close()
    # The count of failures survives a crash of the driver.
    study = Study(tmp_path, plan(), IDENTITY, resume=True)
    assert study.ask() == second
    study.close()


def test_a_trial_is_told_once(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    told_base(study)
    size = (tmp_path / FILE).stat().st_size
    for wrong, message in ((0, "trial 0 was already told"), (7, "trial 7 was never asked")):
        for refused in (
            lambda n=wrong: study.tell(n, done()),
            lambda n=wrong: study.tell(n, None),
            lambda n=wrong: study.started(n),
            lambda n=wrong: study.reported(n, Point(0, 0.0, {})),
        ):
            with pytest.raises(StudyError, match=message):
                refused()
    assert (tmp_path / FILE).stat().st_size == size, "what does not fit is not written"
    study.close()


def test_without_a_base_nothing_can_be_judged(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    study.ask()
    assert study.ask() is Idle.WAIT
    with pytest.raises(StudyError, match="base model could not be evaluated: no such model"):
        study.tell(0, TrainResult(Status.FAILED, {}, error="no such model"))
    study.close()
    # Whoever has mended the model can go on.
    study = Study(tmp_path, plan(), IDENTITY, resume=True)
    assert study.ask().number == 0
    assert study.tell(0, done()).finished
    study.close()


def test_a_full_disk_leaves_study_and_file_in_step(tmp_path, monkeypatch):
    import os

    study = Study(tmp_path, plan(), IDENTITY)
    told_base(study)
    trial = study.ask()
    with monkeypatch.context() as patch:

        def full(*arguments: object) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "pwrite", full)
        with pytest.raises(StudyError, match="No space left on device"):
            study.tell(trial.number, done())
    assert study.history.trials[trial.number].pending
    study.tell(trial.number, done())
    study.close()
    assert equal_histories(read(tmp_path).history, study.history)


# ---- several at once ----


def test_pending_trials_of_all_methods_and_waiting_for_the_ranking(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    told_base(study)
    asked = []
    while isinstance(trial := study.ask(), Trial):
        asked.append(trial)
    assert trial is Idle.WAIT, "confirmations need the whole ranking"
    assert [t.method for t in asked] == [
        "uniform",
        "proportional",
        *("random", "grid", "random", "grid", "random"),
    ]
    for trial in reversed(asked):
        assert study.ask() is Idle.WAIT
        study.tell(trial.number, done(trial.number / 10))
    confirms = [study.ask() for _ in range(8)]
    assert all(t.role is Role.CONFIRM for t in confirms)
    assert study.ask() is Idle.WAIT, "a confirmation may still fail and come again"
    for trial in confirms:
        study.tell(trial.number, done())
    assert study.ask() is Idle.DONE
    study.close()


# ---- methods of several steps ----


@dataclass(frozen=True)
class TwoStep:
    """Trains a reference and a proxy on it, measures, then trains the proxy's mean mixture."""

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        own = history.own
        if own and own[-1].pending:
            return Idle.WAIT
        if any("test" in name for t in history for name in t.result.metrics):
            raise AssertionError("a searcher saw test losses")
        if any("test" in name for name in history.base.metrics):
            raise AssertionError("a searcher saw the base's test losses")
        steps = (
            Proposal(space.uniform(), Budget(100), model="small", role=Role.REFERENCE),
            Proposal(
                space.uniform(),
                pools=(10, 20, 30),
                model="small",
                reweighter=Spec("raymix.reweight.constant:Constant", {"every": 2}),
                reference=own[0].number if own else None,
                role=Role.PROXY,
            ),
            Proposal(
                space.uniform(),
                start=own[1].number if len(own) > 1 else None,
                model="small",
                measure=frozenset({Diagnostic.INFLUENCE}),
                role=Role.MEASURE,
            ),
            Proposal(own[1].result.mean_mixture, role=Role.FINAL) if len(own) > 1 else None,
        )
        return steps[len(own)] if len(own) < len(steps) else Idle.DONE


def test_methods_of_several_steps(tmp_path):
    study = Study(tmp_path, plan((Method("two", TwoStep(), 9),), Confirm(1, 1)), IDENTITY)
    jobs = {}
    while isinstance(trial := study.ask(), Trial):
        jobs[trial.number] = study.job(trial)
        study.tell(trial.number, TOY.run([jobs[trial.number]], lambda *_: True)[0])
    reference, proxy, measure, final = (jobs[n] for n in (3, 4, 5, 6))
    assert reference.stages[0].budget == reference.space.budget == Budget(100)
    assert reference.model == proxy.model == "small"
    assert proxy.reference == "toy/trial-3"
    assert proxy.stages[0].pools == (10, 20, 30)
    assert proxy.stages[0].reweighter.fields == {"every": 2}
    assert (measure.stages, measure.start) == ((), "toy/trial-4")
    assert measure.measure == {Diagnostic.INFLUENCE}
    assert final.test
    assert not proxy.test
    ranked = [t.number for t in study.history.ranking()]
    assert sorted(ranked) == [1, 2, 6], "reference, proxy and measurement are not ranked"
    spent = costs(study.history)
    assert spent["two"].rows == 100 + 1000 + 0 + 1000, "but they are on the method's bill"
    assert spent == study.costs
    # The confirmation repeats the final training, without measurements.
    confirm = next(
        t for t in study.history if t.role is Role.CONFIRM and t.proposal.note["of"] == 6
    )
    assert confirm.mixture == study.history.trials[6].mixture
    study.close()


@dataclass(frozen=True)
class Stubborn:
    """Always answers the same."""

    answer: Proposal | Idle

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        return self.answer


GOOD = TOY.space().uniform()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Idle.WAIT, "method 'bad' waits, but no trial is pending"),
        (Proposal(Mixture.of({"maths": 1.0})), "unknown domain 'maths'"),
        (Proposal(GOOD, start=99), "trial 3 needs the checkpoint of trial 99"),
        (Proposal(GOOD, start=0), "trial 3 needs the checkpoint of trial 0"),
        (Proposal(GOOD, params={"k": 1.0}), "no parameter 'k'"),
        (Proposal(GOOD, model="small", start=1), "trains model 'small' .* is of model 'target'"),
        (Proposal(GOOD, pools=(1, 2)), "3 domains but 2 pools"),
        (Proposal(GOOD, pools=(1, 2, 10**9)), "pool of 'chat' must be 1 to its"),
    ],
)
def test_a_searcher_that_asks_nonsense_is_named_and_not_recorded(tmp_path, answer, message):
    study = Study(tmp_path, plan((Method("bad", Stubborn(answer), 1),)), IDENTITY)
    for _ in range(3):
        study.tell(study.ask().number, done())
    for _ in range(2):
        with pytest.raises((StudyError, MixtureError, ConfigError), match=message):
            study.ask()
    assert len(study.history) == 3
    study.close()


def test_proposals_outside_the_caps_are_refused(tmp_path):
    space = TOY.space(4000, max_epochs=1.0)
    bad = Stubborn(Proposal(Mixture.of({"math": 0.5, "code": 0.5})))
    study = Study(tmp_path, plan((Method("bad", bad, 1),), space=space), IDENTITY)
    for _ in range(3):
        study.tell(study.ask().number, done())
    with pytest.raises(MixtureError, match=r"'bad' gives 'math' 0\.5 of the budget"):
        study.ask()
    study.close()


def test_a_finished_method_does_not_hold_up_the_others(tmp_path):
    methods = (Method("one", Uniform(), 5), Method("random", Dirichlet(), 3))
    history = finished(tmp_path, plan(methods))
    assert sum(t.method == "one" for t in history) == 1
    assert sum(t.method == "random" for t in history) == 3


# ---- reports and listeners ----


class Ear:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def trial_started(self, trial: Trial) -> None:
        self.heard.append(("started", trial.number))

    def reported(self, trial: Trial, point: Point) -> None:
        assert "eval/imbalance" in point.metrics
        self.heard.append(("reported", trial.number))

    def trial_ended(self, trial: Trial) -> None:
        assert trial.result is not None
        self.heard.append(("ended", trial.number))


def test_listeners_hear_what_the_file_says(tmp_path):
    ears = (Ear(), Ear())
    study = Study(tmp_path, plan((), Confirm(0, 0)), IDENTITY, listeners=ears)
    run_serial(study, TOY)
    study.close()
    assert ears[0].heard == ears[1].heard
    words = {"started": "started", "reported": "reported", "told": "ended"}
    written = [
        (words[e["event"]], e["trial"]) for e in read_events(tmp_path) if e["event"] in words
    ]
    assert written == ears[0].heard
    assert ears[0].heard[:3] == [("started", 0), ("ended", 0), ("started", 1)]


def test_reported_points_and_results_carry_the_summary(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    study.ask()
    # While the base is unknown there is nothing to compare it with.
    first = study.reported(0, Point(0, 0.0, losses(2.0))).metrics
    assert first == {**losses(2.0), "eval/mean": 2.0, "eval/worst": 2.0}
    told = study.tell(0, done(2.0))
    assert told.result.metrics["eval/regressed"] == 0.0
    trial = study.ask()
    point = study.reported(trial.number, Point(5, 0.5, {**losses(1.0), "eval/math/loss": 2.5}))
    assert point.metrics["eval/mean"] == pytest.approx(1.5)
    assert point.metrics["eval/regressed"] == 1.0
    assert study.score(trial.number, point.metrics) == (pytest.approx(1.5), 0.0)
    plain = study.reported(trial.number, Point(6, 0.6, {"train/loss": 1.0}))
    assert plain.metrics == {"train/loss": 1.0}
    study.close()
    assert list(read(tmp_path).points[trial.number]) == [5, 6]


def test_guards_count_against_the_base(tmp_path):
    objective = Objective(constraints=("eval/chat/loss <= base + 0.02",))
    study = Study(tmp_path, plan(objective=objective), IDENTITY)
    told_base(study)
    worse, better = study.ask(), study.ask()
    metrics = {**losses(0.5), "eval/chat/loss": 2.05}
    assert study.tell(worse.number, TrainResult(Status.DONE, metrics)).violation == pytest.approx(
        0.03
    )
    study.tell(better.number, done(1.9))
    assert [t.number for t in study.history.ranking()] == [better.number, worse.number]
    assert study.best().number == better.number
    study.close()


def test_a_stopped_trial_ranks_by_its_last_point(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY)
    told_base(study)
    trials = [study.ask() for _ in range(3)]
    study.tell(trials[0].number, done(1.0))
    study.tell(trials[1].number, done(1.2))
    study.tell(trials[2].number, done(1.1, Status.STOPPED))
    assert [t.number for t in study.history.ranking()] == [1, 3, 2]
    study.close()


# ---- winner ----


def confirm_of(number: int, of: int, block: int, score: float, violation: float = 0.0) -> Trial:
    note = {"of": of, "block": block}
    proposal = Proposal(GOOD, role=Role.CONFIRM, note=note)
    return Trial(number, "confirm", proposal, 1000 + block, done(score), score, violation)


def test_winner_is_the_best_on_fresh_seeds_not_the_luckiest():
    ranked = [
        Trial(n, "random", Proposal(GOOD), 0, done(s), s) for n, s in ((0, 1.0), (1, 1.1), (2, 1.2))
    ]
    assert winner(History(tuple(ranked))).number == 0
    confirms = [
        confirm_of(3, 0, 0, 1.5),
        confirm_of(4, 0, 1, 1.3),
        confirm_of(5, 1, 0, 1.2),
        confirm_of(6, 1, 1, 1.3),
        confirm_of(7, 2, 0, 0.1),
        replace(confirm_of(8, 2, 1, math.nan), result=TrainResult(Status.FAILED, {}, error="NaN")),
    ]
    assert winner(History((*ranked, *confirms))).number == 1
    broken = [replace(t, violation=0.1) if t.proposal.note["of"] == 1 else t for t in confirms]
    assert winner(History((*ranked, *broken))).number == 0
    assert winner(History()) is None


def test_half_a_block_of_confirmations_decides_nothing():
    ranked = tuple(
        Trial(n, "random", Proposal(GOOD), 0, done(s), s) for n, s in ((0, 2.0), (1, 1.0))
    )
    first = (confirm_of(2, 0, 0, 1.9),)
    assert winner(History((*ranked, *first))).number == 1
    block = (*first, confirm_of(3, 1, 0, 1.2))
    assert winner(History((*ranked, *block))).number == 1
    # The second block has begun with a lucky repeat of trial 0: it does not count yet.
    assert winner(History((*ranked, *block, confirm_of(4, 0, 1, 0.1)))).number == 1


# ---- values ----


def test_canonical_leaves_out_what_a_rerun_changes(tmp_path):
    history = finished(tmp_path, plan((), Confirm(0, 0)))
    trial = history.trials[1]
    other = replace(
        trial.result, spent=replace(trial.result.spent, seconds=9.0), checkpoint="elsewhere"
    )
    changed = History((history.trials[0], replace(trial, result=other), *history.trials[2:]))
    assert equal_histories(history, changed)
    worse = replace(trial, score=trial.score + 1e-15)
    assert not equal_histories(history, History((history.trials[0], worse, *history.trials[2:])))
    assert json.dumps(canonical(history))


def test_records_are_the_same_live_and_replayed(tmp_path):
    study = Study(tmp_path, plan(), IDENTITY, config={"any": ["thing"]})
    run_serial(study, TOY)
    study.close()
    record = replay(read_events(tmp_path))
    assert repr(record.history) == repr(study.history)
    assert record.header["config"] == {"any": ["thing"]}
    assert record.header["fingerprint"] == study.fingerprint
    assert record.pending == ()


@pytest.mark.parametrize("fields", [{"top_k": -1}, {"seeds": -1}])
def test_confirm_refuses_negative_numbers(fields):
    with pytest.raises(ConfigError, match="must not be negative"):
        Confirm(**fields)


def test_fixed_mixtures_as_a_method(tmp_path):
    mixtures = (Mixture.of({"math": 1.0}), Mixture.of({"chat": 1.0}))
    history = finished(tmp_path, plan((Method("mine", Fixed(mixtures), 9),)))
    own = [t for t in history if t.method == "mine"]
    assert [t.mixture.weights for t in own] == [(1, 0, 0), (0, 0, 1)]


def test_plan_refuses_bad_numbers():
    with pytest.raises(ConfigError, match="seed must be >= 0, got -1"):
        plan(seed=-1)
    with pytest.raises(ConfigError, match=r"num_trials of 'a' must be >= 0, got -2"):
        Method("a", Uniform(), -2)
    assert dataclasses.is_dataclass(plan())


@dataclass(frozen=True)
class Ordered:
    """A strategy of two stages with pools, a reweighter and a replay of its own."""

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        first = Stage(mixture, budget, pools=(5, 6, 7), reweighter=Spec("its:Own"))
        return first, Stage(mixture, budget, replay=("math",), restart=True)


def test_what_a_strategy_says_of_its_stages_stands_unless_a_proposal_says_otherwise(tmp_path):
    own = Spec("a:Proposal")
    answers = Proposal(GOOD), Proposal(GOOD, pools=(10, 20, 30), reweighter=own, keep=True)
    for number, answer in enumerate(answers):
        settings = plan((Method("one", Stubborn(answer), 1),))
        settings = replace(settings, strategy=Ordered())
        study = Study(tmp_path / str(number), settings, IDENTITY)
        for _ in range(3):
            study.tell(study.ask().number, done())
        job = study.job(study.ask())
        assert job.keep == (number == 1)
        assert job.stages[1].replay == ("math",)
        if number == 0:
            assert [s.pools for s in job.stages] == [(5, 6, 7), None]
            assert [s.reweighter for s in job.stages] == [Spec("its:Own"), None]
            assert job.space == TOY.space()
        else:
            assert [s.pools for s in job.stages] == [(10, 20, 30)] * 2
            assert [s.reweighter for s in job.stages] == [own] * 2
            assert [d.rows for d in job.space.domains] == [10, 20, 30]
        study.close()


def test_epoch_caps_are_of_the_pool(tmp_path):
    space = TOY.space(400, max_epochs=2.0)
    pools = (100, *(domain.rows for domain in space.domains[1:]))
    bad = Stubborn(Proposal(GOOD, Budget(900), pools))
    study = Study(tmp_path, plan((Method("bad", bad, 1),), space=space), IDENTITY)
    for _ in range(3):
        study.tell(study.ask().number, done())
    # 2 epochs of 100 rows are 0.222 of 900 draws.
    with pytest.raises(MixtureError, match=r"'math' 0\.3333 .* allow 0 to 0\.2222"):
        study.ask()
    study.close()


def test_a_kept_model_is_no_other_training():
    kept = Proposal(GOOD, keep=True)
    assert trained(TOY.space(), [Trial(1, "a", kept, 0)]) == trained(
        TOY.space(), [Trial(1, "a", Proposal(GOOD), 0)]
    )
    assert content(kept) == content(Proposal(GOOD))
