"""The live table: what is being tried, how it goes, what is best, how long it will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raymix.core.forgetting import parted
from raymix.core.influence import PROGRESS
from raymix.core.job import Point, Status
from raymix.core.mixture import in_words
from raymix.core.trial import RANKED, Trial

_ROWS = 12
"""Finished trials shown, best first; with the running ones it fits a small terminal."""

_SHARE = 5
"""Width of a share or a loss."""

_FIXED = 50
"""Width of the columns beside those of shares and losses."""

_NONE = math.nan

_MARKS = {Status.DONE: "", Status.STOPPED: "stopped", Status.FAILED: "failed"}


class LiveTable:
    """A study's listener with a table of running and best trials.

    `total`: how many trials are planned. Where `console` is no terminal it prints one plain line
    for each finished trial. Use it as a context.
    """

    def __init__(
        self,
        total: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._console = console or Console()
        self._clock = clock
        self._begun = clock()
        self._running: dict[int, Trial] = {}
        self._points: dict[int, Point] = {}
        self._ended: list[Trial] = []
        self._first_end: float | None = None
        self._live = Live(
            console=self._console,
            get_renderable=self.table,
            refresh_per_second=2,
            transient=True,
            auto_refresh=self._console.is_terminal,
        )

    def __enter__(self) -> LiveTable:
        """Show the table, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the table away; the report follows."""
        if self._console.is_terminal:
            self._live.stop()

    def trial_started(self, trial: Trial) -> None:
        """A row for the trial."""
        self._running[trial.number] = trial

    def reported(self, trial: Trial, point: Point) -> None:
        """The trial's step and losses."""
        self._points[trial.number] = point

    def trial_ended(self, trial: Trial) -> None:
        """The trial moves to the finished ones."""
        self._running.pop(trial.number, None)
        self._points.pop(trial.number, None)
        self._ended.append(trial)
        if self._first_end is None:
            self._first_end = self._clock()
        if not self._console.is_terminal:
            self._console.print(self._line(trial), highlight=False, soft_wrap=True)

    def best(self) -> Trial | None:
        """The best ranked trial so far."""
        ranked = [t for t in self._ended if t.finished and t.role in RANKED]
        return min(ranked, key=lambda t: (t.violation > 0, t.score, t.number), default=None)

    def seconds_left(self) -> float:
        """Time to the end at the pace so far; NaN before there is a pace.

        The first trial (the base model) waits for the workers to start and is left out.
        """
        if self._first_end is None or len(self._ended) < 2:
            return math.nan
        pace = (self._clock() - self._first_end) / (len(self._ended) - 1)
        return pace * max(0, self._total - len(self._ended))

    def table(self) -> Table:
        """The table as it is now; narrow terminals get the worst loss in place of all losses."""
        best = self.best()
        shown = [*self._running.values(), *sorted(self._ended, key=_order)[:_ROWS]]
        names = shown[0].mixture.names if shown else ()
        wide = self._console.width >= _FIXED + 2 * _SHARE * len(names)
        table = Table(title=self._title(best), title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("method", no_wrap=True)
        table.add_column(_heads(names), no_wrap=True)
        table.add_column("step", justify="right", no_wrap=True)
        table.add_column(_heads(names) if wide else "worst", justify="right", no_wrap=True)
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for trial in shown:
            state, step, metrics, score, style = self._row(trial, best)
            losses = _losses(metrics, names) if wide else _number(metrics.get("eval/worst", _NONE))
            shares = "".join(_share(weight) for weight in trial.mixture.weights)
            shares += _params(trial)
            cells = (str(trial.number), trial.method, shares, step, losses, _number(score), state)
            table.add_row(*cells, style=style)
        return table

    def _row(
        self, trial: Trial, best: Trial | None
    ) -> tuple[str, str, Mapping[str, float], float, str | None]:
        """State, step, metrics, score and style of a trial."""
        result = trial.result
        if result is None:
            point = self._points.get(trial.number)
            if point is None:
                return "starting", "", {}, _NONE, "cyan"
            step = f"{point.step} ({point.progress:.0%})"
            measured = point.metrics.get(PROGRESS)
            # The second part of a training that branches off another is no stage of its strategy.
            several = point.stage > 0 and not parted(trial.proposal)
            running = f"stage {point.stage + 1}" if several else "running"
            state = running if measured is None else f"influence {measured:.0%}"
            return state, step, point.metrics, point.metrics.get("eval/mean", _NONE), "cyan"
        steps = str(result.spent.steps)
        if best is not None and trial.number == best.number:
            return "best", steps, result.metrics, trial.score, "bold green"
        return _MARKS[result.status], steps, result.metrics, trial.score, None

    def _title(self, best: Trial | None) -> str:
        left = self.seconds_left()
        parts = [f"{len(self._ended)} of {self._total} trials"]
        if best is not None:
            parts.append(f"best {_number(best.score)} (trial {best.number})")
        parts.append(f"{clock_time(self._clock() - self._begun)} so far")
        if math.isfinite(left):
            parts.append(f"about {clock_time(left)} left")
        return ", ".join(parts)

    def _line(self, trial: Trial) -> str:
        result = trial.result
        mark = _MARKS[result.status] if result is not None else ""
        best = self.best()
        parts = [
            f"trial {trial.number} of {self._total}",
            trial.method,
            f"{trial.mixture}{_params(trial)}",
            f"score {_number(trial.score)}",
            *([mark] if mark else []),
            *([result.error] if result is not None and result.error else []),
            *([f"best {_number(best.score)} (trial {best.number})"] if best is not None else []),
        ]
        left = self.seconds_left()
        if math.isfinite(left):
            parts.append(f"{clock_time(left)} left")
        return " | ".join(parts)


def clock_time(seconds: float) -> str:
    """`75` as `1:15`, `3700` as `1:01:40`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _order(trial: Trial) -> tuple[bool, bool, float, int]:
    score = trial.score if math.isfinite(trial.score) else math.inf
    return (trial.role not in RANKED, trial.violation > 0, score, trial.number)


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _heads(names: Sequence[str]) -> str:
    """Short names of the domains, over their shares or losses."""
    return "".join(f" {name[: _SHARE - 1]:>{_SHARE - 1}}" for name in names)


def _share(weight: float) -> str:
    return f"{weight:.2f}".replace("0.", ".", 1).rjust(_SHARE)


def _params(trial: Trial) -> str:
    """What was set of the strategy, after the shares."""
    told = in_words(trial.proposal.params)
    return f" {told}" if told else ""


def _losses(metrics: Mapping[str, float], names: Sequence[str]) -> str:
    """Eval losses under the domains' short names; nothing where one is unknown."""
    values = [metrics.get(f"eval/{name}/loss", _NONE) for name in names]
    shown = (f"{v:.2f}" if v < 100 else f"{v:.0f}" if math.isfinite(v) else "" for v in values)
    return "".join(text.rjust(_SHARE) for text in shown)
