"""One measurement of influence for people: matrix, estimators side by side, layers, cost."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from raymix.core.influence import Influence, centred
from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.report.facts import label
from raymix.report.layout import noted, table_of
from raymix.report.scatter import MORE, shown

_MOST_COLUMNS = 9
"""With more domains the matrix is too wide for a terminal; the figure has it."""

_TOP = 5
"""Layers shown."""


def measured_tables(trial: Trial, influence: Influence, fixed: bool = True) -> Group:
    """All that one measurement says, but whether it is to be believed."""
    parts: list[RenderableType] = []
    if len(influence.domains) <= _MOST_COLUMNS:
        parts.append(matrix_table(trial, influence, fixed))
    parts += [by_domain(trial, influence, fixed), layers_table(trial, influence, fixed)]
    return Group(*parts, Text(cost(influence)))


def aggregated(
    trial: Trial, influence: Influence, fixed: bool, estimate: str = "ekfac", weighted: bool = True
) -> Vector:
    """Derivative of the objective by each domain's beta [K], centred under a fixed total."""
    found = influence.aggregate(influence.effect(estimate, weighted))
    return centred(found, trial.mixture.ordered(influence.domains)) if fixed else found


def matrix_table(trial: Trial, influence: Influence, fixed: bool) -> RenderableType:
    """Predicted change of each eval loss (row) if a domain (column) got `MORE` of its count."""
    names = influence.domains
    kept = "the others making room" if fixed else "on top"
    table = table_of(
        f"Influence at {label(trial)} (EK-FAC): change of eval loss, {MORE:.0%} more of",
        ("eval loss of",),
        names,
    )
    matrix = shown(influence, trial, fixed)
    for name, row in zip(names, matrix, strict=True):
        table.add_row(name, *map(_signed, row))
    table.add_section()
    table.add_row("objective", *map(_signed, MORE * aggregated(trial, influence, fixed)))
    return noted(
        table,
        f"nats per token, {kept}; negative: it helps. Signs and ratios count; sizes are known to "
        "come out many times too large.",
    )


def by_domain(trial: Trial, influence: Influence, fixed: bool) -> RenderableType:
    """Each estimator's influence on the objective by domain, relative to its largest."""
    names = list(influence.estimates)
    table = table_of(
        "Influence on the objective by estimator, relative to its largest",
        ("domain",),
        ("share", "epochs", "rows", *names, "norm"),
    )
    columns = [relative(aggregated(trial, influence, fixed, name)) for name in names]
    for i, name in enumerate(influence.domains):
        table.add_row(
            name,
            f"{influence.shares[i]:.3f}",
            f"{influence.epochs[i]:.1f}",
            f"{influence.rows[i]:,}" if influence.rows else "",
            *(_relative(column[i]) for column in columns),
            f"{influence.norms[i]:.3g}" if influence.norms else "",
        )
    return noted(
        table,
        "negative: more of it lowers the objective. share: of loss tokens; epochs: how often a row "
        "was seen; rows: looked at; norm: of the mean gradient. identity: the dot product of "
        "gradients.",
    )


def layers_table(trial: Trial, influence: Influence, fixed: bool) -> RenderableType:
    """The layers that add most to the influence on the objective."""
    table = table_of(
        f"Of {len(influence.layers)} layers, those that add most", ("layer",), ("part",)
    )
    for name, part in sorted(
        layer_parts(trial, influence, fixed).items(), key=lambda item: -abs(item[1])
    )[:_TOP]:
        table.add_row(name, f"{part:+.0%}")
    return table


def layer_parts(trial: Trial, influence: Influence, fixed: bool) -> dict[str, float]:
    """What part of the influence on the objective each layer adds; they sum to 1.

    A layer's influences [K] are projected on those of all layers.
    """
    mixture = trial.mixture.ordered(influence.domains)
    whole = aggregated(trial, influence, fixed)
    square = float(whole @ whole)
    found = {}
    for name, matrix in zip(influence.layers, influence.contributions, strict=False):
        own = influence.aggregate(influence.effect(matrix))
        own = centred(own, mixture) if fixed else own
        found[name] = float(own @ whole) / square if square else 0.0
    return found


def cost(influence: Influence) -> str:
    """Seconds and passes by phase, in a line."""
    phases = []
    for name, seconds in influence.seconds.items():
        passes = influence.passes.get(name)
        phases.append(f"{name} {seconds:.3g} s" + (f" ({passes:.1f} passes)" if passes else ""))
    whole = sum(influence.seconds.values())
    return (
        f"measured in {whole:.3g} s on {influence.factor_rows:,} training rows: "
        f"{', '.join(phases)}. A pass is one training pass over the rows; {influence.fisher} "
        f"Fisher, damping {influence.damping:g}."
    )


def relative(influence: Vector) -> Vector:
    """Influences [K] over the largest of them, -1 to 1."""
    most = float(np.abs(influence).max())
    return influence / most if most > 0 else influence


def _signed(value: float) -> Text:
    return Text(f"{value:+.2g}", style="green" if value < 0 else "red" if value > 0 else "")


def _relative(value: float) -> Text:
    return Text(f"{value:+.2f}", style="green" if value < 0 else "red" if value > 0 else "")
