"""Influence held against retraining: table, figure, JSON, and what to make of it in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from raymix.core.codec import encode
from raymix.report.facts import facts
from raymix.report.influence import Told, believed, told, trust_of
from raymix.report.layout import noted, table_of
from raymix.report.measured import measured_tables, relative
from raymix.report.style import COLOURS, DPI, GREY, STYLE, matplotlib_of
from raymix.report.trust import short
from raymix.search.agreement import Agreement, Row, compare
from raymix.study.record import Record

FILE = "validation.json"

GOOD, POOR = 0.9, 0.5
"""Pearson's correlation with retraining from which an estimate follows it; below which not."""

_CLEAR = 2.0
"""Standard errors beyond which a domain's effect is no noise."""

_FEW = 5
"""Domains below which a correlation over them is next to nothing."""

_ALIKE = 0.02
"""Correlations that differ by less are the same."""

_NAMES = {"ekfac": "EK-FAC", "identity": "gradient dot product"}


def probe_report(record: Record, validated: bool) -> Group:
    """What `raymix influence` prints: the measurement, its doubts, and how it was validated."""
    known = facts(record)
    each = next(part for part in told(known, record))
    trial, influence = each.influences[0]
    parts = [measured_tables(trial, influence, each.fixed), *believed(each, trust_of(record))]
    if validated:
        found, each = validation_of(record)
        parts.append(validation_tables(found, each, record))
    return Group(*parts)


def validation_tables(found: Agreement, each: Told, record: Record) -> Group:
    """Correlations by estimator, truth and estimates by domain, and the verdict."""
    parts: list[RenderableType] = [correlations(found), by_domain(found)]
    parts += [Text(sentence, style="bold") for sentence in verdict(found, each, record)]
    return Group(*parts)


def correlations(found: Agreement) -> RenderableType:
    """How each estimator agrees with the truth, and the truth with itself."""
    table = table_of(
        f"Agreement with retraining ({len(found.domains)} domains, {found.repeats} repeat(s))",
        ("estimator", "gradients"),
        ("Spearman", "Pearson", "per cell"),
    )
    for row in found.rows:
        means = "size-weighted" if row.weighted else "plain means"
        bold = "bold" if (row.name, row.weighted) == ("ekfac", True) else ""
        table.add_row(row.name, means, *_correlations(row), style=bold)
    if found.ceiling is not None:
        table.add_section()
        table.add_row("ceiling", "", *_correlations(found.ceiling))
    return noted(
        table,
        "of the influence on the objective over domains; per cell: Pearson over every pair of an "
        "eval loss and a domain; ceiling: one half of the repeats against the other",
    )


def by_domain(found: Agreement) -> RenderableType:
    """Realised derivative of the objective by domain, and estimates relative to their largest."""
    table = table_of(
        "Influence on the objective by domain",
        ("domain",),
        ("retrained", "± se", "relative", *found.influence),
    )
    truth = relative(np.asarray(found.truth))
    columns = [relative(np.asarray(values)) for values in found.influence.values()]
    for i, name in enumerate(found.domains):
        error = found.errors[i]
        table.add_row(
            name,
            f"{found.truth[i]:+.4f}",
            f"{error:.4f}" if math.isfinite(error) else "–",
            f"{truth[i]:+.2f}",
            *(f"{column[i]:+.2f}" for column in columns),
        )
    return noted(
        table,
        "retrained: nats per token for each unit of beta, where a domain's count becomes 1 + beta "
        "times; the others relative to their largest; negative: more of it lowers the objective",
    )


def verdict(found: Agreement, each: Told, record: Record) -> list[str]:
    """What to make of it: does the estimate follow, how sure is that, and did it warn."""
    own = next(row for row in found.rows if row.name == "ekfac" and row.weighted)
    warned = "; ".join(f"{said} ({who})" for said, who in each.doubts(trust_of(record)).items())
    sure = not warned and found.repeats > 1
    lines = [_follows(found, own.pearson, sure), regime(each)]
    best = max(found.rows, key=lambda row: row.pearson if math.isfinite(row.pearson) else -2.0)
    if best.pearson > own.pearson + _ALIKE:
        means = "" if best.weighted else " of plain means"
        lines.append(f"Nearest to retraining is {best.name}{means} ({short(best.pearson)}).")
    if found.repeats == 1:
        lines.append("With one repeat the noise of retraining is unknown; use --repeats 2 or more.")
    if len(found.domains) < _FEW:
        lines.append(
            f"With {len(found.domains)} domains a correlation says little more than who is first."
        )
    lines.append(f"Its self-checks warn: {warned}." if warned else "Its self-checks do not warn.")
    return lines


