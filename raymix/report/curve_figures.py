"""The three figures of scaling curves, and all their numbers as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymix.core.codec import encode
from raymix.core.job import Json
from raymix.report.curve_words import sentences
from raymix.report.curves import SIDES, Curve, Scaling, scaling_of
from raymix.report.style import COLOURS, DPI, GREY, MARKERS, STYLE, matplotlib_of
from raymix.search.curves import ALONE, TOGETHER
from raymix.study.record import Record

_POINTS = 120
_WIDEST = 5
"""Panels in a row."""


def write_curves(record: Record, folder: str | Path) -> tuple[Path, ...]:
    """Write `curves.json` and the three figures to `folder`; nothing without trainings."""
    found, folder = scaling_of(record), Path(folder)
    if not found.taken:
        return ()
    data = folder / "curves.json"
    data.write_text(json.dumps(plain(found), indent=1) + "\n", encoding="utf-8")
    figures = {"alone": alone_figure(found), "together": together_figure(found)}
    if found.pairs:
        figures["pairs"] = pairs_figure(found)
    paths = [data]
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=DPI)
    return tuple(paths)


def alone_figure(found: Scaling) -> Any:
    """Loss and accuracy of each domain alone by its rows: a column for each domain."""
    names = found.space.names

    def draw(figure: Any) -> None:
        axes = _panels(figure, len(names), 2)
        for i, name in enumerate(names):
            above, below = axes[i]
            for j, model in enumerate(found.models):
                curve = found.alone(model, name)
                _draw(above, curve, j, model)
                _accuracy(below, curve, j)
            above.set_title(name)
            below.set_xlabel(f"rows of {name}")
            if i % _WIDEST == 0:
                above.set_ylabel("eval loss (nats per token)")
                below.set_ylabel("exact answers")
            below.set_ylim(-0.03, 1.03)
        _legend(figure, axes[0][0])

    return _figure(len(names), 2, draw)


def together_figure(found: Scaling) -> Any:
    """Each domain with all others and, for comparison, alone: a row for each model."""
    names, models = found.space.names, found.models

    def draw(figure: Any) -> None:
        axes = _panels(figure, len(names), len(models))
        for i, name in enumerate(names):
            for axis, model in zip(axes[i], models, strict=True):
                _draw(axis, found.together(model, name), 0, "with all others")
                _draw(axis, found.alone(model, name), 1, "alone")
                axis.set_title(name if len(models) == 1 else f"{name} ({model})")
                if i % _WIDEST == 0:
                    axis.set_ylabel("eval loss (nats per token)")
            axes[i][-1].set_xlabel(f"rows of {name}")
        _legend(figure, axes[0][0])

    return _figure(len(names), len(models), draw)


def pairs_figure(found: Scaling) -> Any:
    """A row for each pair and model: what the varied side does to the fixed one, and it to that."""
    rows = [(pair, model) for pair in found.pairs for model in found.models]

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(rows), 2, squeeze=False)
        for (left, right), (pair, model) in zip(axes, rows, strict=True):
            fixed, varied = pair
            curve = found.pair(model, pair, SIDES[0])
            _draw(left, curve, 2, f"loss of {fixed}")
            left.set_title(f"{fixed} in full, {varied} added ({model})")
            left.set_ylabel(f"eval loss of {fixed}")
            _draw(right, found.pair(model, pair, SIDES[1]), 0, f"with all of {fixed}")
            _draw(right, found.alone(model, varied), 1, "alone")
            right.set_title(f"{varied} with {fixed} and alone ({model})")
            right.set_ylabel(f"eval loss of {varied}")
            for axis in (left, right):
                axis.set_xlabel(f"rows of {varied}")
                axis.legend(fontsize=8)

    matplotlib, new = matplotlib_of()
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(9.2, 2.9 * len(rows) + 0.3))
        draw(figure)
        figure.supxlabel(
            f"{_KEY}without the varied domain (alone: the untrained model)", fontsize=8
        )
    return figure


_KEY = (
    "points: one training each; line: fitted law; band: its 95% interval at each amount; dashed: "
)
_UNTRAINED = _KEY + "the untrained model"


def _figure(count: int, deep: int, draw: Callable[[Any], None]) -> Any:
    matplotlib, new = matplotlib_of()
    wide, rows = min(count, _WIDEST), math.ceil(count / _WIDEST)
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(2.6 * wide + 0.6, 2.35 * rows * deep + 0.8))
        draw(figure)
    return figure


def _panels(figure: Any, count: int, deep: int) -> list[list[Any]]:
    """For each of `count` columns of panels its `deep` axes; wraps after `_WIDEST` columns."""
    wide, rows = min(count, _WIDEST), math.ceil(count / _WIDEST)
    axes = figure.subplots(rows * deep, wide, squeeze=False, sharey="row")
    found = [[axes[i // wide * deep + j][i % wide] for j in range(deep)] for i in range(count)]
    used = {id(axis) for column in found for axis in column}
    for axis in axes.ravel():
        axis.set_visible(id(axis) in used)
    return found


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        title=_UNTRAINED,
        title_fontsize=8,
    )


def _draw(axis: Any, curve: Curve, place: int, label: str) -> None:
    """Points, base, law and band of one curve."""
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    _logarithmic(axis)
    if math.isfinite(curve.base):
        axis.axhline(curve.base, color=colour, linestyle="--", linewidth=0.8, alpha=0.7)
    points = {"linestyle": "", "marker": marker, "markersize": 4.2, "markeredgewidth": 0}
    axis.plot(curve.rows, curve.losses, color=colour, alpha=0.8, label=label, **points)
    fitted = curve.fitted
    if fitted is None:
        return
    rows = np.geomspace(curve.rows.min(), curve.rows.max(), _POINTS)
    axis.plot(rows, fitted.law(rows), color=colour, linewidth=1.4)
    low, high = fitted.band(rows)
    axis.fill_between(rows, low, high, color=colour, alpha=0.18, linewidth=0)


def _logarithmic(axis: Any) -> None:
    """Rows on a logarithmic axis, as plain numbers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _accuracy(axis: Any, curve: Curve, place: int) -> None:
    """Points, and a line through their means."""
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    _logarithmic(axis)
    points = {"linestyle": "", "marker": marker, "markersize": 4.2, "markeredgewidth": 0}
    axis.plot(curve.rows, curve.accuracies, color=colour, alpha=0.8, **points)
    rows = np.unique(curve.rows)
    means = [curve.accuracies[curve.rows == n].mean() for n in rows]
    axis.plot(rows, means, color=colour, linewidth=1.0, alpha=0.8)
    if math.isfinite(curve.base_accuracy):
        axis.axhline(curve.base_accuracy, color=GREY, linestyle="--", linewidth=0.8)


