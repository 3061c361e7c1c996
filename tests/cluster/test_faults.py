"""Real faults on a real Ray: Ctrl-C, killed workers, killed drivers. Each in its own process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pool_studies import toy_study

from raymix.core.job import Status
from raymix.study.record import equal_histories, read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = Path(__file__).parent


def start(folder, trainer, pools=1, workers=1, trials=2, scheduler="none"):
    args = [folder, trainer, pools, workers, trials, scheduler]
    return subprocess.Popen(
        [sys.executable, HERE / "pool_studies.py", *map(str, args)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=300):
    output, _ = process.communicate(timeout=seconds)
    return output


def log(folder):
    """Steps that were trained: (trial, attempt, step, process)."""
    path = folder / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def alive(processes):
    """Those that still run. The dead ones that nobody has waited for do not count."""
    found = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def family(process):
    """The process and all that it started, Ray's own processes and workers included."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The history of a study that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    process = start(folder, "SlowTrainer")
    output = finish(process)
    assert process.returncode == 0, output
    return read(folder).history


def test_ctrl_c_leaves_no_process_and_the_study_goes_on_where_it_was(tmp_path, straight):
    process = start(tmp_path, "SlowTrainer")
    wait_for(lambda: any(trial == 3 and step == 20 for trial, _, step, _ in log(tmp_path)))
    everyone = family(process)
    assert len(everyone) > 5
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = finish(process, 60)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert time.monotonic() - begun < 30
    wait_for(lambda: not alive(everyone), 20)

    seen = log(tmp_path)
    again = start(tmp_path, "SlowTrainer")
    output = finish(again)
    assert again.returncode == 0, output
    later = log(tmp_path)[len(seen) :]
    assert later[0][:2] == (3, 1)
    assert later[0][2] in (seen[-1][2], seen[-1][2] + 1)
    assert equal_histories(read(tmp_path).history, straight)


def test_a_killed_driver_takes_everything_with_it(tmp_path, straight):
    process = start(tmp_path, "SlowTrainer")
    wait_for(lambda: any(trial == 2 and step == 20 for trial, _, step, _ in log(tmp_path)))
    everyone = family(process)
    process.kill()
    finish(process, 60)
    # Ray's two agents look for their dead parent only now and then.
    wait_for(lambda: not alive(everyone), 120)
    again = start(tmp_path, "SlowTrainer")
    output = finish(again)
    assert again.returncode == 0, output
    assert equal_histories(read(tmp_path).history, straight)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced_and_its_training_goes_on(tmp_path, workers, straight):
    process = start(tmp_path, "SlowTrainer", workers=workers)
    wait_for(lambda: any(trial == 2 and step == 20 for trial, _, step, _ in log(tmp_path)))
    mine = {pid for *_, pid in log(tmp_path)}
    pids = {int(path.name[4:]) for path in tmp_path.glob("pid-*")}
    # With two workers the one that only listens is killed: rank 0 must not take that for a result.
    victim = min(pids - mine if workers == 2 else pids)
    os.kill(victim, signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 0, output
    steps = [(attempt, step) for trial, attempt, step, _ in log(tmp_path) if trial == 2]
    attempts = sorted({attempt for attempt, _ in steps})
    assert attempts == [0, 1]
    last, first = max(s for a, s in steps if a == 0), min(s for a, s in steps if a == 1)
    assert first in (last, last + 1)
    assert equal_histories(read(tmp_path).history, straight)


def test_a_training_that_kills_its_workers_fails_and_the_study_goes_on(tmp_path):
    process = start(tmp_path, "DeadlyTrainer", pools=2)
    output = finish(process)
    assert process.returncode == 0, output
    trials = {trial.number: trial for trial in read(tmp_path).history}
    assert [t.result.status for t in trials.values()].count(Status.FAILED) == 1
    assert trials[3].result.status is Status.FAILED
    assert "workers died 3 times" in trials[3].result.error


def test_workers_that_cannot_start_end_the_study_with_their_own_words(tmp_path):
    process = start(tmp_path, "NoTrainer")
    output = finish(process)
    assert process.returncode == 1
    assert "no such model: 'nowhere'" in output
    assert toy_study(tmp_path, 2, resume=True).history.trials[0].pending
