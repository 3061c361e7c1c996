"""The practitioner's rule of thumb: more of the domain that is doing worst."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.mixture import Space
from raymix.core.simplex import Vector
from raymix.core.trial import History, Idle, Proposal, Trial
from raymix.search.seen import PROPORTIONAL, key, proportional

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Doubled:
    """Looks at the proportional baseline once and gives its weakest domain `factor` times as much.

    The weakest is the one whose eval loss has gained least over the base model's, relatively:
    (base - loss) / base; of equals the first. The others make room in proportion to their shares;
    bounds and epoch caps hold by projection. The baseline is charged to the method (`charged` in
    the note). It ends without a proposal where the baseline failed, and where nothing can be added.
    `ignore`: domains that nobody wants better. A domain at its ceiling is passed over, too.
    """

    factor: float = 2.0
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a factor that adds nothing."""
        if not 1 < self.factor < math.inf:
            raise SearchError(f"Doubled.factor must be a number above 1, got {self.factor}")

    @property
    def most(self) -> int:
        """The most trainings that it asks for."""
        return 1

    @property
    def pays_for(self) -> tuple[str, ...]:
        """The baselines that it may look at under a bill, as it is charged for them."""
        return (PROPORTIONAL,)

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The proportional mixture with more of its weakest domain.

        Raises:
            SearchError: there is no proportional baseline to look at, or no domain to ignore by
                that name.
        """
        unknown = [name for name in self.ignore if name not in space.names]
        if unknown:
            raise SearchError(
                f"Doubled.ignore: no domain '{unknown[0]}'; known: {', '.join(space.names)}"
            )
        seen = proportional(history)
        if seen is None:
            raise SearchError("Doubled looks at the proportional baseline, and none was asked for")
        if history.own:
            return Idle.DONE
        if seen.pending:
            return Idle.WAIT
        if not seen.finished:
            return Idle.DONE
        before = seen.mixture.ordered(space.names)
        found = gains(space.names, seen, history)
        shares = before.array()
        # What is at its ceiling, as a target that is never trained on, cannot have more.
        full = shares >= space.ceiling() - _TOLERANCE
        found[full | np.array([name in self.ignore for name in space.names])] = math.inf
        weakest = int(np.argmin(found))
        mixture = space.project(grown(shares, weakest, self.factor))
        if key(mixture) == key(before):
            return Idle.DONE
        note = {
            "kind": "doubled",
            "charged": [seen.number],
            "weakest": space.names[weakest],
            "gains": dict(zip(space.names, found.tolist(), strict=True)),
        }
        return Proposal(mixture, note=note)


def gains(names: tuple[str, ...], trial: Trial, history: History) -> Vector:
    """Relative gain of each domain's eval loss over the base model's [K]; infinite if unknown.

    A domain without an eval split is never the weakest.
    """
    after = trial.result.metrics if trial.result is not None else {}
    base = history.base.metrics if history.base is not None else {}
    metrics = [f"eval/{name}/loss" for name in names]
    found = [
        (base[metric] - after[metric]) / base[metric]
        if base.get(metric, 0.0) > 0 and metric in after
        else math.inf
        for metric in metrics
    ]
    return np.array(found, dtype=np.float64)


def grown(shares: Vector, place: int, factor: float) -> Vector:
    """`shares` [K] with `factor` times as much of domain `place`, at most 1, the rest scaled."""
    more = min(1.0, factor * float(shares[place]))
    rest = 1.0 - float(shares[place])
    found: Vector = shares * ((1.0 - more) / rest if rest > 0 else 0.0)
    found[place] = more
    return found
