"""Sequential training: one domain, or group of domains, after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raymix.core.errors import ConfigError
from raymix.core.job import Stage
from raymix.core.mixture import Budget, Mixture
from raymix.strategy.parts import (
    Names,
    check_known,
    check_names,
    check_share,
    chosen,
    count_out,
    listed,
    present,
    rounded,
    stage_of,
)
from raymix.strategy.tuned import tuned


@dataclass(frozen=True)
class Sequential:
    """One stage for each entry of `order`, a domain or several that are mixed (arXiv:2310.05492).

    The mixture says how much of the budget each domain gets, so that each stage's amount is the sum
    of its domains'; together they are the budget. `replay` (0 to 1; may be searched) is the share
    of every later stage that is drawn from the domains of earlier stages instead of its own, in
    proportion to their shares in the mixture: the rows that were drawn first, again (and fresh ones
    only where more is replayed than was drawn), which count towards the epochs.

    `restart`: optimizer state and learning-rate schedule start anew with each stage, as the paper
    ran each stage as a fine-tuning of its own. False lets both go on: one schedule over all stages.

    Entries to which the mixture gives nothing, or less than comes to a row, make no stage. Where
    one stage is left, it is multi-task training on the mixture as it is.

    Departs from the paper: it trains each stage on all the data of its domains, for as many epochs;
    here all stages share one budget. It replays nothing (`replay` 0, the default).
    """

    order: tuple[Names, ...]
    replay: float = 0.0
    restart: bool = True

    def __post_init__(self) -> None:
        """Refuse an empty order or entry, a domain that has two places, and no share."""
        if isinstance(self.order, str) or not self.order:
            raise ConfigError(f"Sequential.order must be a list of domains, got {self.order!r}")
        for place, names in enumerate(self.order):
            check_names(f"Sequential.order.{place}", names)
        check_names("Sequential.order", tuple(n for entry in self.order for n in listed(entry)))
        check_share("Sequential.replay", self.replay)

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        """The stages in order.

        Raises:
            ConfigError: an unknown domain, one without a place in the order, or a parameter.
        """
        settings = tuned(self, params)
        groups = [listed(entry) for entry in self.order]
        for names in groups:
            check_known("Sequential.order", names, mixture)
        for name in mixture.names:
            if not any(name in names for names in groups):
                raise ConfigError(
                    f"Sequential.order has no place for domain '{name}': every domain of the "
                    "mixture needs one"
                )
        return in_turn(groups, mixture, budget, settings.replay, self.restart)


def in_turn(
    groups: Sequence[tuple[str, ...]],
    mixture: Mixture,
    budget: Budget,
    replay: float,
    restart: bool,
) -> tuple[Stage, ...]:
    """A stage for each of `groups`, which together are the mixture's domains; see `Sequential`."""
    shares = mixture.as_dict()
    counts = count_out(shares, budget.amount)
    found: list[Stage] = []
    earlier: dict[str, float] = {}
    for names in groups:
        own = chosen(counts, names)
        total = int(sum(own.values()))
        if not total:
            continue
        again = count_out(earlier, rounded(replay * total) if earlier else 0)
        drawn = count_out(own, total - sum(again.values()))
        stage = stage_of(mixture.names, {**drawn, **again}, budget.unit)
        found.append(replace(stage, replay=present(again), restart=restart and bool(found)))
        earlier |= chosen(shares, present(drawn))
    return tuple(found) if len(found) > 1 else (Stage(mixture, budget),)
