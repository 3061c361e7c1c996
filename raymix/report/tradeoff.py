"""Two groups of domains against each other: where each method ends, and how it got there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.report.facts import Row
from raymix.report.style import COLOURS, GREY, MARKERS, STYLE, matplotlib_of
from raymix.study.objective import domain_losses


def group_loss(metrics: Mapping[str, float], domains: Sequence[str], split: str = "eval") -> float:
    """Mean loss of `domains`, nats per token; NaN where one is missing."""
    losses = domain_losses(metrics, split)
    return float(np.mean([losses.get(name, np.nan) for name in domains]))


def route(trial: Trial, across: Sequence[str], up: Sequence[str]) -> Vector:
    """Mean eval losses of two groups of domains at each point of a training [P, 2]."""
    points = trial.result.curve if trial.result is not None else ()
    found = [[group_loss(p.metrics, across), group_loss(p.metrics, up)] for p in points]
    return np.array(found, dtype=np.float64).reshape(len(points), 2)


def tradeoff(
    rows: Sequence[Row],
    across: tuple[str, Sequence[str]],
    up: tuple[str, Sequence[str]],
    base: Mapping[str, float],
) -> Any:
    """A figure of the methods in `rows`: mean routes over seeds, each seed's end, the mean end.

    Args:
        rows: confirmed methods, at most 14 that can be told apart.
        across: name and domains of the horizontal axis.
        up: name and domains of the vertical axis.
        base: metrics of the model before training.

    Returns:
        None where no method has a training with losses of both groups.
    """
    routes = {row.name: _routes(row, across[1], up[1]) for row in rows}
    routes = {name: found for name, found in routes.items() if found}
    if not routes:
        return None
    matplotlib, new = matplotlib_of()
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(8.6, 4.8))
        axis = figure.subplots()
        start = (group_loss(base, across[1]), group_loss(base, up[1]))
        if np.isfinite(start).all():
            axis.plot(*start, "*", color=GREY, markersize=12, label="before training")
        for i, (name, found) in enumerate(routes.items()):
            colour = COLOURS[i % len(COLOURS)]
            path = _mean_route(found)
            if np.isfinite(start).all():
                path = np.concatenate([[start], path])
            axis.plot(*path.T, "-", color=colour, linewidth=0.9, alpha=0.55)
            ends = np.array([one[-1] for one in found])
            axis.plot(*ends.T, ".", color=colour, markersize=4, alpha=0.6)
            axis.plot(
                *ends.mean(axis=0),
                marker=MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
                color=colour,
                markeredgecolor="black" if i >= len(COLOURS) else None,
                markersize=8,
                linestyle="",
                label=name,
            )
        axis.set_xlabel(f"{across[0]}: mean eval loss of {', '.join(across[1])}")
        axis.set_ylabel(f"{up[0]}: mean eval loss of {', '.join(up[1])}")
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _routes(row: Row, across: Sequence[str], up: Sequence[str]) -> list[Vector]:
    found = [route(trial, across, up) for trial in row.trials]
    return [one for one in found if len(one) and np.isfinite(one[-1]).all()]


def _mean_route(routes: Sequence[Vector]) -> Vector:
    """Point by point; where trainings reported unequally often, as far as all of them did."""
    shared = min(len(one) for one in routes)
    mean: Vector = np.mean([one[:shared] for one in routes], axis=0)
    return mean
