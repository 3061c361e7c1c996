"""A real MLflow server goes away in mid-study and comes back: it then has every metric."""

import math
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from mlflow import MlflowClient
from pool_clusters import On, nothing_remains, same, straight, through
from pool_processes import free_port, wait_for

from raymix.track import mlflow as track
from raymix.track.mlflow import MlflowTracker
from raymix.track.null import About, Ending

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray's test cluster reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
    # It leaves the pipes of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Server:
    """An MLflow server on one port, which may be started several times."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        database = f"sqlite:///{self.folder}/mlflow.db"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self):
        """As a power cut would: no request is finished."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    wait_for(server.answers, 120)
    yield server
    server.stop()


def written(server):
    """Values by (trial, metric, step); that of the study's own run is trial None."""
    client = MlflowClient(tracking_uri=server.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "raymix"]
    found, runs = {}, {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        trial = run.data.tags.get("raymix.trial")
        assert trial not in runs, "one run for each trial"
        runs[trial] = run
        for name in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                found[trial, name, metric.step] = metric.value
    return runs, found


def test_no_metric_is_lost_while_the_server_is_down(nodes, server, tmp_path, monkeypatch):
    import ray

    # A server that has just come back and is slow is not down.
    monkeypatch.setattr(track, "_LAST_SECONDS", 240.0)
    folder, told = tmp_path / "study", []
    tracker = MlflowTracker(server.uri, tell=told.append)
    tracker.study_started(About("one", "toy", 0))
    down, up = On(2, 5, server.stop), On(3, 8, server.start)
    history = through(folder, "BriskTrainer", trials=3, listeners=(tracker, down, up))
    assert down.done
    assert up.done
    wait_for(server.answers, 120)
    tracker.study_ended(Ending.FINISHED)

    # Told once that it was down, and nothing of entries that were given up.
    assert len(told) == 1, told
    assert "cannot be reached" in told[0]
    runs, values = written(server)
    assert set(runs) == {None, *(str(trial.number) for trial in history)}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    expected = {
        (str(trial.number), name, point.step): value
        for trial in history
        for point in trial.result.curve
        for name, value in point.metrics.items()
        if math.isfinite(value)
    }
    assert len(expected) > 300
    missing = {key for key, value in expected.items() if values.get(key) != value}
    assert not missing
    scores = {key[0]: value for key, value in values.items() if key[1] == "score"}
    assert scores == {str(trial.number): trial.score for trial in history}
    assert same(history, straight(tmp_path / "straight", trials=3))
    nothing_remains(ray, folder)
