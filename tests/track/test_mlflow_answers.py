"""A tracking server whose answers come late, get lost, or are a refusal."""

import time
from collections import Counter
from functools import partial

import mlflow
import pytest
from test_mlflow import TOY, about, runs, step, study_of, tracked

from raymix.core.errors import ConfigError
from raymix.study.serial import run_serial
from raymix.track import mlflow as tracking
from raymix.track.mlflow import MlflowTracker
from raymix.track.null import Ending
from raymix.track.outbox import Outbox

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]


def twice(monkeypatch):
    """Each request for a run is sent twice, as MLflow does when an answer is late."""
    create = mlflow.MlflowClient.create_run

    def late(client, *args, **kwargs):
        create(client, *args, **kwargs)
        return create(client, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", late)


def test_a_request_sent_twice_leaves_one_run(uri, tmp_path, monkeypatch):
    twice(monkeypatch)
    study = tracked(uri, tmp_path, "late")
    _, parents, children = runs(uri, "late")
    assert len(parents) == 1
    numbers = [int(run.data.tags["raymix.trial"]) for run in children]
    assert numbers == [trial.number for trial in study.history]
    assert {run.info.status for run in children} == {"FINISHED"}


def test_of_two_runs_of_a_trial_a_resumed_study_goes_on_with_its_own(uri, tmp_path, monkeypatch):
    twice(monkeypatch)
    tracker = MlflowTracker(uri)
    study = study_of(tmp_path, [tracker])
    tracker.study_started(about("killed"))
    step(study)
    step(study, tell=False)
    assert tracker._outbox.close(30) == 0  # written; and then the driver is killed
    study.close()
    _, parents, children = runs(uri, "killed")
    assert len(parents) == 2
    numbers = Counter(int(run.data.tags["raymix.trial"]) for run in children)
    assert set(numbers.values()) == {2}
    used = {run.info.run_id for run in (*parents, *children) if run.data.params}

    study = tracked(uri, tmp_path, "killed", resume=True)
    _, parents, children = runs(uri, "killed")
    assert len(parents) == 1
    assert used < {run.info.run_id for run in (*parents, *children)}
    assert [int(run.data.tags["raymix.trial"]) for run in children] == [
        trial.number for trial in study.history
    ]


def test_parameters_are_written_when_the_server_is_back(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "Outbox", partial(Outbox, pause=0.05))
    log, refused = mlflow.MlflowClient.log_batch, set()

    def lost(client, run_id, *args, **kwargs):
        if kwargs.get("params") and run_id not in refused:
            refused.add(run_id)
            raise ConnectionError("no route to host")
        return log(client, run_id, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lost)
    tracker = MlflowTracker(uri, tell=lambda message: None)
    study = study_of(tmp_path, [tracker])
    tracker.study_started(about("lost"))
    run_serial(study, TOY)
    end = time.monotonic() + 60
    while tracker._outbox._entries and time.monotonic() < end:  # the pass at the end is one
        time.sleep(0.05)
    tracker.study_ended(Ending.FINISHED)
    _, parents, children = runs(uri, "lost")
    assert len(children) == len(study.history)
    assert {run.info.run_id for run in (*parents, *children)} == refused
    assert parents[0].data.params["training.learning_rate"] == "0.001"
    for run, trial in zip(children, study.history, strict=True):
        for name, weight in trial.mixture.as_dict().items():
            assert float(run.data.params[f"weights.{name}"]) == pytest.approx(weight, abs=1e-5)


def test_an_experiment_that_was_deleted_is_refused_before_work_starts(uri):
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ConfigError, match=r"tracking.experiment_name 'gone': .*deleted"):
        MlflowTracker(uri, "gone").study_started(about("refused"))