def _follows(found: Agreement, value: float, sure: bool) -> str:
    if found.repeats > 1 and not clear_domains(found):
        return (
            "Cannot tell: no domain's effect stands out from the noise of retraining "
            f"({_CLEAR:g} standard errors). More --repeats or a larger --step would show it."
        )
    if math.isnan(value):
        return "Cannot tell: the estimate or the truth is the same for all domains."
    if value >= GOOD:
        rely = ": influence can be relied on" if sure else ""
        return f"EK-FAC follows retraining here ({short(value)}){rely}."
    if value >= POOR:
        return (
            f"EK-FAC points the way roughly ({short(value)}): take small steps, and look at what "
            "each round realises."
        )
    return f"EK-FAC does not follow retraining here ({short(value)}): do not rely on influence."


def clear_domains(found: Agreement) -> tuple[str, ...]:
    """Domains whose effect is beyond two standard errors of retraining."""
    return tuple(
        name
        for name, value, error in zip(found.domains, found.truth, found.errors, strict=True)
        if abs(value) > _CLEAR * error
    )


def regime(each: Told) -> str:
    """Under which circumstances that holds."""
    _, influence = each.influences[0]
    total = "fixed total" if each.fixed else "free total"
    low, high = min(influence.epochs), max(influence.epochs)
    return (
        f"Regime: {total}, rows seen {low:.1f} to {high:.1f} times on average by domain, weights "
        f"moved by {influence.moved:.1%} of their norm."
    )


def validation_of(record: Record) -> tuple[Agreement, Told]:
    """The comparison in a study that perturbed each domain.

    Raises:
        SearchError: too little of it has come to an end.
    """
    known = facts(record)
    each = next(part for part in told(known, record))
    own = [t for t in known.history if t.method == each.method]
    return compare(own, "fixed" if each.fixed else "free"), each


def write_validation(record: Record, folder: str | Path) -> tuple[Path, ...]:
    """Write `validation.json` and `validation.png` to `folder`."""
    found, each = validation_of(record)
    folder = Path(folder)
    plain = {
        **encode(found),
        "total": "fixed" if each.fixed else "free",
        "epochs": list(each.influences[0][1].epochs),
        "doubts": list(each.doubts(trust_of(record))),
        "verdict": verdict(found, each, record),
    }
    data, image = folder / FILE, folder / "validation.png"
    data.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    validation_figure(found).savefig(image, dpi=DPI)
    return data, image


def validation_figure(found: Agreement) -> Any:
    """Estimate against retraining by domain, a panel for EK-FAC and one for the dot product."""
    matplotlib, new = matplotlib_of()
    names = [name for name in _NAMES if name in found.influence]
    with matplotlib.rc_context(STYLE):
        figure = new(figsize=(4.6 * len(names) + 0.4, 4.3))
        axes = figure.subplots(1, len(names), squeeze=False, sharey=True).ravel()
        for axis, name in zip(axes, names, strict=True):
            _panel(axis, found, name)
        axes[0].set_ylabel("retrained (nats per token for each unit of beta)")
        handles, labels = axes[0].get_legend_handles_labels()
        wide = min(len(labels), 6)
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=wide,
            title="bars: one standard error; dashed: one fitted scale",
            title_fontsize=8,
        )
    return figure


def _panel(axis: Any, found: Agreement, name: str) -> None:
    values, truth = np.asarray(found.influence[name]), np.asarray(found.truth)
    errors = np.nan_to_num(np.asarray(found.errors))
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8)
    for i, domain in enumerate(found.domains):
        axis.errorbar(
            values[i],
            truth[i],
            yerr=errors[i] or None,
            color=COLOURS[i % len(COLOURS)],
            marker="o",
            markersize=7,
            linewidth=1.4,
            linestyle="",
            label=domain,
        )
    square = float(values @ values)
    if square:
        edges = np.array(axis.get_xlim())
        axis.plot(edges, float(values @ truth) / square * edges, color="black", ls="--", lw=0.9)
        axis.set_xlim(*edges)
    row = next(r for r in found.rows if r.name == name and r.weighted)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("estimate: negative helps")
    axis.set_title(
        f"{_NAMES[name]}\nPearson {short(row.pearson)}, rank correlation {short(row.spearman)} "
        f"(n = {len(found.domains)})"
    )


def _correlations(row: Row) -> tuple[str, str, str]:
    return short(row.spearman), short(row.pearson), short(row.cells)
