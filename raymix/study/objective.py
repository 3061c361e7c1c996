"""What counts as better: aggregates of per-domain losses, guards, and the summary metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from raymix.core.errors import ConfigError, nearest
from raymix.core.mixture import Mixture
from raymix.study.guard import Guard, parse_guard, parse_margin

SUMMARY = ("eval/mean", "eval/worst", "eval/imbalance", "eval/regressed")
"""The metrics that `summary` adds to the domains' own."""

KEEP_PENALTY = 10.0
"""Nats for each nat beyond a margin; see `Objective.keep`."""


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

    `keep` guards against forgetting: by domain, how far its eval loss may rise above the base
    model's (see `parse_margin`) while the others improve. A kept domain counts in the aggregate
    only if it has a weight of its own. As a guard is seen by some searchers only, and all see the
    score, the score has an exact penalty, too: `keep_penalty` nats for each nat beyond a margin.
    Its least score is that of the guarded problem where the penalty is larger than what a nat of
    margin is worth to the aggregate. Raise it where trials still end outside; 0: the guard is only
    a constraint. What a guard forbids a searcher that proposes once (fixed mixtures, Doubled,
    Proxy, Online) cannot know: it is judged by it.

    A general set that is only evaluated is a domain with `mixture.bounds: {general: [0, 0]}` and
    `keep: {general: 0.02}`.
    """

    aggregate: Literal["mean", "worst", "weighted"] = "mean"
    weights: Mapping[str, float] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    kl_to_prior: float = 0.0
    keep: Mapping[str, float | str] = field(default_factory=dict)
    keep_penalty: float = KEEP_PENALTY

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
        if not math.isfinite(self.keep_penalty) or self.keep_penalty < 0:
            raise ConfigError(
                f"objective.keep_penalty must be a number >= 0, got {self.keep_penalty}"
            )
        for text in self.constraints:
            parse_guard(text)
        for name, margin in self.keep.items():
            parse_margin(name, margin)

    @property
    def guards(self) -> dict[str, Guard]:
        """All guards by how they are written: the kept domains' and the constraints."""
        return {
            **{self._in_words(name): guard for name, guard in self._kept().items()},
            **{text: parse_guard(text) for text in self.constraints},
        }

    def _kept(self) -> dict[str, Guard]:
        return {name: parse_margin(name, margin) for name, margin in self.keep.items()}

    def _in_words(self, name: str) -> str:
        margin = self.keep[name]
        return f"{name} within {margin if isinstance(margin, str) else f'{margin:g}'} of base"

    def weight(self, name: str) -> float:
        """What a domain counts for in the aggregate; a kept one nothing, unless it is given."""
        return self.weights.get(name, 0.0 if name in self.keep else 1.0)

    def check(self, names: Sequence[str], prior: Mixture, closed: Sequence[str] = ()) -> None:
        """Refuse what does not fit the domains `names`: a wrong name, a missing weight.

        `closed`: domains that are never trained on, of which the prior has nothing.
        """
        self._check_weights(names)
        metrics = [f"eval/{name}/loss" for name in names] + list(SUMMARY)
        for text in self.constraints:
            _known(parse_guard(text).metric, metrics, f"constraint '{text}'")
        if self.kl_to_prior > 0:
            for name, share in prior.as_dict().items():
                if share == 0 and name not in closed:
                    raise ConfigError(
                        f"objective.kl_to_prior needs a prior above 0 everywhere; '{name}' has 0"
                    )

    def _check_weights(self, names: Sequence[str]) -> None:
        """Refuse weights and margins of unknown domains, and an aggregate of nothing."""
        for name in self.weights:
            _known(name, names, "objective.weights")
        for name in self.keep:
            _known(name, names, "objective.keep")
        if self.aggregate == "weighted":
            for name in names:
                if name not in self.weights and name not in self.keep:
                    raise ConfigError(
                        f"objective.aggregate is weighted but objective.weights lacks '{name}'"
                    )
        if names and all(name in self.keep and not self.weight(name) for name in names):
            raise ConfigError(
                "objective.keep names every domain: nothing is left to improve; take one out, or "
                "give it a weight in objective.weights"
            )
        if all(self.weight(name) == 0 for name in names):
            raise ConfigError("objective.weights are all 0: nothing is left to minimise")

    def losses(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The eval losses that count: those of domains whose weight is not 0."""
        return {
            name: loss for name, loss in domain_losses(metrics).items() if self.weight(name) > 0
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

        The score is NaN when a loss is missing that `base` has, or a kept one, or is NaN itself.
        The violation is the sum of the guards' excesses.
        """
        score = self.loss(metrics, base) + self.penalty(metrics, base)
        if not self._complete(metrics, base):
            return score, math.inf if self.guards else 0.0
        if self.kl_to_prior:
            score += self.kl_to_prior * divergence(mixture, prior)
        enriched, enriched_base = self.enrich(metrics, base), self.enrich(base, base)
        excess = (guard.excess(enriched, enriched_base) for guard in self.guards.values())
        return score, float(sum(excess))

    def penalty(self, metrics: Mapping[str, float], base: Mapping[str, float]) -> float:
        """What the score pays for kept domains beyond their margins; NaN where one is unknown."""
        if not self.keep_penalty:
            return 0.0
        over = [guard.over(metrics, base) for guard in self._kept().values()]
        # Not max(0, x) of each: Python's would turn a NaN into 0.
        return self.keep_penalty * float(np.maximum(over, 0.0).sum()) if over else 0.0

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
        """Derivative of the score by the eval loss of each domain in `metrics`.

        0 for domains that are left out; NaN for the others where the score is. With "worst" all of
        it is the worst domain's (the first of several). They sum to 1, and `keep_penalty` on top
        for each kept domain that is beyond its margin. Constraints and `kl_to_prior` are no part
        of it.
        """
        names = domain_losses(metrics)
        pays = {
            name: self.keep_penalty * (guard.over(metrics, base) > 0)
            for name, guard in self._kept().items()
        }
        if math.isnan(self.loss(metrics, base) + self.penalty(metrics, base)):
            counts = {name for name in names if self.weight(name) > 0 or name in pays}
            return {name: math.nan if name in counts else 0.0 for name in names}
        parts = self._parts(metrics)
        total = sum(parts.values())
        return {name: parts.get(name, 0.0) / total + pays.get(name, 0.0) for name in names}

    def _parts(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """What each loss counts for in the aggregate, in any scale."""
        losses = self.losses(metrics)
        parts = dict.fromkeys(losses, 1.0)
        if self.aggregate == "weighted":
            parts = {name: self.weights[name] for name in losses}
        elif self.aggregate == "worst":
            parts = {max(losses, key=losses.__getitem__): 1.0}
        return parts


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
