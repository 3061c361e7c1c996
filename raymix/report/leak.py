"""How much of the target's output format has leaked into other domains: a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from raymix.core.job import Json
from raymix.core.trial import Trial
from raymix.report.facts import Facts, evidence, facts, label
from raymix.report.facts import rows as confirmed_rows
from raymix.report.layout import noted, table_of
from raymix.report.style import COLOURS, DPI, GREY, MARKERS, STYLE, matplotlib_of
from raymix.study.record import Record

KEPT, BARE = "format_leak", "format_leak_bare"
_LEGEND = 84
"""Letters of a row of the legend."""

_WORDS = {KEPT: "kept", BARE: "removed"}


def leak_tables(known: Facts, record: Record) -> list[RenderableType]:
    """The leak of each other domain: of the true answers, before training, and at its end.

    Of confirmed mixtures (or methods) the mean over seeds, else of the winner; none where leak was
    not measured.
    """
    told, runs = _told(record), _runs(known)
    if told is None or not runs:
        return []
    base = {KEPT: "base", BARE: "base, bare"}
    table = table_of(
        f"Format leak of '{told['target']}'",
        ("domain", "trial"),
        ("truth", base[KEPT], "end", base[BARE], "end, bare"),
    )
    for domain, known_of in told["domains"].items():
        first = True
        for name, trials in runs.items():
            cells = [domain, name, _share(known_of["truth"])]
            for kind in (KEPT, BARE):
                cells.append(_share(known.base.get(f"eval/{domain}/{kind}", math.nan)))
                cells.append(_share(_mean(trials, f"eval/{domain}/{kind}")))
            if not first:
                cells[0] = cells[2] = cells[3] = cells[5] = ""
            table.add_row(*cells)
            first = False
        table.add_section()
    prompts = ", ".join(
        f"{domain} {each['rows']} and {each['bare_rows']}"
        for domain, each in told["domains"].items()
    )
    words = (
        "Share of greedy outputs on a domain's eval prompts in the target's format; truth: of its "
        f"true answers; bare: with the instruction removed. Prompts, kept and bare: {prompts}. Of "
        f"the target's own true answers {_share(told['own'])} are in its format."
    )
    return [noted(table, words)]


def write_leak(record: Record, folder: str | Path) -> tuple[Path, ...]:
    """Write `format_leak.png` to `folder`; its path, none where leak was not measured."""
    known = facts(record)
    told, runs = _told(record), _runs(known)
    if told is None or not runs:
        return ()
    path = Path(folder) / "format_leak.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    leak_by_step(known, told, runs).savefig(path, dpi=DPI)
    return (path,)


def leak_by_step(
    known: Facts, told: Mapping[str, Json], runs: Mapping[str, Sequence[Trial]]
) -> Any:
    """A row of panels per other domain: leak over optimizer steps, means over trainings.

    Left with the instruction, right without it, where a prompt of the domain has such a form.
    """
    matplotlib, new = matplotlib_of()
    domains = list(told["domains"].items())
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(7.2, 1.9 * len(domains) + 1.0))
        grid = figure.subplots(len(domains), 2, squeeze=False, sharex=True, sharey=True)
        for axes, (domain, each) in zip(grid, domains, strict=True):
            axes[0].set_ylabel(f"'{told['target']}' format")
            for axis, kind in zip(axes, (KEPT, BARE), strict=True):
                axis.set_title(f"{domain}: instruction {_WORDS[kind]}")
                if kind == KEPT or each["bare_rows"]:
                    _panel(axis, known, f"eval/{domain}/{kind}", runs, each["truth"])
                else:
                    axis.set_visible(False)
        for axis in grid[-1]:
            axis.set_xlabel("optimizer steps")
        grid[0, 0].set_ylim(-0.03, 1.03)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        found: dict[str, Any] = dict(zip(labels, handles, strict=True))
        longest = max(len(name) for name in found)
        columns = max(1, min(len(found), 4, _LEGEND // (longest + 6)))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)
    return figure


def _panel(
    axis: Any, known: Facts, metric: str, runs: Mapping[str, Sequence[Trial]], truth: float
) -> None:
    for i, (name, trials) in enumerate(runs.items()):
        for steps, shares in _lines([_curve(known, trial, metric) for trial in trials]):
            axis.plot(
                steps,
                shares,
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
                markersize=3,
                linewidth=1.3,
                alpha=0.8,
                label=name,
            )
    axis.axhline(truth, color=GREY, linestyle=":", linewidth=1.2, label="true answers")


def _lines(
    curves: Sequence[tuple[list[int], list[float]]],
) -> list[tuple[list[int], list[float]]]:
    """Their mean, where all were measured after the same steps; else each of them."""
    if len({tuple(steps) for steps, _ in curves}) != 1:
        return list(curves)
    return [(curves[0][0], np.mean([shares for _, shares in curves], axis=0).tolist())]


def _curve(known: Facts, trial: Trial, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, the untrained model's at step 0 first."""
    points = trial.result.curve if trial.result is not None else ()
    pairs = [(0, known.base)] if known.base else []
    pairs += [(point.step, point.metrics) for point in points]
    told = [(step, metrics[metric]) for step, metrics in pairs if metric in metrics]
    return [step for step, _ in told], [value for _, value in told]


def _told(record: Record) -> Mapping[str, Json] | None:
    """What the study's header says of the leak that was measured; None: it was not."""
    found: Mapping[str, Json] | None = record.header["identity"].get("format_leak")
    return found


def _runs(known: Facts) -> dict[str, Sequence[Trial]]:
    """What is told of, by name: what was confirmed, else the winner."""
    confirmed = confirmed_rows(known)
    if confirmed:
        return {row.name: row.trials for row in confirmed}
    best = known.winner
    return {} if best is None else {label(best): evidence(known, best)}


def _mean(trials: Sequence[Trial], metric: str) -> float:
    values = [t.result.metrics[metric] for t in trials if t.result and metric in t.result.metrics]
    return float(np.mean(values)) if values else math.nan


def _share(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
