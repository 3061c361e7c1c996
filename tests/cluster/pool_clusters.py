"""Studies on a cluster of several real nodes, driven from the test's process, and their remains."""

import time
from contextlib import suppress

import psutil
from pool_studies import toy_setup, toy_study
from pool_trainers import BRISK, ONWARD

from raymix.cluster.config import Cluster
from raymix.cluster.rehearsal import held
from raymix.cluster.tune import tune_study
from raymix.core.job import Point
from raymix.study.record import equal_histories
from raymix.study.serial import run_serial


class On:
    """A listener that does something once: at a step of a trial."""

    def __init__(self, trial, step, do):
        self.trial, self.step, self.do = trial, step, do
        self.done = False

    def trial_started(self, trial):
        pass

    def reported(self, trial, point: Point):
        if not self.done and (trial.number, point.step) == (self.trial, self.step):
            self.done = True
            self.do()

    def trial_ended(self, trial):
        pass


def onward(folder, step=5):
    """A listener, the last one: once the others have heard a step of trial 2, it goes on."""
    return On(2, step, (folder / ONWARD).touch)


def straight(folder, trials=2, toy=BRISK):
    """The history of the study that nothing happens to, trained in this process."""
    return serially(toy_study(folder, trials), toy)


def serially(study, runner):
    """The history of a study trained in this process, one training after the other."""
    try:
        run_serial(study, runner)
        return study.history
    finally:
        study.close()


def through(folder, trainer, cluster=None, trials=2, resume=False, listeners=()):
    """The history of a study on pools of `pool_trainers`; by default one pool of one worker."""
    cluster = cluster or Cluster(pools=1)
    listeners = (*listeners, onward(folder))
    study = toy_study(folder, trials, resume=resume, listeners=listeners)
    return on_pools(study, toy_setup(folder), cluster, f"pool_trainers:{trainer}")


def on_pools(study, setup, cluster, trainer):
    """The history of a study trained on pools of a cluster."""
    try:
        tune_study(study, setup, cluster, None, trainer)
        return study.history
    finally:
        study.close()


def pids(folder):
    """Processes that served the study of this folder, all that there ever were."""
    return {int(path.name[4:]) for path in folder.glob("pid-*")}


def ranks(folder):
    """Of each worker process: rank, size of its group, node."""
    rows = (line.split() for line in (folder / "ranks").read_text().splitlines())
    return {int(pid): (int(rank), int(size), node) for pid, rank, size, node in rows}


def process_of(ray, name):
    """Process of the one living actor of this class."""
    living = [a for a in ray._private.state.actors().values() if a["State"] == "ALIVE"]
    found = [actor["Pid"] for actor in living if actor["ActorClassName"].endswith(name)]
    assert len(found) == 1, [actor["ActorClassName"] for actor in living]
    return found[0]


def _running(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def remains(ray, folder):
    """Worker processes, actors and placement groups that still are there."""
    processes = [pid for pid in pids(folder) if _running(pid)]
    return [*processes, *held()]


def nothing_remains(ray, folder, seconds=90):
    end = time.monotonic() + seconds
    while left := remains(ray, folder):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def same(history, other):
    """Whether two histories say the same, costs, times and attempts aside."""
    return equal_histories(history, other)
