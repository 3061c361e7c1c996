"""What a searcher predicted of a training, so that it can be held against what came of it.

A forecast lives in the `note` of a proposal, under "forecast": it is written down before the
training begins, and resuming a study brings it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymix.core.codec import decode
from raymix.core.trial import Proposal


@dataclass(frozen=True)
class Forecast:
    """Predicted changes of eval losses against an earlier trial, in nats per token.

    Attributes:
        parent: number of the trial that the changes are against.
        predicted: change by domain; in a scale of its own where the note's "scaled" is false.
        before: eval loss of `parent` by domain.
    """

    parent: int
    predicted: Mapping[str, float]
    before: Mapping[str, float]


def forecast_of(proposal: Proposal) -> Forecast | None:
    """The forecast in the proposal's note, if there is one."""
    note = proposal.note
    if not isinstance(note, Mapping) or "forecast" not in note:
        return None
    return decode(Forecast, note["forecast"])


def realised(forecast: Forecast, metrics: Mapping[str, float]) -> dict[str, float]:
    """How `eval/<domain>/loss` changed against the parent, of the domains that both have."""
    after = {name: metrics.get(f"eval/{name}/loss") for name in forecast.before}
    return {name: loss - forecast.before[name] for name, loss in after.items() if loss is not None}
