"""MLflow on a real database, and on a server that is not there."""

import socket
import time
from pathlib import Path

import mlflow
import pytest

from raymix.core.codec import decode
from raymix.core.errors import ConfigError
from raymix.core.influence import Influence, centred
from raymix.core.job import Point, Status, TrainResult
from raymix.core.trial import Idle
from raymix.search.dirichlet import Dirichlet
from raymix.search.ideal import Ideal
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan, seeded
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.toy import Toy
from raymix.track.mlflow import MlflowTracker
from raymix.track.null import About, Ending

pytestmark = [
    # MLflow's own: its protobuf and SQLAlchemy models name what newer versions will drop.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]

TOY = Toy(noise=0.01)


def study_of(folder, listeners=(), trials=2, resume=False):
    methods = (Method("dirichlet", Dirichlet(), trials),)
    plan = Plan(TOY.space(), MultiTask(), Objective(), methods, confirm=Confirm(1, 1))
    return Study(folder, plan, {}, listeners=listeners, resume=resume)


def about(identity, study=None):
    config = {"training": {"learning_rate": 1e-3}, "datasets": [{"domain": "math"}]}
    groups = {} if study is None else {n: m.group for n, m in study.plan.members.items()}
    return About(identity, "toys", 0, "f00d", config, groups, study and study.units)


def runs(uri, identity):
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("raymix")
    found = client.search_runs([experiment.experiment_id], f"tags.`raymix.study` = '{identity}'")
    parents = [run for run in found if run.data.tags["role"] == "study"]
    children = [run for run in found if run.data.tags["role"] != "study"]
    return client, parents, sorted(children, key=lambda run: int(run.data.tags["raymix.trial"]))


def tracked(uri, folder, identity, resume=False):
    """A study that runs to its end and is told to MLflow."""
    tracker = MlflowTracker(uri)
    study = study_of(folder, [tracker], resume=resume)
    tracker.study_started(about(identity), [t for t in study.history if not t.pending])
    run_serial(study, TOY)
    tracker.study_ended(Ending.FINISHED)
    return study


def test_a_study_is_a_run_and_each_trial_its_child(uri, tmp_path):
    told = []
    tracker = MlflowTracker(uri, tell=told.append)
    study = study_of(tmp_path, [tracker])
    tracker.study_started(about("one"))
    run_serial(study, TOY)
    tracker.artifact(study.folder / "history.jsonl")
    tracker.study_ended(Ending.FINISHED)

    client, parents, children = runs(uri, "one")
    assert told == []
    assert len(parents) == 1
    assert [run.info.status for run in [*parents, *children]] == ["FINISHED"] * (
        1 + len(study.history)
    )
    parent = parents[0]
    assert parent.info.run_name == "toys"
    assert parent.data.params["training.learning_rate"] == "0.001"
    assert [a.path for a in client.list_artifacts(parent.info.run_id)] == ["history.jsonl"]
    beside = Path(uri.removeprefix("sqlite:///")).parent / "mlruns"
    assert parent.info.artifact_uri.startswith(beside.as_uri())
    assert parent.data.metrics["cost/tokens"] == sum(t.result.spent.tokens for t in study.history)
    assert len(client.get_metric_history(parent.info.run_id, "best/score")) == 7

    trial, child = study.history.trials[3], children[3]
    assert child.info.run_name == "toys/dirichlet-003"
    tags = child.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert (tags["searcher"], tags["seed"], tags["role"]) == ("dirichlet", "0", "trial")
    assert (tags["data_fingerprint"], tags["status"]) == ("f00d", "done")
    assert [run.data.tags["role"] for run in children] == [
        "measure",
        "baseline",
        "baseline",
        "trial",
        "trial",
        "confirm",
        "confirm",
        "confirm",
    ]
    for name, weight in trial.mixture.as_dict().items():
        assert float(child.data.params[f"weights.{name}"]) == pytest.approx(weight, abs=1e-6)
        curve = client.get_metric_history(child.info.run_id, f"eval/{name}/loss")
        expected = [(p.step, p.metrics[f"eval/{name}/loss"]) for p in trial.result.curve]
        assert [(m.step, m.value) for m in curve] == expected
        assert child.data.metrics[f"mix/{name}/realised"] == pytest.approx(weight)
    assert child.data.metrics["eval/mean"] == pytest.approx(trial.result.metrics["eval/mean"])
    assert child.data.metrics["eval/worst"] == pytest.approx(trial.result.metrics["eval/worst"])
    assert child.data.metrics["score"] == trial.score
    assert child.data.metrics["cost/tokens"] == trial.result.spent.tokens
    assert "test/math/loss" in children[5].data.metrics
    names = [run.info.run_name for run in children[5:]]
    chosen = {children[int(run.data.tags["confirms"])].info.run_name for run in children[5:]}
    assert names[:2] == ["toys/uniform-confirm-0", "toys/proportional-confirm-0"]
    assert names[2].startswith("toys/dirichlet-00")
    assert names[2].removesuffix("-confirm-0") in chosen
    assert [run.data.params["method"] for run in children[5:]] == [
        "uniform",
        "proportional",
        "dirichlet",
    ]


def test_methods_with_several_seeds_can_be_grouped(uri, tmp_path):
    tracker = MlflowTracker(uri)
    methods = seeded(Method("dirichlet", Dirichlet(), 1), 2)
    confirm = Confirm(0, 2, "methods")
    plan = Plan(TOY.space(), MultiTask(), Objective(), methods, confirm=confirm)
    study = Study(tmp_path, plan, {}, listeners=[tracker])
    tracker.study_started(about("seeds", study))
    for _ in range(5):
        step(study)
    tracker.study_ended(Ending.INTERRUPTED)
    study.close()
    # The second half is told to another tracker, which has not heard of the first.
    tracker = MlflowTracker(uri)
    study = Study(tmp_path, plan, {}, listeners=[tracker], resume=True)
    tracker.study_started(about("seeds", study), [t for t in study.history if not t.pending])
    run_serial(study, TOY)
    tracker.study_ended(Ending.FINISHED)
    _, _, children = runs(uri, "seeds")
    seen = [(r.info.run_name, r.data.params["method"], r.data.tags["group"]) for r in children]
    assert seen == [
        ("toys/base-000", "base", "base"),
        ("toys/uniform-001", "uniform", "uniform"),
        ("toys/proportional-002", "proportional", "proportional"),
        ("toys/dirichlet#0-003", "dirichlet#0", "dirichlet"),
        ("toys/dirichlet#1-004", "dirichlet#1", "dirichlet"),
        *(
            (f"toys/{name}-confirm-{block}", name, name)
            for block in (0, 1)
            for name in ("uniform", "proportional", "dirichlet")
        ),
    ]
    assert [r.data.metrics["cost/units"] for r in children] == [0.0] + [1.0] * 10


def test_a_resumed_study_finds_its_runs_and_writes_what_is_missing(uri, tmp_path):
    tracker = MlflowTracker(uri)
    study = study_of(tmp_path, [tracker])
    tracker.study_started(about("two"))
    for _ in range(3):
        step(study)
    # One more begins; the driver is interrupted.
    step(study, tell=False)
    tracker.study_ended(Ending.INTERRUPTED)
    study.close()
    _, parents, children = runs(uri, "two")
    assert [run.info.status for run in children] == ["FINISHED"] * 3 + ["KILLED"]
    # Without MLflow two more are told.
    study = study_of(tmp_path, resume=True)
    for _ in range(2):
        step(study)
    study.close()

    study = tracked(uri, tmp_path, "two", resume=True)
    client, again, all_children = runs(uri, "two")
    assert [run.info.run_id for run in again] == [run.info.run_id for run in parents]
    numbers = [int(run.data.tags["raymix.trial"]) for run in all_children]
    assert numbers == [trial.number for trial in study.history]
    assert {run.info.status for run in all_children} == {"FINISHED"}
    same = {run.info.run_id for run in children} & {run.info.run_id for run in all_children}
    assert len(same) == 4
    for run, trial in zip(all_children, study.history, strict=True):
        assert run.data.metrics["score"] == trial.score
        history = client.get_metric_history(run.info.run_id, "eval/mean")
        if trial.number in (0, 1, 2):
            assert len(history) == max(1, len(trial.result.curve))


def step(study, tell=True):
    """One ask; told, or left with a point reported."""
    trial = study.ask()
    assert trial is not Idle.DONE
    study.started(trial.number)

    def report(number, point):
        study.reported(number, point)
        return tell

    (result,) = TOY.run([study.job(trial)], report)
    if tell:
        study.tell(trial.number, result)


def test_a_failed_trial_is_a_failed_run_with_its_error(uri, tmp_path):
    tracker = MlflowTracker(uri)
    study = study_of(tmp_path, [tracker])
    tracker.study_started(about("three"))
    step(study)
    trial = study.ask()
    study.started(trial.number)
    study.tell(trial.number, TrainResult(Status.FAILED, {}, error="loss is NaN at step 3"))
    tracker.study_ended(Ending.FAILED)
    _, parents, children = runs(uri, "three")
    assert [run.info.status for run in [*parents, *children]] == ["FAILED", "FINISHED", "FAILED"]
    assert children[1].data.tags["error"] == "loss is NaN at step 3"


def test_an_influence_is_an_artifact_with_metrics_by_domain(uri, tmp_path):
    tracker = MlflowTracker(uri)
    methods = (Method("ideal", Ideal(rounds=1), 5),)
    plan = Plan(TOY.space(), MultiTask(), Objective(), methods, confirm=Confirm(0, 0))
    study = Study(tmp_path, plan, {}, listeners=[tracker])
    tracker.study_started(about("influence"))

    class Measuring:
        def run(self, jobs, report):
            results = TOY.run(jobs, report)
            report(jobs[0].trial, Point(9, 1.0, {"influence/progress": 0.5}))
            return results

    run_serial(study, Measuring())
    tracker.study_ended(Ending.FINISHED)
    client, _, children = runs(uri, "influence")
    measured, step = study.history.trials[3:5]
    child, after = children[3:5]
    assert "influence/progress" not in child.data.metrics
    (artifact,) = client.list_artifacts(child.info.run_id)
    assert artifact.path == "influence.json"
    found = decode(Influence, measured.result.diagnostics["influence"])
    mixture = measured.mixture.ordered(found.domains)
    for name in found.estimates:
        values = centred(found.aggregate(found.effect(name)), mixture)
        for domain, value in zip(found.domains, values, strict=True):
            assert child.data.metrics[f"influence/{name}/{domain}"] == pytest.approx(value)
    assert child.data.metrics["influence/trust/dot"] == pytest.approx(1.0)
    assert "influence/trust/halves" not in child.data.metrics, "unknown here"
    for domain in found.domains:
        for what in ("predicted", "realised"):
            name = f"influence/{domain}/{what}"
            assert after.data.metrics[name] == pytest.approx(step.result.metrics[name])


def test_a_server_that_is_down_costs_a_message_and_no_time(tmp_path, monkeypatch):
    silent = socket.socket()  # bound, so that nobody else gets the port; nobody listens
    silent.bind(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    told = []
    tracker = MlflowTracker(f"http://127.0.0.1:{port}", tell=told.append)
    study = study_of(tmp_path, [tracker])
    begun = time.monotonic()
    tracker.study_started(about("four"))
    assert len(told) == 1
    assert f"http://127.0.0.1:{port} cannot be reached; the study goes on" in told[0]
    started = time.monotonic()
    run_serial(study, TOY)
    assert time.monotonic() - started < 20  # one pause before trying again is 30
    tracker.study_ended(Ending.FINISHED)
    assert len(told) == 2
    assert "lacks the last" in told[1]
    assert time.monotonic() - begun < 60
    silent.close()
    assert len(study.history.finished) == 8


def test_an_address_that_mlflow_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="nowhere://there"):
        MlflowTracker("nowhere://there")
