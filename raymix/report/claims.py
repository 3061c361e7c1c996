"""Statements about a comparison, each held against its confirmations.

A claim says that one number is below another: of two methods, or of one training at two places.
Trainings are paired by seed; the tests are those of `report.paired`, with all claims as one family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.text import Text

from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.report.facts import Row
from raymix.report.layout import noted, table_of
from raymix.report.paired import Difference, differences

Measure = Callable[[Trial], float]
"""A number of one whole training, NaN where it has none."""


@dataclass(frozen=True)
class Claim:
    """`less` of the trainings of row `a` is below `more` of those of row `b`; `words` say it.

    Rows are names of methods, and may be one and the same. `kind`: what is measured; noise is taken
    to be alike among claims of one kind only.
    """

    words: str
    a: str
    b: str
    less: Measure
    more: Measure
    kind: str = ""


@dataclass(frozen=True)
class Finding:
    """What became of a claim: the first number minus the second."""

    claim: Claim
    difference: Difference

    @property
    def word(self) -> str:
        """Holds, the opposite holds, or it cannot be told."""
        if not self.difference.real:
            return "cannot be told"
        return "holds" if self.difference.value < 0 else "the opposite"


def findings(rows: Sequence[Row], claims: Sequence[Claim]) -> tuple[Finding, ...]:
    """Hold `claims` against the confirmations; those of rows that are not there are left out."""
    known = {row.name: row for row in rows}
    asked = [claim for claim in claims if claim.a in known and claim.b in known]
    blocks = sorted({_block(trial) for row in rows for trial in row.trials})
    table = np.full((len(asked), len(blocks)), np.nan)
    for place, claim in enumerate(asked):
        table[place] = _told(known[claim.a], claim.less, blocks)
        table[place] -= _told(known[claim.b], claim.more, blocks)
    kinds = list(dict.fromkeys(claim.kind for claim in asked))
    places = [[i for i, claim in enumerate(asked) if claim.kind == kind] for kind in kinds]
    found = differences([table[own] for own in places], apart=True)
    told = dict(
        zip(
            [i for own in places for i in own], [one for each in found for one in each], strict=True
        )
    )
    return tuple(Finding(claim, told[i]) for i, claim in enumerate(asked))


def _told(row: Row, measure: Measure, blocks: Sequence[int]) -> Vector:
    """The measure of the training in each block [S]; NaN: it is missing."""
    told = {_block(trial): measure(trial) for trial in row.trials}
    return np.array([told.get(block, math.nan) for block in blocks], dtype=np.float64)


def claims_table(found: Sequence[Finding], title: str) -> Group:
    """The claims with what was seen, in nats per token unless their words say otherwise."""
    table = table_of(title, ("claim",), ("difference, 95%", "p", "here"))
    table.columns[0].no_wrap = False
    for finding in found:
        seen = finding.difference
        width = (seen.high - seen.low) / 2
        known = math.isfinite(seen.value)
        style = {"holds": "green", "the opposite": "red"}.get(finding.word, "")
        table.add_row(
            finding.claim.words,
            f"{seen.value:+.3f} ± {width:.3f}" if known else "–",
            _p(seen.p),
            Text(finding.word, style=style),
        )
    return noted(
        table,
        "difference: what the claim says is lower, minus the other; over seeds as pairs, with "
        "variances drawn to what is usual among claims on the same (moderated t). p: Holm, over "
        "all claims. The intervals hold jointly (Bonferroni), so one may hold 0 where Holm's "
        "sharper test still sees a difference. Within a training (forgets, before) and leak: eval.",
    )


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _block(trial: Trial) -> int:
    return int(trial.proposal.note["block"])
