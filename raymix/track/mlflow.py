"""MLflow: a run for the study, a child run for each trial."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from raymix.core.codec import encode
from raymix.core.errors import ConfigError
from raymix.core.forgetting import parted
from raymix.core.job import Diagnostic, Point, Spent, Status
from raymix.core.trial import RANKED, Role, Trial
from raymix.track.entries import flat, last, metrics_of
from raymix.track.found import STUDY, TRIAL, experiment_id, filled, search
from raymix.track.null import About, Ending
from raymix.track.outbox import Batch, Outbox, UnreachableError
from raymix.track.stages import StageLog, strategy_params

PARENT = -1
"""Stands for the study's own run where a trial's number stands for the trial's."""

_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100  # the server's limits
_LONGEST = 5000  # of a tag or parameter, below any store's limit

# A server that is down must not hold the thread for minutes; MLflow would try for an hour.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_FIRST_SECONDS, _LAST_SECONDS = 60.0, 30.0

# What a server says of one request; anything else says that the server is not well.
_REFUSALS = frozenset(
    {
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
    }
)

_ENDINGS = {
    Ending.FINISHED: "FINISHED",
    Ending.INTERRUPTED: "KILLED",
    Ending.FAILED: "FAILED",
}


@dataclass(frozen=True)
class _Order:
    """In which order a trial is trained, as tags and parameters of its run."""

    tags: Mapping[str, str]
    params: Mapping[str, str]


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr)


