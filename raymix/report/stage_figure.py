"""The figure of trainings in several stages: each domain's loss at the end of every stage."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymix.report.facts import Facts
from raymix.report.stages import Course, courses
from raymix.report.style import COLOURS, DPI, GREY, MARKERS, STYLE, matplotlib_of

_COLUMNS = 3
"""Most panels in a row: at 1200 pixels the numbers can still be read."""

_LETTERS, _LEGEND = 19, 12
"""Letters of the small font in an inch of the figure; what a legend's mark takes of them."""

_APART = 0.012
"""Methods stand so far beside each other, in shares of the budget, where stages end together."""


def write_stages(known: Facts, folder: Path) -> tuple[Path, ...]:
    """Write `stages.png` to `folder`; nothing where no trial has several stages."""
    found = courses(known)
    if not found:
        return ()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stages.png"
    stages_figure(found).savefig(path, dpi=DPI)
    return (path,)


def stages_figure(found: Sequence[Course]) -> Any:
    """A panel for each domain: its eval loss from the model before training to the end.

    A line for each method, means over its trainings with a standard deviation. A marker stands at
    the end of a stage: full where that stage trained on the domain, hollow where it did not.
    """
    matplotlib, new = matplotlib_of()
    domains = found[0].domains
    columns = min(len(domains), _COLUMNS if len(domains) != 4 else 2)
    rows = math.ceil(len(domains) / columns)
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(2.55 * columns + 0.4, 2.4 * rows + 0.5 + 0.22 * len(found) / columns))
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, (axis, name) in enumerate(zip(axes, domains, strict=False)):
            for number, each in enumerate(found):
                _line(axis, each, place, number, _APART * (number - (len(found) - 1) / 2))
            before = found[0].stack("losses")[:, 0, place].mean()
            if np.isfinite(before):
                axis.axhline(before, color=GREY, linestyle="--", linewidth=1, zorder=1)
            axis.set_title(name)
            axis.set_xlim(-0.03, 1.03 + _APART * len(found) / 2)
            axis.grid(axis="y", color="#eeeeee", linewidth=0.8)
            axis.set_axisbelow(True)
        for axis in axes[len(domains) :]:
            axis.set_visible(False)
        for axis in axes[::columns]:
            axis.set_ylabel("eval loss (nats per token)")
        known = any(each.shares() is not None for each in found)
        marks = "; full marker: that stage trained on it, hollow: it did not" if known else ""
        words = f"share of the budget spent; a marker at the end of each stage{marks}; "
        words += "dashed: before training"
        letters = int(_LETTERS * figure.get_figwidth())
        figure.supxlabel(textwrap.fill(words, letters), fontsize=8)
        handles, labels = axes[0].get_legend_handles_labels()
        wide = max(1, letters // (_LEGEND + max(map(len, labels))))
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), wide))
    return figure


def _line(axis: Any, each: Course, place: int, number: int, shift: float) -> None:
    """One method's losses of one domain, over the share of the budget spent."""
    losses = each.stack("losses")[:, :, place]
    at = each.stack("progress").mean(axis=0)
    at[1:] += shift
    means = losses.mean(axis=0)
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    style = "-" if number < len(COLOURS) else ":"
    label = each.name if each.whole else f"{each.name} (stopped)"
    axis.plot(at, means, color=colour, linewidth=1.5, linestyle=style)
    if len(losses) > 1:
        spread = losses[:, 1:].std(axis=0, ddof=1)
        axis.errorbar(at[1:], means[1:], spread, color=colour, linestyle="", linewidth=1.2)
    shares = each.shares()
    trained = np.ones(len(at) - 1, bool) if shares is None else shares[:, place] > 0
    for full in (True, False):
        own = trained == full
        axis.plot(
            at[1:][own],
            means[1:][own],
            linestyle="",
            marker=marker,
            markersize=6,
            markeredgewidth=1.3,
            color=colour,
            markerfacecolor=colour if full else "white",
            zorder=4,
        )
    axis.plot([], [], color=colour, marker=marker, linestyle=style, markersize=6, label=label)
