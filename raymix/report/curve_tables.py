"""Scaling curves as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Group, RenderableType

from raymix.report.curve_words import NO_FIT, part, sentences
from raymix.report.curves import SIDES, Compared, Curve, Scaling
from raymix.report.law import Estimate
from raymix.report.layout import noted, rounded, table_of
from raymix.report.paired import Difference
from raymix.search.curves import ALONE, TOGETHER

_LAW = "L(n) = floor + (base - floor) / (1 + (n / n0)^power), n in rows of the domain"


def curves_report(found: Scaling) -> RenderableType:
    """All tables, and below them what they say."""
    parts: list[RenderableType] = [
        measured(found, found.alone, "Each domain alone: mean eval loss by fraction of its rows"),
        laws(found, found.alone, "Each domain alone: the fitted law"),
        measured(found, found.together, "All domains together: mean eval loss by fraction of all"),
        laws(found, found.together, "All domains together: the fitted law"),
        mixing(found),
    ]
    parts += [beside(found)] if found.pairs else []
    parts += [steeper(found)] if len(found.models) > 1 else []
    return Group(*parts, "", *(f"- {line}" for line in sentences(found)))


def measured(found: Scaling, of: Callable[[str, str], Curve], title: str) -> RenderableType:
    """Loss and accuracy at each fraction, mean over seeds."""
    fractions = sorted(found.fractions)
    table = table_of(title, ("model", "domain"), ("rows", "base", *map(part, fractions), "exact"))
    for model in found.models:
        for name in found.space.names:
            curve = of(model, name)
            exact = [curve.at(f)[1] for f in fractions]
            most = f"{curve.rows.max():.0f}" if len(curve.rows) else "–"
            table.add_row(
                model,
                name,
                most,
                rounded(curve.base),
                *(rounded(curve.at(f)[0]) for f in fractions),
                " ".join(rounded(value, 2).removeprefix("0") for value in exact),
            )
        table.add_section()
    count = len(found.repeats)
    least = _steps(found)
    return noted(
        table,
        f"nats per token, {count} seed{'s' * (count > 1)}; exact: answers right to the last token, "
        f"by fraction; equal epochs throughout, so few rows are few steps: {least}",
    )


def _steps(found: Scaling) -> str:
    """The least and largest number of optimizer steps at each fraction of a domain alone."""
    said = []
    for fraction in sorted(found.fractions):
        steps = [t.steps for t in found.taken if t.curve == ALONE and t.fraction == fraction]
        if steps:
            said.append(f"{part(fraction)}: {min(steps)} to {max(steps)}")
    return ", ".join(said)


def laws(found: Scaling, of: Callable[[str, str], Curve], title: str) -> RenderableType:
    """The parameters that matter, with intervals, and the word."""
    right = ("floor", "power", "last doubling", "next doubling", "noise")
    table = table_of(title, ("model", "domain"), right)
    table.add_column("at all of the data", no_wrap=True)
    for model in found.models:
        for name in found.space.names:
            fitted = of(model, name).fitted
            if fitted is None:
                table.add_row(model, name, *("–" * len(right)), NO_FIT)
                continue
            word = fitted.word + ("" if fitted.fits else " †")
            table.add_row(
                model,
                name,
                interval(fitted.floor),
                interval(fitted.power, 1),
                interval(fitted.last),
                interval(fitted.next),
                rounded(fitted.noise),
                word,
            )
        table.add_section()
    return noted(
        table,
        f"{_LAW}; value [95% by profile likelihood], < or >: bounded on one side, n.i.: not "
        "identified; a doubling's gain in nats, the last inside the data, the next beyond; noise: "
        "standard deviation of one training; †: the law does not describe the curve (1%)",
    )


def interval(found: Estimate, digits: int = 2) -> str:
    """`0.31 [0.28, 0.35]`; `< 0.40` where one end is open; `n.i.` where both are."""
    if math.isnan(found.low):
        return _short(found.value, digits)
    low, high = (_short(end, digits) for end in (found.low, found.high))
    if not math.isfinite(found.low):
        return f"< {high}" if math.isfinite(found.high) else "n.i."
    if not math.isfinite(found.high):
        return f"> {low}"
    return f"{_short(found.value, digits)} [{low}, {high}]"


def _short(value: float, digits: int) -> str:
    """Without the sign of a rounded nothing."""
    return rounded(round(value, digits) + 0.0, digits) if math.isfinite(value) else "–"


def _cell(found: Difference) -> str:
    if not math.isfinite(found.value):
        return "–"
    return f"{found.value:+.3f}{'*' if found.real else ' '}"


def mixing(found: Scaling) -> RenderableType:
    """Together less alone at equal rows."""
    fractions = sorted(found.fractions)
    table = table_of(
        "Together less alone, at equal rows of the domain",
        ("model", "domain"),
        [part(f) for f in fractions],
    )
    table.add_column("", no_wrap=True)
    for compared in found.mixing():
        cells = (_cell(compared.by_fraction[f]) for f in fractions)
        table.add_row(compared.model, compared.domain, *cells, _told(compared))
    return noted(
        table,
        "mean paired difference of eval losses over seeds, nats per token; negative: mixing helps; "
        "*: told from noise (5%, Holm over the table). Mixed trainings take the others' steps, too",
    )


def beside(found: Scaling) -> RenderableType:
    """The pairs."""
    fractions = sorted(found.fractions)
    table = table_of(
        "One side in full, the other varied",
        ("model", "in full", "varied", "loss of"),
        [part(f) for f in fractions],
    )
    table.add_column("", no_wrap=True)
    for compared in found.beside():
        cells = (_cell(compared.by_fraction[f]) for f in fractions)
        table.add_row(compared.model, *compared.pair, compared.domain, *cells, _told(compared))
        if compared.side == SIDES[1]:
            table.add_section()
    return noted(
        table,
        "by fraction of the varied domain; loss of the one in full less that without the other, "
        "loss of the varied one less that of the same rows alone; as above",
    )


def _told(compared: Compared) -> str:
    words = [
        f"{word} at {', '.join(map(part, at))}"
        for word, at in (("helps", compared.told(True)), ("hurts", compared.told(False)))
        if at
    ]
    return "; ".join(words) or "no difference seen"


def steeper(found: Scaling) -> RenderableType:
    """Slopes of both models by domain."""
    first = found.models[0]
    parts: list[RenderableType] = []
    for model in found.models[1:]:
        right = [
            f"{kind}: {what}" for kind in (ALONE, TOGETHER) for what in (first, model, "difference")
        ]
        table = table_of(f"Are the curves of {model} steeper?", ("domain",), right)
        both = [found.steeper(model, kind) for kind in (ALONE, TOGETHER)]
        for name in found.counted:
            cells = []
            for each in both:
                slopes = (each.first.get(name, math.nan), each.other.get(name, math.nan))
                gap = each.each.get(name)
                cells += [*(rounded(slope) for slope in slopes), _cell(gap) if gap else "–"]
            table.add_row(name, *cells)
        table.add_section()
        means = (f"{e.mean.value:+.3f} [{e.mean.low:+.3f}, {e.mean.high:+.3f}]" for e in both)
        table.add_row("mean", *(cell for mean in means for cell in ("", "", mean)))
        parts.append(
            noted(
                table,
                "nats gained for each doubling, least squares over all fractions; *: that domain's "
                "difference is told from the noise of seeds (Holm); mean: 95% over domains",
            )
        )
    return Group(*parts)
