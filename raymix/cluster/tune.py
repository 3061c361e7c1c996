"""A study through Ray Tune: thin trials in front, pools of workers behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray import tune

from raymix.cluster.config import Cluster, EarlyStopping
from raymix.cluster.drive import Drive
from raymix.cluster.fleet import Fleet, ground
from raymix.cluster.session import HEAD, environment, suited, wanted
from raymix.cluster.stopping import Asha
from raymix.cluster.trial import PoolTrial
from raymix.core.job import Json
from raymix.core.trial import Idle
from raymix.study.record import read
from raymix.study.study import Study
from raymix.train.config import Setup

TRAINER = "raymix.train.worker:Worker"
"""Import path of what a worker makes from a study's setup; see `cluster.worker.Trainer`."""


def tune_study(
    study: Study,
    setup: Setup,
    cluster: Cluster,
    stopping: EarlyStopping | None = None,
    trainer: str = TRAINER,
) -> None:
    """Run a study to its end on pools of workers; the study holds what came of it.

    Ctrl-C (or SIGTERM, SIGHUP) ends workers and trials and raises KeyboardInterrupt; open trials
    stay open in the history and go on from their checkpoints when the study is resumed. Raises
    ClusterError at once where the cluster cannot hold one pool, and later when no pool is left.
    """
    asha = None
    if stopping is not None and stopping.scheduler == "asha":
        record = read(study.folder)
        open_points = {number: record.points[number] for number in record.pending}
        asha = Asha(stopping, study.score, study.history.finished, open_points)
    with ground(cluster, setup, trainer) as ready:
        plan = ready.plan
        drive = Drive(study, ready.desk, plan.pools, asha)

        def room() -> int:
            ready.look()
            return wanted(cluster, plan.need)

        fleet = Fleet(
            ready.desk,
            ready.make,
            room,
            cluster.step_timeout,
            drive.pool_failed,
            drive.resized,
        )
        try:
            with _interrupts(drive), environment(suited(plan)):
                fleet.start(plan.pools)
                _tuner(drive, ready.name, ready.scratch).fit()
        finally:
            fleet.close(hurry=drive.stopping)
    if drive.error is not None:
        raise drive.error
    if drive.interrupted:
        raise KeyboardInterrupt


@contextmanager
def _interrupts(drive: Drive) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the study in order, where this is the main thread.

    The last one comes when the terminal goes; under `nohup` it is, and stays, ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if drive.interrupted:
            raise KeyboardInterrupt
        drive.interrupted = True

    ours = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        ours.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tuner(drive: Drive, desk: str, scratch: str) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(PoolTrial, tune.PlacementGroupFactory([{HEAD: 0.001}])),
        param_space={"desk": desk},
        tune_config=tune.TuneConfig(
            search_alg=_Asking(drive),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            verbose=0,
            stop=_Ending(drive),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _name(trial: Any) -> str:
    """A trial's folder in Tune's scratch space: its configuration is far too long for a name."""
    return str(trial.trial_id)


class _Asking(tune.search.Searcher):
    """Tune's questions, passed on."""

    def __init__(self, drive: Any = None) -> None:
        super().__init__(metric="progress", mode="max")
        self._drive = drive

    def suggest(self, trial_id: str) -> dict[str, Json] | str | None:
        """A trial's configuration; None: not now."""
        answer = self._drive.suggest(trial_id)
        if answer is Idle.WAIT:
            return None
        return tune.search.Searcher.FINISHED if answer is Idle.DONE else answer

    def on_trial_result(self, trial_id: str, result: Mapping[str, Json]) -> None:
        """A report."""
        self._drive.heard(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Json] | None = None, error: bool = False
    ) -> None:
        """The end of a trial."""
        self._drive.ended(trial_id, None if error else result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's own history is what it is resumed from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune keeps a copy in a file that nobody reads; a study cannot be pickled."""
        return _Asking, ()


class _Ending(tune.Stopper):
    """Ends all trials when the study must stop."""

    def __init__(self, drive: Drive | None = None) -> None:
        self._drive = drive

    def __call__(self, trial_id: str, result: Mapping[str, Json]) -> bool:
        """Trials end by themselves: a stopped training, too, has a result to hand in."""
        return False

    def stop_all(self) -> bool:
        """Whether everything ends now."""
        return self._drive is not None and self._drive.stopping

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """As `_Asking`."""
        return _Ending, ()
