"""Real faults on a real Ray: Ctrl-C, killed workers, killed drivers. Each in its own process."""

import os
import signal
import time

import pytest
from pool_processes import alive, comes_to, family, finish, log, named, names, wait_for
from pool_studies import toy_study

from raymix.core.job import Status
from raymix.study.record import equal_histories, read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory):
    """The history of a study that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    process = start(folder, "SlowTrainer")
    output = finish(process)
    assert process.returncode == 0, output
    return read(folder).history


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "hang-up"])
def test_a_signal_leaves_no_process_and_the_study_goes_on_where_it_was(
    start, tmp_path, straight, number
):
    process = start(tmp_path, "SlowTrainer")
    comes_to(process, tmp_path, trial=3, step=20)
    everyone = family(process)
    assert len(everyone) > 5
    begun = time.monotonic()
    process.send_signal(number)
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


def test_a_killed_driver_takes_everything_with_it(start, tmp_path, straight):
    process = start(tmp_path, "SlowTrainer")
    comes_to(process, tmp_path, trial=2, step=20)
    everyone = family(process)
    process.kill()
    finish(process, 60)
    # Ray's two agents look for their dead parent only now and then, and end a minute later.
    wait_for(lambda: all("Agent" in name for name in names(everyone)), 30)
    again = start(tmp_path, "SlowTrainer")
    output = finish(again)
    assert again.returncode == 0, output
    assert equal_histories(read(tmp_path).history, straight)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced_and_its_training_goes_on(start, tmp_path, workers, straight):
    process = start(tmp_path, "SlowTrainer", workers=workers)
    comes_to(process, tmp_path, trial=2, step=20)
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


def test_a_training_that_kills_its_workers_fails_and_the_study_goes_on(start, tmp_path):
    process = start(tmp_path, "DeadlyTrainer", pools=2)
    output = finish(process)
    assert process.returncode == 0, output
    trials = {trial.number: trial for trial in read(tmp_path).history}
    assert [t.result.status for t in trials.values()].count(Status.FAILED) == 1
    assert trials[3].result.status is Status.FAILED
    assert "workers died 3 times" in trials[3].result.error


def test_workers_that_cannot_start_end_the_study_with_their_own_words(start, tmp_path):
    process = start(tmp_path, "NoTrainer")
    output = finish(process)
    assert process.returncode == 1
    assert "no such model: 'nowhere'" in output
    assert toy_study(tmp_path, 2, resume=True).history.trials[0].pending


def test_a_thin_trial_that_dies_is_tried_again(start, tmp_path, straight):
    process = start(tmp_path, "SlowTrainer")
    comes_to(process, tmp_path, trial=2, step=20)
    named(process, "ResourceTrainable").kill()
    output = finish(process)
    assert process.returncode == 0, output
    assert equal_histories(read(tmp_path).history, straight)
    # The workers knew nothing of it and lived on.
    assert len({pid for *_, pid in log(tmp_path)}) == 1


def test_without_the_desk_the_study_ends_and_can_be_resumed(start, tmp_path, straight):
    process = start(tmp_path, "SlowTrainer")
    comes_to(process, tmp_path, trial=2, step=20)
    everyone = family(process)
    named(process, "Desk").kill()
    output = finish(process, 90)
    assert process.returncode == 1, output
    assert "the queue of jobs" in output
    wait_for(lambda: not names(everyone), 30)
    process = start(tmp_path, "SlowTrainer")
    output = finish(process)
    assert process.returncode == 0, output
    assert equal_histories(read(tmp_path).history, straight)
