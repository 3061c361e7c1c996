"""What counts as better: aggregates of per-domain losses, guards, and the summary metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from raymix.core.errors import ConfigError, nearest
from raymix.core.mixture import Mixture

SUMMARY = ("eval/mean", "eval/worst", "eval/imbalance", "eval/regressed")
"""The metrics that `summary` adds to the domains' own."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_GUARD = re.compile(
    rf"\s*(?P<metric>\S+)\s*<=\s*(?:(?P<number>{_NUMBER})"
    rf"|base(?:\s*(?P<sign>[-+*])\s*(?P<by>{_NUMBER}))?)\s*"
)


@dataclass(frozen=True)
class Guard:
    """An upper bound on one metric: `factor * base + offset`, base being the untrained model's."""

    metric: str
    factor: float
    offset: float

    def excess(self, metrics: Mapping[str, float], base: Mapping[str, float]) -> float:
        """By how much the metric lies above its bound, 0 if it does not; infinite if unknown."""
        bound = self.offset
        if self.factor:
            bound += self.factor * base.get(self.metric, math.nan)
        over = metrics.get(self.metric, math.nan) - bound
        return math.inf if math.isnan(over) else max(0.0, over)


@lru_cache(maxsize=256)
def parse_guard(text: str) -> Guard:
    """Read `eval/chat/loss <= base + 0.02`, `... <= base * 1.05` or `... <= 1.5`."""
    match = _GUARD.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"cannot read the constraint '{text}'; write for instance "
            "'eval/chat/loss <= base + 0.02' or 'eval/chat/loss <= 1.5'"
        )
    metric = match["metric"]
    if not metric.startswith("eval/"):
        raise ConfigError(
            f"constraint '{text}': only eval metrics can be guarded (test is seen by nothing "
            f"before the verdict), got '{metric}'"
        )
    if match["number"] is not None:
        return Guard(metric, 0.0, float(match["number"]))
    by = float(match["by"] or 0.0)
    if match["sign"] == "*":
        return Guard(metric, by, 0.0)
    return Guard(metric, 1.0, -by if match["sign"] == "-" else by)


def domain_losses(metrics: Mapping[str, float], split: str = "eval") -> dict[str, float]:
    """Loss by domain: the metrics named `<split>/<domain>/loss`, in nats per token."""
    named = ((key.split("/"), value) for key, value in metrics.items())
    return {
        parts[1]: value
        for parts, value in named
        if len(parts) == 3 and parts[0] == split and parts[2] == "loss"
    }


