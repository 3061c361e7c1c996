"""Moves a study along: what Tune asks and hears, said in the study's words."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError

from raymix.cluster.stopping import Asha
from raymix.cluster.trial import POINT, RESULT
from raymix.core.codec import from_json, to_json
from raymix.core.errors import ClusterError
from raymix.core.job import Json, Point, TrainResult
from raymix.core.trial import Idle, Trial
from raymix.study.study import Study

_log = logging.getLogger(__name__)


class Drive:
    """One study on its way. `room`: how many pools there are, and so trials that run at once.

    Errors are kept in `error` and end the study: Tune would take them for failed trials.
    """

    def __init__(self, study: Study, desk: Any, room: int, asha: Asha | None) -> None:
        self.error: Exception | None = None
        self.interrupted = False
        self._study = study
        self._desk = desk
        self._room = room
        self._counting = threading.Lock()
        self._asha = asha
        self._running: dict[str, Trial] = {}
        self._held: Trial | None = None
        self._resting: set[str] = set()
        self._idle = False
        self._done = False
        self._closed = False

    @property
    def stopping(self) -> bool:
        """Whether the study ends now, whatever still runs."""
        stopping = self.interrupted or self.error is not None
        if stopping and not self._closed:
            # The trials wait at the desk; nothing else would wake them.
            self._closed = True
            self._desk.close.remote()
        return stopping

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error

    def pool_failed(self, name: str, error: Exception) -> None:
        """A pool has ended: its job goes to another one; with the last one the study ends."""
        self._desk.gone.remote(name, str(error))
        left = self.resized(-1)
        if left:
            _log.warning("%s ended, %d pool(s) left: %s", name, left, error)
        else:
            self.error = self.error or ClusterError(f"{name} ended: {error}")

    def resized(self, by: int) -> int:
        """There are more pools now, or fewer; how many. Called from the pools' threads."""
        with self._counting:
            self._room += by
            return self._room

    def suggest(self, trial_id: str) -> dict[str, Json] | Idle:
        """The next trial's configuration; WAIT: later; DONE: never."""
        if self.stopping:
            return Idle.DONE
        if self._held is None and len(self._running) < self._room and not self._idle:
            with self._guarded():
                self._take(self._study.ask())
        if self._done or self.error is not None:
            self._wake(*self._resting)
            return Idle.DONE
        room = self._room - len(self._running) - len(self._resting)
        if self._held is not None and room > 0:
            with self._guarded():
                return self._launch(trial_id, self._held)
            return Idle.DONE
        if self._held is not None and len(self._running) < self._room:
            self._wake(next(iter(self._resting)))
        elif room > 0:
            # Each trial needs a process of its own, which takes seconds to start and which Tune
            # ends when nothing follows. So one that has nothing to do rests until it is wanted.
            self._resting.add(trial_id)
            return {"job": None, "stoppable": False}
        return Idle.WAIT

    def _take(self, answer: Trial | Idle) -> None:
        if isinstance(answer, Trial):
            self._held = answer
        else:
            # The answer changes only when something is told, and proposing may be dear.
            self._idle = True
            self._done = answer is Idle.DONE

    def _wake(self, *resting: str) -> None:
        for process in resting:
            self._desk.wake.remote(process)

    def _launch(self, trial_id: str, trial: Trial) -> dict[str, Json]:
        job = self._study.job(trial)
        self._study.started(trial.number)
        self._held = None
        self._running[trial_id] = trial
        return {"job": to_json(job), "stoppable": self._stoppable(trial)}

    def _stoppable(self, trial: Trial) -> bool:
        return self._asha is not None and trial.stoppable

    def heard(self, trial_id: str, result: Mapping[str, Json]) -> None:
        """A trial reported; the workers of one that may be stopped wait for the answer."""
        trial = self._running.get(trial_id)
        if trial is None or POINT not in result:
            return
        with self._guarded():
            point = from_json(Point, result[POINT])
            self._study.reported(trial.number, point)
            if self._asha is not None and self._stoppable(trial):
                self._desk.answer.remote(trial.number, self._asha.goes_on(trial, point))

    def ended(self, trial_id: str, result: Mapping[str, Json] | None) -> None:
        """A trial has ended. When the study is stopping it is left open, to be resumed."""
        self._resting.discard(trial_id)
        trial = self._running.pop(trial_id, None)
        if trial is None or self.stopping:
            return
        self._idle = False
        with self._guarded():
            if result is not None and RESULT in result:
                self._study.tell(trial.number, from_json(TrainResult, result[RESULT]))
            else:
                self._require_desk()
                self._study.tell(trial.number, None, "the Tune trial died")

    def _require_desk(self) -> None:
        """Without a desk every further trial would die as well."""
        try:
            ray.get(self._desk.here.remote())
        except RayActorError as error:
            reason = "the queue of jobs, a Ray actor on the head node, has died"
            raise ClusterError(f"{reason}; resume the study") from error
