"""The figure of influence: predicted against realised, and the latest matrix of each method."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from raymix.core.influence import Influence, Thresholds, centred
from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.report.facts import facts, label
from raymix.report.influence import Told, told, trust_of
from raymix.report.style import COLOURS, DPI, GREY, MARKERS, STYLE, matplotlib_of
from raymix.report.trust import short
from raymix.study.record import Record

MORE = 0.1
"""The matrix is drawn as the change of loss if a domain's count grew by this part."""

_MOST_NUMBERS = 12
"""With more domains the cells of the matrix hold no numbers."""


def write_influence(record: Record, folder: str | Path) -> tuple[Path, ...]:
    """Write `influence.png` to `folder`; nothing where no influence was measured."""
    found = told(facts(record), record)
    if not found:
        return ()
    path = Path(folder) / "influence.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    influence_figure(found, trust_of(record)).savefig(path, dpi=DPI)
    return (path,)


def influence_figure(found: tuple[Told, ...], trust: Thresholds) -> Any:
    """A row for each method: scatter of its steps, heat map of its latest influence."""
    matplotlib, new = matplotlib_of()
    wide = any(each.steps for each in found)
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(10.4 if wide else 5.6, 4.6 * len(found)))
        parts = figure.subfigures(len(found), 1, squeeze=False).ravel()
        for part, each in zip(parts, found, strict=True):
            said = _doubts(each, trust, 150 if wide else 85)
            if said:
                part.supxlabel(said, fontsize=8, color="#a05000", x=0.02, ha="left")
            panels = 1 + wide
            axes = part.subplots(1, panels, width_ratios=(1.15, 1.0)[-panels:])
            if each.steps:
                _scatter(axes[0], each)
            elif wide:
                axes[0].set_visible(False)
            right = axes[1] if wide else axes
            if each.influences:
                heat(part, right, *each.influences[-1], fixed=each.fixed)
            else:
                right.set_visible(False)
    return figure


def _doubts(each: Told, trust: Thresholds, width: int) -> str:
    """What speaks against the method's influences, in lines; empty where nothing does."""
    lines = (f"{who}: {said}" for said, who in each.doubts(trust).items())
    return "\n".join(textwrap.fill(line, width) for line in lines)


def _scatter(axis: Any, each: Told) -> None:
    agreed = each.agreement
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8)
    domains = list(dict.fromkeys(name for step in each.steps for name in step.domains))
    rounds = _rounds(each)
    for step in each.steps:
        for name, x, y in zip(step.domains, step.predicted, step.realised, strict=True):
            axis.plot(
                [x],
                [y],
                linestyle="",
                marker=MARKERS[rounds.index(step.number) % len(MARKERS)],
                markersize=6.5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                color=COLOURS[domains.index(name) % len(COLOURS)],
            )
    if np.isfinite(agreed.scale):
        edges = np.array(axis.get_xlim())
        axis.plot(edges, agreed.scale * edges, color="black", linestyle="--", linewidth=0.9)
        axis.set_xlim(*edges)
    axis.set_xlabel("predicted change of eval loss (nats per token)")
    axis.set_ylabel("realised change")
    axis.margins(0.08)
    axis.locator_params(axis="x", nbins=6)
    axis.set_title(
        f"{each.method}: rank correlation {short(agreed.spearman)} (n = {agreed.points})\n"
        f"dashed: realised = {agreed.scale:.2g} x predicted"
    )
    _legends(axis, each, domains)


def _legends(axis: Any, each: Told, domains: list[str]) -> None:
    """Colours are domains, markers rounds."""
    from matplotlib.lines import Line2D

    def mark(name: str, marker: str, colour: str) -> Any:
        return Line2D([], [], linestyle="", marker=marker, color=colour, label=name)

    colours = [mark(name, "o", COLOURS[i % len(COLOURS)]) for i, name in enumerate(domains)]
    marks = [
        mark(f"round {number:.0f}", MARKERS[i % len(MARKERS)], GREY)
        for i, number in enumerate(_rounds(each))
        if math.isfinite(number)
    ]
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": 8}
    axis.legend(handles=[*colours, *marks], handletextpad=0.1, **beside)


def _rounds(each: Told) -> list[float]:
    return list(dict.fromkeys(step.number for step in each.steps))


def heat(figure: Any, axis: Any, trial: Trial, influence: Influence, fixed: bool = True) -> None:
    """Change of each eval loss (rows) if a domain (columns) got 10% more, as EK-FAC has it."""
    matrix = shown(influence, trial, fixed)
    most = float(np.abs(matrix).max()) or 1.0
    image = axis.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    names = influence.domains
    turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) * len(names) > 30 else {}
    axis.set_xticks(range(len(names)), names, fontsize=8, **turned)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel(f"{MORE:.0%} more of")
    axis.set_ylabel("eval loss of")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    # Two digits of the largest.
    digits = max(0, 1 - math.floor(math.log10(most)))
    for i, j in np.ndindex(matrix.shape) if len(names) <= _MOST_NUMBERS else ():
        colour = "white" if abs(matrix[i, j]) > 0.6 * most else "black"
        axis.text(
            j, i, f"{matrix[i, j]:+.{digits}f}", ha="center", va="center", color=colour, fontsize=7
        )
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.02)
    axis.set_title(f"influence at {label(trial)} (EK-FAC)\npredicted change, nats per token")


def shown(influence: Influence, trial: Trial, fixed: bool, name: str = "ekfac") -> Vector:
    """The matrix [K', K]: size-weighted, centred under a fixed total, for `MORE` of a domain."""
    effect = influence.effect(name)
    mixture = trial.mixture.ordered(influence.domains)
    return MORE * (centred(effect, mixture) if fixed else effect)
