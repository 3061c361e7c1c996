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
        """Hand the job in."""
        self._desk = ray.get_actor(config["desk"])
        self._number: int | None = None
        if config["job"] is not None:
            job = json.loads(config["job"])
            self._number = job["trial"]
            ray.get(self._desk.submit.remote(job, config["stoppable"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in this process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next report."""
        if self._number is None:
            ray.get(self._desk.rest.remote(self.trial_id))
            return {PROGRESS: 100.0, "done": True}
        event: Json = ray.get(self._desk.next.remote(self._number))
        if POINT in event:
            point = event[POINT]
            return {PROGRESS: 100.0 * point["progress"], POINT: json.dumps(point)}
        ended = {RESULT: json.dumps(event[RESULT])} if RESULT in event else {}
        return {**ended, PROGRESS: 100.0, "done": True}
