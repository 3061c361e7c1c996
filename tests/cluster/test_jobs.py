"""A study submitted from outside to a cluster that asks for a token, as README says."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from pool_processes import HERE, alive, family, free_port, names, wait_for

from raymix.core.job import Status
from raymix.study.record import read

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
RAYS_OWN = {"ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor"}
"""A cluster has one of each of these, from its start or from its first use of Ray Train."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def answer(url, token=None):
    """The status of the dashboard's answer, 0 where there is none."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=60
        ) as said:
            return said.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def head():
    """A head as cluster.yaml starts it: its address, the environment with the token, the process.

    All that it started is killed in the end: SIGTERM would have it wait for its nodes to drain.
    """
    # In a short path: that of a socket has 107 characters at the most.
    temp = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))
    environment = {
        # It would win over --address.
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
    }
    port = free_port()
    ports = ["--port=0", f"--dashboard-port={port}", "--dashboard-agent-listen-port=0"]
    ports += ["--min-worker-port=0", "--max-worker-port=0"]
    where = ["--dashboard-host=127.0.0.1", f"--temp-dir={temp}"]
    size = ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]
    with (temp / "log").open("w") as log:
        process = subprocess.Popen(
            [*RAY, "start", "--head", "--block", *ports, *where, *size],
            env={**environment, "RAY_ADDRESS": "auto"},
            cwd=temp,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answer(f"{url}/api/jobs/", environment["RAY_AUTH_TOKEN"]) == 200, 150)
        yield url, environment, process
    finally:
        started = family(process)
        for one in started:
            one.kill()
        process.wait()
        psutil.wait_procs(started, timeout=30)
        # What one of them has started meanwhile ends when it finds its parent gone.
        wait_for(lambda: not any(str(temp) in name for name in names(psutil.process_iter())), 90)
        shutil.rmtree(temp, ignore_errors=True)


def submitted(url, environment, *command):
    return subprocess.run(
        [*RAY, "job", "submit", "--address", url, "--", sys.executable, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def actors(head):
    """Processes of Ray's that do something, by name: workers, trials, the desk."""
    found = [name.strip() for name in names(family(head))]
    return {n for n in found if n.startswith("ray::") and "IDLE" not in n}


def test_a_submitted_study_succeeds_and_nothing_is_left(head, tmp_path):
    url, environment, process = head
    script = [HERE / "pool_studies.py", tmp_path, "ToyTrainer", 1, 1, 3, "none"]
    said = submitted(url, environment, *script)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "succeeded" in said.stdout
    history = read(tmp_path).history
    assert len(history) == 6
    assert all(trial.result.status is Status.DONE for trial in history)
    end = time.monotonic() + 60
    while left := actors(process) - RAYS_OWN:
        assert time.monotonic() < end, left
        time.sleep(0.2)
    assert not any("pool_studies" in name for name in names(family(process)))
    assert alive([psutil.Process(process.pid)])


def test_a_study_that_cannot_run_fails_with_its_own_words(head, tmp_path):
    url, environment, _ = head
    said = submitted(
        url, environment, HERE / "pool_studies.py", tmp_path, "ToyTrainer", 1, 9, 1, "none"
    )
    assert said.returncode == 1
    assert "asked for 1 pools of 9 worker(s)" in said.stdout


def test_without_the_token_nobody_is_let_in(head, tmp_path):
    url, environment, _ = head
    assert answer(f"{url}/api/jobs/") == 401
    assert answer(f"{url}/api/jobs/", secrets.token_hex(32)) == 403
    said = submitted(url, {**environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "-V")
    assert said.returncode != 0, said.stdout
