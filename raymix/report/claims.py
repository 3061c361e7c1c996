"""Statements about a comparison, each held against its confirmations.

A claim says that one number is below another: of two methods, or of one training at two places.
Seeds are blocks, as in `report.verdict`; noise is pooled over all methods where methods are
compared, and is that of the differences themselves within one method. Holm's correction is over
all claims together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.text import Text

from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.report.facts import Row
from raymix.report.layout import noted, table_of
from raymix.report.verdict import LEVEL, fit, holm

Measure = Callable[[Trial], float]
"""A number of one whole training, NaN where it has none; smaller is better."""


@dataclass(frozen=True)
class Claim:
    """`less` of row `a` is below `more` of row `b`.

    `words` say it. Rows are names of methods; with `a` equal to `b` two numbers of the same
    trainings are compared, seed by seed.
    """

    words: str
    a: str
    b: str
    less: Measure
    more: Measure


@dataclass(frozen=True)
class Finding:
    """What became of a claim: `difference` is the first number minus the second.

    `low` to `high` hold the truth in 95% of studies, for this claim alone; `p` is two-sided and
    corrected over all claims. All are NaN where there is nothing to tell from.
    """

    claim: Claim
    difference: float
    low: float
    high: float
    p: float

    @property
    def word(self) -> str:
        """Holds, the opposite holds, or it cannot be told."""
        if not self.p < LEVEL:
            return "cannot be told"
        return "holds" if self.difference < 0 else "the opposite"


def findings(rows: Sequence[Row], claims: Sequence[Claim]) -> tuple[Finding, ...]:
    """Hold `claims` against the confirmations; those of rows that are not there are left out."""
    known = {row.name: row for row in rows}
    asked = [claim for claim in claims if claim.a in known and claim.b in known]
    raw = [_tested(known, claim) for claim in asked]
    sure = [i for i, (*_, p) in enumerate(raw) if math.isfinite(p)]
    corrected = dict(zip(sure, holm([raw[i][2] for i in sure]), strict=True))
    return tuple(
        Finding(claim, d, d - width, d + width, corrected.get(i, math.nan))
        for i, (claim, (d, width, _)) in enumerate(zip(asked, raw, strict=True))
    )


def _tested(known: Mapping[str, Row], claim: Claim) -> tuple[float, float, float]:
    """Difference, half of its interval, and its p value, not corrected."""
    if claim.a == claim.b:
        return _paired(known[claim.a], claim)
    if claim.less is not claim.more:
        raise ValueError(f"claim '{claim.words}' compares two methods by two different numbers")
    names, table = _scores(tuple(known.values()), claim.less)
    if claim.a not in names or claim.b not in names:
        return (math.nan,) * 3
    first, second = names.index(claim.a), names.index(claim.b)
    fitted = fit(table)
    if fitted is None:
        return (math.nan,) * 3
    difference = float(fitted.effects[first] - fitted.effects[second])
    return _student(difference, fitted.error(first, second), fitted.freedom)


def _scores(rows: Sequence[Row], measure: Measure) -> tuple[list[str], Vector]:
    """Names [M] and numbers [M, S] of the rows that have one; NaN: that training is missing."""
    told = {row.name: {_block(t): measure(t) for t in row.trials} for row in rows}
    told = {name: own for name, own in told.items() if np.isfinite(list(own.values())).any()}
    blocks = sorted({block for own in told.values() for block in own})
    table = [[own.get(block, math.nan) for block in blocks] for own in told.values()]
    return list(told), np.array(table, dtype=np.float64).reshape(len(told), len(blocks))


def _paired(row: Row, claim: Claim) -> tuple[float, float, float]:
    changes = np.array([claim.less(t) - claim.more(t) for t in row.trials])
    changes = changes[np.isfinite(changes)]
    if len(changes) < 2:
        return (math.nan,) * 3
    error = float(changes.std(ddof=1)) / math.sqrt(len(changes))
    return _student(float(changes.mean()), error, len(changes) - 1)


def _student(difference: float, error: float, freedom: int) -> tuple[float, float, float]:
    from scipy import stats

    if error <= 0:
        return difference, 0.0, float(abs(difference) < 1e-9)
    p = float(2 * stats.t.sf(abs(difference) / error, freedom))
    return difference, float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error, p


def claims_table(found: Sequence[Finding], title: str) -> Group:
    """The claims with what was seen, in nats per token unless their words say otherwise."""
    table = table_of(title, ("claim",), ("difference, 95%", "p", "here"))
    table.columns[0].no_wrap = False
    for finding in found:
        width = (finding.high - finding.low) / 2
        known = math.isfinite(finding.difference)
        style = {"holds": "green", "the opposite": "red"}.get(finding.word, "")
        table.add_row(
            finding.claim.words,
            f"{finding.difference:+.3f} ± {width:.3f}" if known else "–",
            _p(finding.p),
            Text(finding.word, style=style),
        )
    return noted(
        table,
        "difference: what the claim says is lower, minus the other. Each interval is for its claim "
        "alone; p: Holm, over all claims.",
    )


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _block(trial: Trial) -> int:
    return int(trial.proposal.note["block"])
