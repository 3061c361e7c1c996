"""The live table: what is being tried, how it goes, what is best, how long it will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raymix.core.job import Point, Status
from raymix.core.trial import RANKED, Trial

_ROWS = 12
"""Finished trials shown, best first; with the running ones it fits a small terminal."""

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
        """The table as it is now."""
        best = self.best()
        table = Table(title=self._title(best), title_justify="left", expand=False)
        for name in ("trial", "method", "mixture", "step", "losses", "score", ""):
            table.add_column(
                name, justify="right" if name in ("trial", "step", "score") else "left"
            )
        for trial in self._running.values():
            point = self._points.get(trial.number)
            metrics = point.metrics if point is not None else {}
            progress = f"{point.step} ({point.progress:.0%})" if point is not None else ""
            mean = _number(metrics.get("eval/mean", math.nan))
            table.add_row(*_cells(trial), progress, _losses(metrics), mean, "running", style="cyan")
        finished = sorted(self._ended, key=_order)[:_ROWS]
        for trial in finished:
            result = trial.result
            metrics = result.metrics if result is not None else {}
            steps = str(result.spent.steps) if result is not None else ""
            mark = "best" if trial is best else _MARKS[result.status] if result else ""
            style = "bold green" if trial is best else None
            score = _number(trial.score)
            table.add_row(*_cells(trial), steps, _losses(metrics), score, mark, style=style)
        return table

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
            str(trial.mixture),
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


def _cells(trial: Trial) -> tuple[str, str, str]:
    return str(trial.number), trial.method, str(trial.mixture)


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _losses(metrics: Mapping[str, float]) -> str:
    """Eval losses in the mixture's order of domains: `1.203 .871 2.440`."""
    found = [v for k, v in metrics.items() if k.startswith("eval/") and k.endswith("/loss")]
    return " ".join(f"{value:.3f}" for value in found)
