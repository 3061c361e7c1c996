"""Figures of a study, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymix.core.errors import StudyError
from raymix.core.simplex import Vector
from raymix.core.trial import Role, Trial
from raymix.report.facts import Facts, Row, facts, label
from raymix.report.facts import rows as rows_of
from raymix.report.style import COLOURS, DPI, GREY, MARKERS, STYLE, WINNER, matplotlib_of
from raymix.study.objective import domain_losses
from raymix.study.record import Record


def write_figures(record: Record, folder: str | Path) -> tuple[Path, ...]:
    """Write `losses.png` and `ranking.png` to `folder`; returns their paths.

    Raises StudyError when no trial has a score yet.
    """
    known = facts(record)
    if not known.history.ranking():
        raise StudyError("nothing to draw yet: no trial has a score")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "losses.png", folder / "ranking.png")
    for path, figure in zip(paths, (losses_by_share(known), ranking(known)), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


def losses_by_share(known: Facts) -> Any:
    """One panel per domain: its eval loss against its share, a point per trial of the search."""
    matplotlib, new = matplotlib_of()
    size = len(known.domains)
    columns = min(size, 3 if size != 4 else 2)
    rows = math.ceil(size / columns)
    trials = [t for t in known.history.ranking() if t.result is not None]
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(3.1 * columns + 0.4, 2.5 * rows + 0.7))
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        best, base = known.winner, domain_losses(known.base)
        shares = np.array([trial.mixture.ordered(known.domains).weights for trial in trials])
        for axis, name, column in zip(axes, known.domains, shares.T, strict=False):
            own = dict(zip((trial.number for trial in trials), column.tolist(), strict=True))
            _panel(axis, name, trials, own, best, base.get(name))
        for axis in axes[size:]:
            axis.set_visible(False)
        for axis in axes[::columns]:
            axis.set_ylabel("eval loss (nats per token)")
        handles, labels = axes[0].get_legend_handles_labels()
        wide = min(len(labels), 2 * columns)
        figure.legend(handles, labels, loc="outside lower center", ncols=wide)
    return figure


def _panel(
    axis: Any,
    name: str,
    trials: Sequence[Trial],
    shares: Mapping[int, float],
    best: Trial | None,
    base: float | None,
) -> None:
    """One domain; `shares` and losses are by the trials' numbers, `base` is the loss before."""
    methods = dict.fromkeys(t.method for t in trials if t.role is not Role.BASELINE)
    values = {t.number: _loss(t, name) for t in trials}
    for i, method in enumerate(methods):
        own = [t for t in trials if t.method == method and t.role is not Role.BASELINE]
        axis.plot(
            [shares[t.number] for t in own],
            [values[t.number] for t in own],
            linestyle="",
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5,
            markeredgewidth=0,
            color=COLOURS[i % len(COLOURS)],
            alpha=0.75,
            label=method,
        )
    hollow = iter(("o", "s", "D", "^", "v", "P", "X"))
    for trial in sorted(trials, key=lambda t: t.number):
        if trial.role is not Role.BASELINE:
            continue
        axis.plot(
            [shares[trial.number]],
            [values[trial.number]],
            linestyle="",
            marker=next(hollow, "o"),
            markersize=7,
            markerfacecolor="none",
            markeredgecolor="black",
            label=label(trial),
        )
    if best is not None and best.number in values:
        axis.plot(
            [shares[best.number]],
            [values[best.number]],
            linestyle="",
            marker="*",
            markersize=12,
            color=WINNER,
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=f"best: {label(best)}",
            zorder=5,
        )
    if base is not None:
        axis.axhline(base, color=GREY, linestyle="--", linewidth=1, label="untrained model")
    axis.set_title(name)
    axis.set_xlabel("share of the budget")
    axis.set_xlim(-0.02, max(shares.values()) * 1.06 + 0.02)


def ranking(known: Facts, rows: int = 20) -> Any:
    """Confirmed mixtures with every fresh seed, mean and standard deviation, on eval and test.

    Before any confirmation: the scores of the search.
    """
    matplotlib, new = matplotlib_of()
    found = {row.name: row for row in rows_of(known)}
    if found:
        scores = {
            name: {
                split: np.array(
                    [
                        known.score(t.result.metrics, split, t.mixture)
                        for t in row.trials
                        if t.result
                    ]
                )
                for split in ("eval", "test")
            }
            for name, row in found.items()
        }
        most = max(len(row.trials) for row in found.values())
        title = f"Confirmed with fresh seeds ({most} each)"
    else:
        ranked = known.history.ranking()[:rows]
        best = known.winner
        first = None if best is None else best.number
        found = {label(t): Row(label(t), t, (t,), t.number == first) for t in ranked}
        scores = {name: {"eval": np.array([row.source.score])} for name, row in found.items()}
        title = "Search scores (one seed each)"
    order = sorted(scores, key=lambda n: float(scores[n]["eval"].mean()), reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(7.2, 0.42 * len(order) + 1.5))
        axis = figure.subplots()
        for place, name in enumerate(order):
            for i, (split, values) in enumerate(scores[name].items()):
                # Without a test split there is nothing to draw for it.
                if np.all(np.isfinite(values)):
                    _spread(axis, place + 0.14 * (0.5 - i) * (len(scores[name]) - 1), split, values)
        axis.set_yticks(range(len(order)), [_tick(found[name]) for name in order], fontsize=8)
        for tick, name in zip(axis.get_yticklabels(), order, strict=True):
            if found[name].best:
                tick.set_color(WINNER)
                tick.set_fontweight("bold")
        axis.set_ylim(-0.6, len(order) - 0.4)
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_xlabel(f"{known.objective.aggregate} loss (nats per token); lower is better")
        axis.set_title(title, loc="left")
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        if len(unique) > 1:
            figure.legend(
                unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique)
            )
    return figure


def _spread(axis: Any, height: float, split: str, values: Vector) -> None:
    """Every seed as a small ring, the mean as a dot, a bar of one standard deviation."""
    colour = COLOURS[0] if split == "eval" else COLOURS[1]
    marker = "o" if split == "eval" else "s"
    if len(values) > 1:
        seeds = np.full(len(values), height)
        axis.plot(
            values,
            seeds,
            linestyle="",
            marker="o",
            markersize=3.5,
            markerfacecolor="white",
            markeredgecolor=colour,
            markeredgewidth=0.9,
            zorder=4,
        )
    axis.errorbar(
        values.mean(),
        height,
        xerr=values.std(ddof=1) if len(values) > 1 else None,
        color=colour,
        marker=marker,
        markersize=7,
        linewidth=2.2,
        linestyle="",
        label=f"{split}: mean, sd, each seed (white)" if len(values) > 1 else split,
    )


def _tick(row: Row) -> str:
    """Name and, while there is room for them, shares."""
    names = row.source.mixture.names
    means = np.mean([t.mixture.ordered(names).array() for t in row.trials], axis=0)
    if len(names) > 5:
        return row.name
    pairs = zip(names, means.tolist(), strict=True)
    written = " ".join(f"{name} {share:.2f}".replace(" 0.", " .") for name, share in pairs)
    return f"{row.name}\n{written}"


def _loss(trial: Trial, name: str) -> float:
    metrics = trial.result.metrics if trial.result is not None else {}
    return metrics.get(f"eval/{name}/loss", math.nan)