def plain(found: Scaling) -> Json:
    """All numbers as JSON; what is not known or not bounded is null."""
    models, names = found.models, found.space.names
    curves = [
        {"curve": kind, "model": model, **_numbers(of(model, name))}
        for kind, of in ((ALONE, found.alone), (TOGETHER, found.together))
        for model in models
        for name in names
    ]
    curves += [
        {"curve": "pair", "model": model, "pair": list(pair), "side": side}
        | _numbers(found.pair(model, pair, side))
        for model in models
        for pair in found.pairs
        for side in SIDES
    ]
    return _finite(
        {
            "domains": list(names),
            "models": list(models),
            "fractions": list(found.fractions),
            "left_out": [list(point) for point in found.left_out],
            "curves": curves,
            "mixing": [_pairs(c) for c in found.mixing()],
            "pairs": [_pairs(c) for c in found.beside()],
            "steeper": [
                encode(found.steeper(model, kind)) | {"word": found.steeper(model, kind).word}
                for model in models[1:]
                for kind in (ALONE, TOGETHER)
            ],
            "sentences": sentences(found),
        }
    )


def _numbers(curve: Curve) -> dict[str, Json]:
    points: Sequence[Any] = (
        curve.fractions,
        curve.rows,
        curve.repeats,
        curve.losses,
        curve.accuracies,
    )
    keys = ("fraction", "rows", "repeat", "loss", "accuracy")
    told: dict[str, Json] = {
        "domain": curve.domain,
        "base": {"loss": curve.base, "accuracy": curve.base_accuracy},
        "points": [
            dict(zip(keys, map(float, point), strict=True)) for point in zip(*points, strict=True)
        ],
        "law": None,
    }
    fitted = curve.fitted
    if fitted is not None:
        told["law"] = {
            "word": fitted.word,
            "scale": fitted.law.scale,
            "noise": fitted.noise,
            "misfit": fitted.misfit,
            **{k: encode(getattr(fitted, k)) for k in ("floor", "power", "last", "next")},
        }
    return told


def _pairs(compared: Any) -> Json:
    told = encode(compared)
    told["by_fraction"] = [
        {"fraction": f, **encode(d), "real": d.real} for f, d in compared.by_fraction.items()
    ]
    return told


def _finite(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