class MlflowTracker:
    """Writes a study to the MLflow at `uri`, from a thread of its own.

    A server that is down costs the study nothing: `tell` hears of it once, and what was heard in
    the meantime is written when it is back. `study_started` waits until the database is there.
    Raises ConfigError for a `uri` that MLflow does not know.
    """

    def __init__(
        self,
        uri: str = "sqlite:///mlflow.db",
        experiment: str = "raymix",
        tell: Callable[[str], None] = _to_stderr,
    ) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        # Creating a database would print a line for each of a hundred migrations.
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
        except (MlflowException, OSError) as error:
            raise ConfigError(f"tracking.tracking_uri '{uri}': {error}") from error
        self._uri = uri
        self._experiment = experiment
        self._tell = tell
        self._about = About("", "", 0)
        self._runs: dict[int, str] = {}
        self._params: dict[int, set[str]] = {}
        self._refused = ""
        self._waited = False
        self._steps: dict[int, int] = {}
        self._open_trials: set[int] = set()
        self._whole: set[int] = set()
        self._spent: dict[int, Spent] = {}
        self._known: dict[int, Trial] = {}
        self._best = math.inf
        self._stages = StageLog()
        self._outbox: Outbox[Metric] = Outbox(self._write, self._say)

    def study_started(self, about: About, told: Sequence[Trial] = ()) -> None:
        """Open the study's run, or find it again; write what a former server never heard.

        Raises ConfigError where the server answers that it will not have the experiment.
        """
        self._about = about
        self._outbox.put(self._open)
        self._outbox.first_pass(_FIRST_SECONDS)
        self._waited = True
        if self._refused:
            self._outbox.close(0.0)
            raise ConfigError(f"tracking.experiment_name '{self._experiment}': {self._refused}")
        for trial in told:
            self._known[trial.number] = trial
            final = (*self._last(trial), *self._stages.closed(trial))
            self._outbox.put(partial(self._catch_up, trial, self._order(trial), final))
            self._count(trial)

    def trial_started(self, trial: Trial) -> None:
        """Open the trial's run."""
        self._known[trial.number] = trial
        self._outbox.put(partial(self._open_trial, trial, self._order(trial)))

    def reported(self, trial: Trial, point: Point) -> None:
        """Keep the point's metrics for the next batch."""
        # After the death of a worker a training repeats the steps since its last checkpoint.
        if point.step > self._steps.get(trial.number, -1):
            self._steps[trial.number] = point.step
            ended = self._stages.heard(trial, point)
            metrics = (*ended, *metrics_of(point.metrics, point.step))
            self._outbox.put(Batch(trial.number, metrics))

    def trial_ended(self, trial: Trial) -> None:
        """Write the trial's last metrics, what was realised and what it cost; close its run."""
        final = (*self._last(trial), *self._stages.closed(trial))
        self._outbox.put(Batch(trial.number, final))
        self._outbox.put(partial(self._end_trial, trial))
        self._outbox.put(Batch(PARENT, self._count(trial)))

    def artifact(self, path: Path) -> None:
        """Keep a copy of `path`, as it is when the thread comes to it."""
        self._outbox.put(partial(self._keep, path))

    def study_ended(self, ending: Ending) -> None:
        """Close the study's run; waits until everything is written, half a minute at the most."""
        self._outbox.put(partial(self._end, ending))
        self._outbox.put(self._tidy)
        left = self._outbox.close(_LAST_SECONDS)
        if left:
            self._say(f"MLflow at {self._uri} lacks the last {left} entries; the history has them")

    # ---- below: in the outbox's thread ----

    def _say(self, message: str) -> None:
        self._tell(f"tracking: {message}")

    def _reach(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            if isinstance(error, MlflowException) and error.error_code in _REFUSALS:
                raise
            raise self._unreached(error) from error

    def _unreached(self, error: Exception) -> UnreachableError:
        first = str(error).strip().splitlines()[0][:300]
        return UnreachableError(
            f"MLflow at {self._uri} cannot be reached; the study goes on and its history has "
            f"everything ({first})"
        )

    def _open(self) -> None:
        try:
            self._reach(self._open_now)
        except MlflowException as error:
            if self._waited:
                raise self._unreached(error) from error
            self._refused = f"{error.message} ({self._uri})"

    def _open_now(self) -> None:
        self._experiment_id = experiment_id(self._client, self._experiment, self._uri)
        # Of two runs of one trial the fuller one is in use: see `_tidy`.
        for run in sorted(self._search(), key=filled):
            trial = run.data.tags.get(TRIAL)
            number = PARENT if trial is None else int(trial)
            self._runs[number] = run.info.run_id
            if trial is not None and run.info.status in ("FINISHED", "FAILED"):
                self._whole.add(number)
            else:
                self._params[number] = set(run.data.params)
        if PARENT in self._runs:
            self._client.update_run(self._runs[PARENT], status="RUNNING")
        else:
            tags = {STUDY: self._about.id, "seed": str(self._about.seed), "role": "study"}
            run = self._client.create_run(
                self._experiment_id,
                tags={**tags, "data_fingerprint": self._about.data},
                run_name=self._about.name,
            )
            self._runs[PARENT] = run.info.run_id
        self._log_params(PARENT, flat(self._about.config))

    def _search(self, *conditions: str) -> list[mlflow.entities.Run]:
        return search(self._client, self._experiment_id, self._about.id, *conditions)

    def _open_trial(self, trial: Trial, order: _Order) -> None:
        self._reach(partial(self._open_trial_now, trial, order))

    def _open_trial_now(self, trial: Trial, order: _Order) -> None:
        self._open_trials.add(trial.number)
        if trial.number in self._runs:
            self._client.update_run(self._runs[trial.number], status="RUNNING")
        else:
            run = self._client.create_run(
                self._experiment_id,
                tags={**self._tags(trial), **order.tags, "mlflow.parentRunId": self._runs[PARENT]},
                run_name=f"{self._about.name}/{self._label(trial)}",
            )
            self._runs[trial.number] = run.info.run_id
        weights = {f"weights.{k}": f"{v:.6g}" for k, v in trial.mixture.as_dict().items()}
        plain = {
            "method": self._method(trial),
            "seed": str(trial.seed),
            "model": trial.proposal.model,
        }
        chosen = {f"params.{name}": f"{v:.6g}" for name, v in trial.proposal.params.items()}
        self._log_params(trial.number, {**weights, **plain, **chosen, **order.params})

    def _order(self, trial: Trial) -> _Order:
        """The strategy that a trial is trained by, where it comes to several stages."""
        stages = self._about.stages
        count = 0 if stages is None or parted(trial.proposal) else stages(trial)
        own = trial.proposal.strategy
        spec = own or self._about.strategy
        if spec is None or (count < 2 and own is None):
            return _Order({}, {})
        told = replace(spec, fields={**spec.fields, **trial.proposal.params})
        return _Order({"stages": str(count)} if count > 1 else {}, strategy_params(told))

    def _label(self, trial: Trial) -> str:
        """How a trial's run is called: `tpe-012`; a confirmation by what it repeats."""
        if trial.role is not Role.CONFIRM:
            return f"{trial.method}-{trial.number:03d}"
        note, source = trial.proposal.note, self._source(trial)
        named = source.method if source.role is Role.BASELINE else self._label(source)
        return f"{note.get('group', named)}-confirm-{note['block']}"

    def _method(self, trial: Trial) -> str:
        """Who asked for a trial, of a confirmation what it confirms."""
        if trial.role is not Role.CONFIRM:
            return trial.method
        return str(trial.proposal.note.get("group", self._source(trial).method))

    def _group(self, trial: Trial) -> str:
        method = self._method(trial)
        return self._about.groups.get(method, method)

    def _source(self, trial: Trial) -> Trial:
        """The trial that a confirmation repeats; it was told before."""
        return self._known[int(trial.proposal.note["of"])]

    def _last(self, trial: Trial) -> tuple[Metric, ...]:
        """What a told trial has beside its points."""
        cost = {} if self._about.units is None else {"cost/units": self._about.units(trial)}
        return last(trial, cost)

    def _tags(self, trial: Trial) -> dict[str, str]:
        role = "trial" if trial.role is Role.SEARCH else trial.role.value
        confirms = (
            {"confirms": str(trial.proposal.note["of"])} if trial.role is Role.CONFIRM else {}
        )
        return {
            **confirms,
            STUDY: self._about.id,
            TRIAL: str(trial.number),
            "searcher": trial.method,
            "group": self._group(trial),
            "seed": str(trial.seed),
            "role": role,
            "data_fingerprint": self._about.data,
        }

    def _log_params(self, run: int, params: Mapping[str, str]) -> None:
        """Write what the server has not yet; a parameter is written once."""
        known = self._params.setdefault(run, set())
        entries = [Param(n, v[:_LONGEST]) for n, v in params.items() if n not in known]
        for start in range(0, len(entries), _PARAMS_AT_ONCE):
            part = entries[start : start + _PARAMS_AT_ONCE]
            self._client.log_batch(self._runs[run], params=part)
            known.update(entry.key for entry in part)

    def _write(self, run: int, metrics: list[Metric]) -> None:
        def write() -> None:
            for start in range(0, len(metrics), _METRICS_AT_ONCE):
                part = metrics[start : start + _METRICS_AT_ONCE]
                self._client.log_batch(self._runs[run], metrics=part)

        self._reach(write)

    def _end_trial(self, trial: Trial) -> None:
        result = trial.result
        assert result is not None
        tags = [RunTag("status", result.status.value)]
        if result.error:
            tags.append(RunTag("error", result.error[:_LONGEST]))
        ending = "FAILED" if result.status is Status.FAILED else "FINISHED"

        influence = result.diagnostics.get(Diagnostic.INFLUENCE)

        def end() -> None:
            if influence is not None:
                run = self._runs[trial.number]
                self._client.log_dict(run, influence, "influence.json")
            self._client.log_batch(self._runs[trial.number], tags=tags)
            self._client.set_terminated(self._runs[trial.number], ending)
            self._open_trials.discard(trial.number)
            self._params.pop(trial.number, None)

        self._reach(end)

    def _catch_up(self, trial: Trial, order: _Order, last: tuple[Metric, ...]) -> None:
        """Write a trial of a resumed study, unless it is there already."""
        if trial.number in self._whole:
            return
        self._open_trial(trial, order)
        curve = trial.result.curve if trial.result is not None else ()
        for point in curve:
            self._write(trial.number, list(metrics_of(point.metrics, point.step)))
        self._write(trial.number, list(last))
        self._end_trial(trial)

    def _keep(self, path: Path) -> None:
        if path.exists():
            self._reach(lambda: self._client.log_artifact(self._runs[PARENT], str(path)))

    def _end(self, ending: Ending) -> None:
        for number in (*self._open_trials, PARENT):
            run = self._runs[number]
            status = _ENDINGS[ending] if number == PARENT else _ENDINGS[Ending.INTERRUPTED]
            self._reach(partial(self._client.set_terminated, run, status))

    def _tidy(self) -> None:
        """Delete runs that nobody writes to.

        A request that the server answers too late is sent again, and each makes a run.
        """
        used = set(self._runs.values())
        for run in self._search("attributes.status = 'RUNNING'"):
            if run.info.run_id not in used:
                self._client.delete_run(run.info.run_id)

    # ---- the study's own curve ----

    def _count(self, trial: Trial) -> tuple[Metric, ...]:
        """Best score and total cost after this trial; the step is how many trials were told."""
        if trial.result is not None:
            self._spent[trial.number] = trial.result.spent
        if trial.finished and trial.role in RANKED and trial.violation <= 0:
            self._best = min(self._best, trial.score)
        total: dict[str, float] = {}
        for spent in self._spent.values():
            for name, value in encode(spent).items():
                total[f"cost/{name}"] = total.get(f"cost/{name}", 0.0) + value
        return metrics_of({"best/score": self._best, **total}, len(self._spent))