def summary(losses: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """Mean and worst loss; against `base`, imbalance and the number of regressed domains.

    Imbalance is the standard deviation over domains of the relative loss change
    (loss - base) / base. Both arguments map domains to losses, in nats per token.
    """
    if not losses:
        return {}
    values = np.array(list(losses.values()), dtype=np.float64)
    found = {"eval/mean": float(values.mean()), "eval/worst": float(values.max())}
    shared = [name for name in losses if base.get(name, 0.0) > 0]
    if shared:
        before = np.array([base[name] for name in shared])
        change = np.array([losses[name] for name in shared]) / before - 1.0
        found["eval/imbalance"] = float(change.std())
        found["eval/regressed"] = float((change > 0).sum())
    return found


@dataclass(frozen=True)
class Objective:
    """What a study minimises, over the domains' eval losses.

    `aggregate`: "mean", "worst" or "weighted". `weights` by domain: for "weighted" every domain
    needs one; otherwise they are 1 unless given, and only 0 has a meaning: the domain is left out
    of every aggregate. `constraints`: guards, see `parse_guard`. `kl_to_prior`: nats of loss that
    one nat of KL(mixture || prior) costs.
    """

    aggregate: Literal["mean", "worst", "weighted"] = "mean"
    weights: Mapping[str, float] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    kl_to_prior: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an aggregate, weight or guard that means nothing."""
        if self.aggregate not in ("mean", "worst", "weighted"):
            raise ConfigError(
                f"objective.aggregate must be mean, worst or weighted, got '{self.aggregate}'"
            )
        for name, weight in self.weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise ConfigError(f"objective.weights.{name} must be a number >= 0, got {weight}")
        if not math.isfinite(self.kl_to_prior) or self.kl_to_prior < 0:
            raise ConfigError(
                f"objective.kl_to_prior must be a number >= 0, got {self.kl_to_prior}"
            )
        for text in self.constraints:
            parse_guard(text)

    def check(self, names: Sequence[str], prior: Mixture) -> None:
        """Refuse what does not fit the domains `names`: a wrong name, a missing weight."""
        for name in self.weights:
            _known(name, names, "objective.weights")
        if self.aggregate == "weighted":
            for name in names:
                if name not in self.weights:
                    raise ConfigError(
                        f"objective.aggregate is weighted but objective.weights lacks '{name}'"
                    )
        if all(self.weights.get(name, 1.0) == 0 for name in names):
            raise ConfigError("objective.weights are all 0: nothing is left to minimise")
        metrics = [f"eval/{name}/loss" for name in names] + list(SUMMARY)
        for text in self.constraints:
            _known(parse_guard(text).metric, metrics, f"constraint '{text}'")
        if self.kl_to_prior > 0:
            for name, share in prior.as_dict().items():
                if share == 0:
                    raise ConfigError(
                        f"objective.kl_to_prior needs a prior above 0 everywhere; '{name}' has 0"
                    )

    def losses(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The eval losses that count: those of domains whose weight is not 0."""
        return {
            name: loss
            for name, loss in domain_losses(metrics).items()
            if self.weights.get(name, 1.0) > 0
        }

    def enrich(self, metrics: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
        """`metrics` with those of `summary`; unchanged while a domain of `base` is missing."""
        losses, before = self.losses(metrics), self.losses(base)
        if not before.keys() <= losses.keys():
            return dict(metrics)
        return {**metrics, **summary(losses, before)}

    def score(
        self,
        metrics: Mapping[str, float],
        base: Mapping[str, float],
        mixture: Mixture,
        prior: Mixture,
    ) -> tuple[float, float]:
        """The number to minimise, and by how much the guards are broken (both nats per token).

        The score is NaN when a loss is missing that `base` has, or is NaN itself. The violation is
        the sum of the guards' excesses.
        """
        score = self.loss(metrics, base)
        if not self._complete(metrics, base):
            return score, math.inf if self.constraints else 0.0
        if self.kl_to_prior:
            score += self.kl_to_prior * divergence(mixture, prior)
        enriched, enriched_base = self.enrich(metrics, base), self.enrich(base, base)
        excess = (parse_guard(text).excess(enriched, enriched_base) for text in self.constraints)
        return score, float(sum(excess))

    def _complete(self, metrics: Mapping[str, float], base: Mapping[str, float]) -> bool:
        """Whether there is a loss, and none is missing that `base` has."""
        losses = self.losses(metrics)
        return bool(losses) and self.losses(base).keys() <= losses.keys()

    def loss(self, metrics: Mapping[str, float], base: Mapping[str, float]) -> float:
        """The aggregate of the eval losses; NaN when one is missing that `base` has, or is NaN."""
        if not self._complete(metrics, base):
            return math.nan
        losses = self.losses(metrics)
        values = np.array(list(losses.values()), dtype=np.float64)
        if self.aggregate == "mean":
            return float(values.mean())
        if self.aggregate == "worst":
            return float(values.max())
        return float(np.average(values, weights=[self.weights[name] for name in losses]))

    def slope(self, metrics: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
        """Derivative of the score by the eval loss of each domain in `metrics`; they sum to 1.

        0 for domains that are left out; NaN for the others where the score is. With "worst" all of
        it is the worst domain's (the first of several). Guards and `kl_to_prior` are no part of it.
        """
        losses, names = self.losses(metrics), domain_losses(metrics)
        if math.isnan(self.loss(metrics, base)):
            return {name: math.nan if name in losses else 0.0 for name in names}
        parts = dict.fromkeys(losses, 1.0)
        if self.aggregate == "weighted":
            parts = {name: self.weights[name] for name in losses}
        elif self.aggregate == "worst":
            parts = {max(losses, key=losses.__getitem__): 1.0}
        total = sum(parts.values())
        return {name: parts.get(name, 0.0) / total for name in names}


def divergence(mixture: Mixture, prior: Mixture) -> float:
    """KL(mixture || prior) in nats; infinite where the prior is 0 and the mixture is not."""
    p, q = mixture.array(), prior.ordered(mixture.names).array()
    if np.any((p > 0) & (q == 0)):
        return math.inf
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / q[used])))


def _known(name: str, names: Sequence[str], where: str) -> None:
    if name not in names:
        hint = nearest(name, names) or f"; known: {', '.join(names)}"
        raise ConfigError(f"{where}: unknown name '{name}'{hint}")
