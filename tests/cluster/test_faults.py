"""Real faults on a real Ray of one node: Ctrl-C, killed workers, trials, queues and drivers."""

import os
import signal
import time

import pytest
from pool_clusters import On, nothing_remains, pids, process_of, ranks, same, straight, through
from pool_processes import alive, comes_to, family, finish, log, names, wait_for
from pool_studies import toy_study
from pool_trainers import LONG

from raymix.cluster.config import Cluster
from raymix.core.errors import ClusterError
from raymix.core.job import Status
from raymix.study.record import read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray Train imports Ray Data, which reads settings of its own that it calls deprecated.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The history of a study that nothing happened to."""
    return straight(tmp_path_factory.mktemp("brisk"))


@pytest.fixture(scope="module")
def untouched_long(tmp_path_factory):
    return straight(tmp_path_factory.mktemp("long"), toy=LONG)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "hang-up"])
def test_a_signal_leaves_no_process_and_the_study_goes_on_where_it_was(
    start, ray_here, tmp_path, untouched_long, number
):
    # A terminal that goes tells the whole group, to which a Ray that was started here belongs.
    hang_up = number == signal.SIGHUP
    process = start(tmp_path, "SlowTrainer", leads=hang_up)
    comes_to(process, tmp_path, trial=3, step=20)
    everyone = family(process)
    assert len(everyone) > 5
    begun = time.monotonic()
    (os.killpg if hang_up else os.kill)(process.pid, number)
    output = finish(process, 120)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert time.monotonic() - begun < 60
    # Ray's two agents may find a minute later that their parent, too slow to end, was killed.
    wait_for(lambda: not alive(everyone), 90)

    seen = log(tmp_path)
    history = through(tmp_path, "SlowTrainer", resume=True)
    later = log(tmp_path)[len(seen) :]
    assert later[0][:2] == (3, 1)
    assert later[0][2] in (seen[-1][2], seen[-1][2] + 1)
    assert same(history, untouched_long)


def test_a_killed_driver_takes_everything_with_it(start, tmp_path, untouched_long):
    process = start(tmp_path, "SlowTrainer")
    comes_to(process, tmp_path, trial=3, step=20)
    everyone = family(process)
    process.kill()
    finish(process, 60)
    # Ray's two agents look for their dead parent only now and then, and end a minute later.
    wait_for(lambda: all("Agent" in name for name in names(everyone)), 30)
    again = start(tmp_path, "SlowTrainer")
    output = finish(again)
    assert again.returncode == 0, output
    assert same(read(tmp_path).history, untouched_long)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced_and_its_training_goes_on(
    ray_here, tmp_path, workers, untouched
):
    killed = []

    def kill():
        # With two workers the one that only listens is killed: rank 0 must not take that for a
        # result.
        (victim,) = [pid for pid, (rank, *_) in ranks(tmp_path).items() if rank == workers - 1]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    cluster = Cluster(pools=1, num_workers=workers)
    history = through(tmp_path, "BriskTrainer", cluster, listeners=[On(2, 5, kill)])
    assert killed
    steps = [(attempt, step) for trial, attempt, step, _ in log(tmp_path) if trial == 2]
    attempts = sorted({attempt for attempt, _ in steps})
    assert attempts == [0, 1]
    last, first = max(s for a, s in steps if a == 0), min(s for a, s in steps if a == 1)
    assert first in (last, last + 1)
    assert same(history, untouched)
    nothing_remains(ray_here, tmp_path)


def test_a_training_that_kills_its_workers_fails_and_the_study_goes_on(ray_here, tmp_path):
    history = through(tmp_path, "DeadlyTrainer", Cluster(pools=2))
    trials = {trial.number: trial for trial in history}
    assert [t.result.status for t in trials.values()].count(Status.FAILED) == 1
    assert trials[3].result.status is Status.FAILED
    assert "workers died 3 times" in trials[3].result.error
    nothing_remains(ray_here, tmp_path)


def test_workers_that_cannot_start_end_the_study_with_their_own_words(ray_here, tmp_path):
    with pytest.raises(ClusterError, match="no such model: 'nowhere'"):
        through(tmp_path, "NoTrainer")
    assert toy_study(tmp_path, 2, resume=True).history.trials[0].pending
    nothing_remains(ray_here, tmp_path)


def test_a_thin_trial_that_dies_is_tried_again(ray_here, tmp_path, untouched):
    killed = []

    def kill():
        killed.append(process_of(ray_here, "ResourceTrainable"))
        os.kill(killed[0], signal.SIGKILL)

    history = through(tmp_path, "BriskTrainer", listeners=[On(2, 5, kill)])
    assert killed
    assert same(history, untouched)
    # The workers knew nothing of it and lived on.
    assert len({pid for *_, pid in log(tmp_path)}) == len(pids(tmp_path)) == 1
    nothing_remains(ray_here, tmp_path)


def test_without_the_desk_the_study_ends_and_can_be_resumed(ray_here, tmp_path, untouched):
    def kill():
        os.kill(process_of(ray_here, "Desk"), signal.SIGKILL)

    with pytest.raises(ClusterError, match="the queue of jobs"):
        through(tmp_path, "BriskTrainer", listeners=[On(2, 5, kill)])
    nothing_remains(ray_here, tmp_path)
    pending = [trial.number for trial in read(tmp_path).history if trial.pending]
    assert pending == [2]
    assert same(through(tmp_path, "BriskTrainer", resume=True), untouched)
