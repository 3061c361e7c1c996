"""Figures of a comparison of methods: losses by domain, mixtures over time, cost and quality."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymix.core.mixture import Mixture
from raymix.core.simplex import Vector
from raymix.core.trial import RANKED, Role, Trial
from raymix.report.facts import Facts, repeats, used
from raymix.report.methods import Arm, arms
from raymix.report.style import COLOURS, DPI, GREY, MARKERS, STYLE, matplotlib_of
from raymix.study.bill import units
from raymix.study.groups import chosen, runs_of
from raymix.study.objective import domain_losses

_NARROW = 4
"""Most panels in a row."""


def write_comparison(known: Facts, folder: Path) -> tuple[Path, ...]:
    """Write `methods.png`, `trajectories.png` and `cost.png`; nothing before a verdict."""
    found, table = arms(known), repeats(known)
    if table is None:
        return ()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "methods.png": losses_by_method(known, found, table.split),
        "trajectories.png": trajectories(known),
        "cost.png": cost(known, found),
    }
    written = []
    for name, figure in drawn.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI)
            written.append(folder / name)
    return tuple(written)


def losses_by_method(known: Facts, found: Sequence[Arm], split: str) -> Any:
    """One panel per domain: every method's loss with each seed, against proportional's."""
    matplotlib, new = matplotlib_of()
    columns = min(len(known.domains), 5)
    rows = math.ceil(len(known.domains) / columns)
    order = list(reversed(found))
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(1.5 + 2.0 * columns, rows * (0.9 + 0.24 * len(order))))
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axis, name in zip(panels, known.domains, strict=False):
            for height, arm in enumerate(order):
                own = [_loss(t, split, name) for t in arm.trials]
                colour = _colour(arm)
                axis.plot(own, [height] * len(own), "o", color=colour, alpha=0.4, markersize=3)
                axis.plot([np.mean(own)], [height], "D", color=colour, markersize=5)
                if "proportional" in arm.name:
                    axis.axvline(float(np.mean(own)), color=GREY, linewidth=1, linestyle="--")
            axis.set_title(name)
            axis.grid(axis="y", color="#eeeeee", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.set_ylim(-0.6, len(order) - 0.4)
        for axis in panels[len(known.domains) :]:
            axis.set_visible(False)
        panels[0].set_yticks(range(len(order)), [arm.name for arm in order])
        figure.supxlabel(
            f"{split} loss (nats per token). Blue: searched; orange: fixed; dashed: proportional",
            fontsize=9,
        )
    return figure


def trajectories(known: Facts) -> Any:
    """The mixture that each method would have handed out, over what it had spent; first seeds."""
    paths = {g: list(path(known, runs[0])) for g, runs in runs_of(known.members).items()}
    paths = {group: steps for group, steps in paths.items() if len(steps) > 1}
    if not paths:
        return None
    matplotlib, new = matplotlib_of()
    columns = min(len(paths), _NARROW)
    rows = math.ceil(len(paths) / columns)
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(0.6 + 2.3 * columns, 1.0 + 1.9 * rows))
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axis, (group, steps) in zip(panels, paths.items(), strict=False):
            at = [spent for spent, _ in steps]
            shares = np.array([mixture.ordered(known.domains).array() for _, mixture in steps])
            _stacked(axis, at, shares, known.domains)
            if chosen(known.history, runs_of(known.members)[group][0]) is not None:
                end = [at[-1] * 1.04, at[-1] * 1.16]
                _stacked(axis, end, shares[[-1, -1]], known.domains)
            axis.set_title(group)
            axis.set_xlim(0, at[-1] * 1.16)
            axis.set_ylim(0, 1)
        for axis in panels[len(paths) :]:
            axis.set_visible(False)
        for axis in panels[::columns]:
            axis.set_ylabel("share")
        figure.supxlabel(
            "training units spent by the first run; last bar: what it chose", fontsize=9
        )
        handles, labels = panels[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(
            unique.values(), unique.keys(), loc="outside upper center", ncols=min(len(unique), 6)
        )
    return figure


def _stacked(axis: Any, at: Sequence[float], shares: Vector, names: Sequence[str]) -> None:
    base = np.zeros(len(at))
    for name, colour, share in zip(names, _palette(len(names)), shares.T, strict=True):
        look = {"color": colour, "linewidth": 0, "label": name}
        axis.fill_between(at, base, base + share, step="post", **look)
        base = base + share


def path(known: Facts, method: str) -> Iterator[tuple[float, Mixture]]:
    """Units spent and mixture: the best so far, or inside a training the one in force."""
    spent, best = 0.0, math.inf
    own = [t for t in known.history if t.method == method and not t.pending]
    if own:
        yield 0.0, own[0].mixture
    for trial in own:
        whole = units(trial, known.space.budget, known.history)
        if trial.proposal.reweighter is not None and trial.result is not None:
            yield from _inside(known, trial, spent, whole)
        spent += whole
        if trial.role is Role.FINAL:
            yield spent, trial.mixture
        elif trial.role in RANKED and trial.finished and trial.score < best:
            best = trial.score
            yield spent, used(trial)
    choice = chosen(known.history, method)
    if choice is not None:
        yield spent, used(choice)


def _inside(
    known: Facts, trial: Trial, spent: float, whole: float
) -> Iterator[tuple[float, Mixture]]:
    """What was in force in a training, from each evaluation back to the one before it."""
    since = spent
    for point in trial.result.curve if trial.result else ():
        moved = _weights(point.metrics, known.domains)
        if moved is not None:
            yield since, moved
        since = spent + whole * point.progress


def _weights(metrics: Any, names: Sequence[str]) -> Mixture | None:
    """Loss or gradient weights in force where there are any, else shares that are sampled."""
    for pattern in ("reweight/weight/{}", "mix/{}/share"):
        values = [metrics.get(pattern.format(name)) for name in names]
        if None not in values and sum(values) > 0:
            return Mixture.normalised(names, values)
    return None


def cost(known: Facts, found: Sequence[Arm]) -> Any:
    """Verdict loss against what a run of the method had spent; fixed mixtures spent nothing."""
    matplotlib, new = matplotlib_of()
    searched = [arm for arm in found if arm.units]
    plain = [arm for arm in found if {"proportional", "uniform"} & set(arm.name.split(" = "))]
    shown = [float(np.mean([t.score for t in arm.trials])) for arm in (*searched, *plain)]
    if not shown:
        return None
    low, usual = min(shown), max((_mean(arm) for arm in plain), default=max(shown))
    top = usual + 0.35 * max(usual - low, 1e-3)
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(7.6, 4.2))
        axis = figure.subplots()
        for arm in plain:
            axis.axhline(_mean(arm), color=GREY, linestyle="--", linewidth=1.2)
            place = (1.0, _mean(arm))
            look = {"ha": "right", "va": "bottom", "fontsize": 8, "color": GREY}
            axis.annotate(arm.name, place, xycoords=("axes fraction", "data"), **look)
        for i, arm in enumerate(searched):
            scores = np.array([t.score for t in arm.trials])
            off = scores.mean() > top
            name = f"{arm.name} (off the scale: {scores.mean():.2f})" if off else arm.name
            axis.errorbar(
                np.mean(arm.units),
                min(scores.mean(), top),
                yerr=scores.std(ddof=1) if len(scores) > 1 and not off else None,
                marker="^" if off else MARKERS[i % len(MARKERS)],
                color=COLOURS[i % len(COLOURS)],
                markeredgecolor="black" if i >= len(COLOURS) else None,
                markersize=8,
                linestyle="",
                label=name,
            )
        axis.set_ylim(top=top + 0.03 * (top - low))
        axis.set_xlim(left=0)
        axis.set_xlabel("training units that one run spent on its search")
        axis.set_ylabel("eval score of what it chose (nats per token)")
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        if searched:
            figure.legend(loc="outside right upper")
    return figure


def _mean(arm: Arm) -> float:
    return float(np.mean([t.score for t in arm.trials]))


def _palette(count: int) -> list[str]:
    import matplotlib

    if count <= len(COLOURS):
        return list(COLOURS[:count])
    wheel = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))
    return [matplotlib.colors.to_hex(colour) for colour in wheel]


def _colour(arm: Arm) -> str:
    """Methods that search in one colour, fixed mixtures in another."""
    return COLOURS[0] if arm.units else COLOURS[1]


def _loss(trial: Trial, split: str, name: str) -> float:
    metrics = trial.result.metrics if trial.result is not None else {}
    return domain_losses(metrics, split).get(name, math.nan)
