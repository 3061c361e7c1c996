"""Trainings in several stages in a real MLflow: ends of stages, forgetting, the strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlflow
import pytest

from raymix.core.codec import to_spec
from raymix.core.job import Point, Spec, Spent, Stage, Status, TrainResult
from raymix.core.mixture import Budget, Mixture
from raymix.core.trial import Proposal, Role, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.toy import Toy
from raymix.track.mlflow import MlflowTracker
from raymix.track.null import About, Ending
from raymix.track.stages import StageLog, strategy_params

pytestmark = [
    # MLflow's own: its protobuf and SQLAlchemy models name what newer versions will drop.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]

NAMES = ("math", "code", "chat")
BASE = (3.0, 2.0, 1.0)
# Each stage reports twice: in its middle and at its end.
CURVE = ((2.0, 1.8, 1.1), (1.0, 1.2, 1.5), (1.2, 1.3, 0.9), (1.3, 1.25, 0.7))


@dataclass(frozen=True)
class Halves:
    """Math and code, then chat."""

    first: tuple[str, ...] = ("math", "code")
    k: float = 0.25

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        half = Budget(budget.amount // 2, budget.unit)
        shares = mixture.as_dict()
        early = Mixture.normalised(NAMES, [shares[n] * (n in self.first) for n in NAMES])
        return Stage(early, half), Stage(Mixture(NAMES, (0.0, 0.0, 1.0)), half, restart=True)


class ByHand:
    """Reports CURVE; a trial of number `stop` is stopped in the middle of its second stage."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def run(self, jobs, report):
        return [self.train(job, report) for job in jobs]

    def train(self, job, report):
        if not job.stages:
            return TrainResult(Status.DONE, metrics(BASE))
        points = []
        for step, losses in enumerate(CURVE, start=1):
            stage = (step - 1) // 2 if len(job.stages) > 1 else 0
            points.append(Point(step, step / 4, metrics(losses), stage))
            report(job.trial, points[-1])
            if job.trial == self.stop and step == 3:
                break
        status = Status.STOPPED if job.trial == self.stop else Status.DONE
        spent = Spent(len(points), 100, 1000, 500)
        return TrainResult(status, points[-1].metrics, tuple(points), spent=spent)


def metrics(losses):
    return {f"eval/{name}/loss": loss for name, loss in zip(NAMES, losses, strict=True)}


def study_of(folder, strategy, listeners=(), resume=False, trials=1):
    methods = (Method("dirichlet", Dirichlet(), trials),)
    plan = Plan(Toy().space(), strategy, Objective(), methods, confirm=Confirm(0, 0))
    return Study(folder, plan, {}, listeners=listeners, resume=resume)


def about(name, study):
    stages = lambda trial: len(study.job(trial).stages)  # noqa: E731
    return About(name, name, 0, strategy=to_spec(study.plan.strategy), stages=stages)


def children(uri, name):
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'raymix'")
    found = client.search_runs([experiment.experiment_id], f"tags.`raymix.study` = '{name}'")
    own = [run for run in found if "raymix.trial" in run.data.tags]
    return client, sorted(own, key=lambda run: int(run.data.tags["raymix.trial"]))


def staged(run):
    return {k: v for k, v in run.data.metrics.items() if k.startswith(("stage/", "forgetting/"))}


def expected(stages=(1, 2), forgot=True):
    found = {}
    for stage in stages:
        for name, loss, base in zip(NAMES, CURVE[2 * stage - 1], BASE, strict=True):
            found |= {
                f"stage/{stage}/{name}/loss": loss,
                f"stage/{stage}/{name}/change": loss - base,
            }
    if forgot:
        lost = dict(zip(NAMES, (0.3, 0.05, 0.0), strict=True))
        found |= {f"forgetting/{name}": value for name, value in lost.items()}
        found["forgetting/mean"] = 0.35 / 3
    return pytest.approx(found)


