"""The thin Tune trial: hands its job in at the desk and streams the reports back."""

from __future__ import annotations

import json
from typing import Any

import ray
from ray import tune

from raymix.core.job import Json

POINT, RESULT, PROGRESS = "point", "result", "progress"


class PoolTrial(tune.Trainable):
    """One trial at a time; the same actor is used for trial after trial.

    `config`: desk (its name), job (a TrainJob as JSON), stoppable. A result has `progress` in
    percent of the budget and the point, or in the end the training's result, as JSON text. Without
    a job the trial only starts the process, and ends when the desk wakes it.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Find the desk; nothing is handed in before the first `step`.

        Tune may start a process for a trial and, before that is up, give the trial to another one
        that has become free. The first is then thrown away, and must not have handed the job in.
        """
        self._desk = ray.get_actor(config["desk"])
        self._job: Json = None if config["job"] is None else json.loads(config["job"])
        self._stoppable = bool(config["stoppable"])
        self._handed_in = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in this process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Hand the job in, the first time, and wait for the next report."""
        if self._job is None:
            ray.get(self._desk.rest.remote(self.trial_id))
            return {PROGRESS: 100.0, "done": True}
        number = self._job["trial"]
        if not self._handed_in:
            ray.get(self._desk.submit.remote(self._job, self._stoppable))
            self._handed_in = True
        event: Json = ray.get(self._desk.next.remote(number))
        if POINT in event:
            point = event[POINT]
            return {PROGRESS: 100.0 * point["progress"], POINT: json.dumps(point)}
        ended = {RESULT: json.dumps(event[RESULT])} if RESULT in event else {}
        return {**ended, PROGRESS: 100.0, "done": True}
