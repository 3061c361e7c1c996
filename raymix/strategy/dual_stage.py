"""DMT: the special domains first, then the general ones with a little of the special again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raymix.core.job import Stage
from raymix.core.mixture import Budget, Mixture
from raymix.strategy.mixed import both, check_groups
from raymix.strategy.parts import (
    Counts,
    Names,
    check_share,
    chosen,
    count_out,
    present,
    rounded,
    stage_of,
)
from raymix.strategy.sequential import in_turn
from raymix.strategy.tuned import tuned


@dataclass(frozen=True)
class DMT:
    """Dual-stage mixed fine-tuning, arXiv:2310.05492, section 3.4.

    1. All that the mixture gives to the `special` domains.
    2. What it gives to the `general` ones (None: all others), and of each special domain `k` times
       what stage 1 had of it: the rows that stage 1 drew first, again, counted towards the epochs.

    With S and G the shares of both groups, S + G = 1, and B the budget, the amounts are a S and
    a G + k a S with a = B / (1 + k S), so that both stages together are the budget whatever `k` is
    (0 to 1; may be searched). Rows are whole: those of stage 1 come first, k times them is rounded
    to the nearest (a half up; a small `k` of few rows is none), and general domains get the rest.

    Optimizer state and learning-rate schedule start anew with stage 2, as the paper ran two
    fine-tunings; `restart` False lets both go on.

    With a `k` of 0 it is `MixedSequential`, to the row. Only special: stage 1 and the replay of it.
    Only general: multi-task training on the mixture as it is, and so where only one stage is left.

    Departs from the paper: it trains on all the data of a group, here both stages are scaled to one
    budget, so that strategies compare at equal cost. Its rows for stage 2 are drawn at random.
    """

    special: Names
    general: Names | None = None
    k: float = 1 / 256
    restart: bool = True

    def __post_init__(self) -> None:
        """Refuse groups that are empty or share a domain, and a `k` that is no share."""
        check_groups("DMT", self.special, self.general)
        check_share("DMT.k", self.k)

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        """Special, then general with replay.

        Raises:
            ConfigError: an unknown domain, one that is in neither group, or a parameter.
        """
        settings, shares = tuned(self, params), mixture.as_dict()
        special, general = both("DMT", self.special, self.general, mixture)
        if not settings.k:
            return in_turn((special, general), mixture, budget, 0.0, self.restart)
        first, again, rest = _counts(
            chosen(shares, special), chosen(shares, general), budget.amount, settings.k
        )
        second = {**rest, **again}
        if not present(first) or not present(second):
            return (Stage(mixture, budget),)
        ahead = stage_of(mixture.names, first, budget.unit)
        after = stage_of(mixture.names, second, budget.unit)
        return ahead, replace(after, replay=present(again), restart=self.restart)


def _counts(
    special: Mapping[str, float], general: Mapping[str, float], total: int, k: float
) -> tuple[Counts, Counts, Counts]:
    """What is drawn of special domains in stage 1 and in stage 2, and of general ones."""
    share, others = sum(special.values()), sum(general.values())
    if not share:
        nothing = dict.fromkeys(special, 0)
        return nothing, nothing, count_out(general, total)
    first = count_out(special, rounded(total * share / ((share + others) + k * share)))
    left = total - sum(first.values())
    again = {name: rounded(k * count) for name, count in first.items()}
    # With hardly any general share, or none, rounding must not leave or take a row.
    if sum(again.values()) > left or (not others and any(again.values())):
        again = count_out(first, left)
    rest = left - sum(again.values())
    if not others:
        return {**first, **_more(first, rest)}, again, dict.fromkeys(general, 0)
    return first, again, count_out(general, rest)


def _more(counts: Counts, rest: int) -> Counts:
    return count_out(counts, sum(counts.values()) + rest)