def test_ends_of_stages_are_metrics_once_at_their_step(uri, tmp_path):
    tracker = MlflowTracker(uri)
    study = study_of(tmp_path, Halves(), [tracker])
    tracker.study_started(about("ends", study))
    run_serial(study, ByHand(stop=3))
    tracker.study_ended(Ending.FINISHED)
    client, runs = children(uri, "ends")
    assert [run.data.tags.get("stages") for run in runs] == [None, "2", "2", "2"]
    assert staged(runs[0]) == {}
    assert staged(runs[1]) == expected()
    # What was stopped in its second stage has only ended the first.
    assert runs[3].data.tags["status"] == "stopped"
    assert staged(runs[3]) == expected((1,), forgot=False)
    for stage, step in ((1, 2), (2, 4)):
        history = client.get_metric_history(runs[1].info.run_id, f"stage/{stage}/chat/change")
        assert [(m.step, m.value) for m in history] == [
            (step, pytest.approx(CURVE[step - 1][2] - 1))
        ]
    (mean,) = client.get_metric_history(runs[1].info.run_id, "forgetting/mean")
    assert mean.step == 4
    params = runs[3].data.params
    assert params["strategy"] == "test_stage_metrics:Halves"
    assert (params["strategy.k"], params["strategy.first"]) == ("0.25", "['math', 'code']")
    assert "strategy" not in runs[0].data.params


def test_trainings_of_one_stage_have_nothing_of_it(uri, tmp_path):
    tracker = MlflowTracker(uri)
    study = study_of(tmp_path, MultiTask(), [tracker])
    tracker.study_started(about("single", study))
    run_serial(study, ByHand())
    tracker.study_ended(Ending.FINISHED)
    _, runs = children(uri, "single")
    assert len(runs) == 4
    for run in runs:
        assert staged(run) == {}
        assert "stages" not in run.data.tags
        assert not [name for name in run.data.params if name.startswith("strategy")]


def test_a_resumed_study_writes_what_the_former_server_never_heard(uri, tmp_path):
    study = study_of(tmp_path, Halves())
    run_serial(study, ByHand())
    study.close()
    tracker = MlflowTracker(uri)
    study = study_of(tmp_path, Halves(), [tracker], resume=True, trials=2)
    tracker.study_started(about("again", study), study.history.trials)
    run_serial(study, ByHand())
    tracker.study_ended(Ending.FINISHED)
    client, runs = children(uri, "again")
    assert len(runs) == 5
    for run in runs[1:]:
        assert staged(run) == expected()
        assert run.data.tags["stages"] == "2"
        assert len(client.get_metric_history(run.info.run_id, "stage/1/math/loss")) == 1


def heard(log, proposal=None, base=True):
    """Names and values of what the log says as a trial of CURVE goes on, and at its end."""
    proposal = proposal or Proposal(Toy().space().prior)
    if base:
        first = TrainResult(Status.DONE, metrics(BASE))
        log.closed(Trial(0, "base", Proposal(Toy().space().prior, role=Role.MEASURE), 0, first))
    points = [Point(i, i / 4, metrics(x), (i - 1) // 2) for i, x in enumerate(CURVE, start=1)]
    trial = Trial(7, "m", proposal, 0)
    said = [{m.key: m.value for m in log.heard(trial, point)} for point in points]
    result = TrainResult(Status.DONE, points[-1].metrics, tuple(points))
    end = {m.key: m.value for m in log.closed(Trial(7, "m", proposal, 0, result))}
    return said, end


def test_the_end_of_a_stage_is_told_as_soon_as_the_next_begins():
    said, end = heard(StageLog())
    assert [len(part) for part in said] == [0, 0, 6, 0]
    assert said[2] == expected((1,), forgot=False)
    assert end == expected((2,))


def test_without_the_model_before_training_there_is_no_change():
    for proposal, base in ((None, False), (Proposal(Toy().space().prior, model="small"), True)):
        said, end = heard(StageLog(), proposal, base)
        assert set(said[2]) == {f"stage/1/{name}/loss" for name in NAMES}
        assert end["forgetting/math"] == pytest.approx(0.3)


def test_the_parts_of_a_training_that_is_cut_for_branches_are_no_stages():
    for proposal in (
        Proposal(Toy().space().prior, turn=0.5, keep=True),
        Proposal(Toy().space().prior, branch=3),
    ):
        said, end = heard(StageLog(), proposal)
        assert not any(said)
        assert end == {}


def test_strategies_are_called_by_name_and_those_of_users_by_path():
    spec = Spec("raymix.strategy.dmt:DMT", {"special": ["math"], "general": None, "k": 0.25})
    assert strategy_params(spec) == {
        "strategy": "DMT",
        "strategy.special": "['math']",
        "strategy.k": "0.25",
    }
    assert strategy_params(Spec("mine:Own")) == {"strategy": "mine:Own"}
