"""The mixture contract: what a weight means.

A weight is the share of the budget, in the budget's unit, that is drawn from a domain. Nothing else
in raymix is called a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from raymix.core.errors import MixtureError
from raymix.core.simplex import Vector, project

_SUM_TOLERANCE = 1e-6


class Unit(StrEnum):
    """What a budget counts."""

    EXAMPLES = "examples"
    TOKENS = "tokens"
    LOSS_TOKENS = "loss_tokens"
    """Tokens that bear loss: the assistant's."""


@dataclass(frozen=True)
class Budget:
    """How much is drawn in one training, in `unit`."""

    amount: int
    unit: Unit = Unit.EXAMPLES

    def __post_init__(self) -> None:
        """Refuse an amount that is not positive."""
        if self.amount <= 0:
            raise MixtureError(f"Budget.amount must be positive, got {self.amount}")


@dataclass(frozen=True)
class Mixture:
    """Shares of a budget by domain: `weights[i] >= 0` belongs to `names[i]`; they sum to 1."""

    names: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse weights that are no distribution over distinct names."""
        if len(self.names) != len(self.weights):
            raise MixtureError(f"{len(self.names)} domains but {len(self.weights)} weights")
        if len(set(self.names)) != len(self.names):
            raise MixtureError(f"duplicate domain names in mixture: {', '.join(self.names)}")
        for name, weight in zip(self.names, self.weights, strict=True):
            if not math.isfinite(weight) or weight < 0:
                raise MixtureError(f"weight of '{name}' must be a number >= 0, got {weight}")
        total = sum(self.weights)
        if abs(total - 1.0) > _SUM_TOLERANCE:
            raise MixtureError(f"weights must sum to 1, got {total:.6g} for {self.as_dict()}")

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Mixture:
        """The mixture with the given share for each name."""
        return cls(tuple(weights), tuple(float(w) for w in weights.values()))

    @classmethod
    def normalised(cls, names: Sequence[str], weights: Sequence[float] | Vector) -> Mixture:
        """Scale non-negative `weights` [K] to sum to 1."""
        total = float(np.sum(weights))
        if not math.isfinite(total) or total <= 0:
            raise MixtureError(f"weights must have a positive finite sum, got {total}")
        return cls(tuple(names), tuple(float(w) / total for w in weights))

    def as_dict(self) -> dict[str, float]:
        """Share by name."""
        return dict(zip(self.names, self.weights, strict=True))

    def array(self) -> Vector:
        """Weights as an array [K], in the order of `names`."""
        return np.asarray(self.weights, dtype=np.float64)

    def ordered(self, names: Sequence[str]) -> Mixture:
        """The same mixture with its domains in the order of `names`; absent ones get 0."""
        if self.names == tuple(names):
            return self
        unknown = set(self.names) - set(names)
        if unknown:
            raise MixtureError(
                f"unknown domain '{sorted(unknown)[0]}' in mixture; known: {', '.join(names)}"
            )
        shares = self.as_dict()
        return Mixture(tuple(names), tuple(shares.get(name, 0.0) for name in names))

    def __str__(self) -> str:
        """Short form for tables: `math .50 code .50`."""
        return " ".join(
            f"{name} {w:.3f}".replace(" 0.", " .")
            for name, w in zip(self.names, self.weights, strict=True)
        )


@dataclass(frozen=True)
class Domain:
    """What a domain holds in its train split, after truncation and dropping."""

    name: str
    rows: int
    tokens: int
    loss_tokens: int

    def size(self, unit: Unit) -> int:
        """How much one epoch of the domain is worth in `unit`."""
        sizes = {
            Unit.EXAMPLES: self.rows,
            Unit.TOKENS: self.tokens,
            Unit.LOSS_TOKENS: self.loss_tokens,
        }
        return sizes[unit]

    def pool(self, rows: int) -> Domain:
        """The domain cut to `rows` of its rows, taken to be of its mean length."""
        if not min(1, self.rows) <= rows <= self.rows:
            raise MixtureError(
                f"pool of '{self.name}' must be 1 to its {self.rows} rows, got {rows}"
            )
        part = rows / max(1, self.rows)
        return Domain(self.name, rows, round(self.tokens * part), round(self.loss_tokens * part))


@dataclass(frozen=True)
class Parameter:
    """A number of the strategy's (DMT's k) that a searcher may set beside the mixture.

    Either one of `values`, or between `low` and `high`, evenly by its logarithm with `log`.
    `default` is what it is where a searcher says nothing. Optuna, Dirichlet, Grid and Swept set
    parameters; every other searcher (fixed mixtures, IDEAL, MosSearch, Doubled, Proxy, Online)
    leaves them as the strategy has them.
    """

    name: str
    default: float
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a range that is none."""
        for value in (self.default, self.low, self.high, *self.values):
            if not math.isfinite(value):
                raise MixtureError(f"parameter '{self.name}' must be finite, got {value}")
        if not self.values and not self.low < self.high:
            raise MixtureError(
                f"parameter '{self.name}' must have low < high, got {self.low}, {self.high}"
            )
        if self.log and not self.values and self.low <= 0:
            raise MixtureError(f"parameter '{self.name}' is log: low must be > 0, got {self.low}")
        if len(set(self.values)) != len(self.values):
            raise MixtureError(f"parameter '{self.name}' has a value twice: {self.values}")

    def at(self, part: float) -> float:
        """The number at `part` (0 to 1) of the range, or of the list of values."""
        if self.values:
            return self.values[min(int(part * len(self.values)), len(self.values) - 1)]
        if self.log:
            found = self.low * math.pow(self.high / self.low, part)
        else:
            found = self.low * (1 - part) + self.high * part
        return min(max(found, self.low), self.high)

    def points(self, count: int) -> tuple[float, ...]:
        """All `values`; of a range `count` (at least 2) points from end to end."""
        return self.values or tuple(self.at(i / (count - 1)) for i in range(count))

    def allows(self, number: float) -> bool:
        """Whether a searcher may say `number`."""
        return number in self.values if self.values else self.low <= number <= self.high


@dataclass(frozen=True)
class Space:
    """What a searcher may propose: every mixture inside the bounds and epoch caps.

    `lower`, `upper` [K] bound the shares; `max_epochs` [K] bounds how often a row is seen (`inf`:
    no cap). With `replacement` rows are drawn independently and no cap applies. `params`: what of
    the strategy may be set, too.
    """

    domains: tuple[Domain, ...]
    budget: Budget
    prior: Mixture
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    max_epochs: tuple[float, ...]
    replacement: bool = False
    params: tuple[Parameter, ...] = ()

    def __post_init__(self) -> None:
        """Refuse bounds and caps that leave no mixture."""
        lengths = {len(self.lower), len(self.upper), len(self.max_epochs), len(self.prior.names)}
        if lengths != {len(self.domains)} or self.prior.names != self.names:
            raise MixtureError("prior, bounds and caps must name the same domains in one order")
        if sum(self.lower) > 1 + _SUM_TOLERANCE:
            raise MixtureError(f"lower bounds sum to {sum(self.lower):.4g}, more than 1")
        for name, low, high in zip(self.names, self.lower, self.ceiling(), strict=True):
            if low > high + _SUM_TOLERANCE:
                raise MixtureError(
                    f"domain '{name}' must have at least {low:.4g} of the budget but its bound or "
                    f"epoch cap allows {high:.4g}"
                )
        room = float(self.ceiling().sum())
        if room < 1 - _SUM_TOLERANCE:
            short = (1 - room) * self.budget.amount
            raise MixtureError(
                f"bounds and epoch caps allow only {room:.1%} of the budget of "
                f"{self.budget.amount} {self.budget.unit}: {short:.0f} {self.budget.unit} short. "
                f"Most each domain can give: {self._ceilings_in_words()}"
            )

    def _ceilings_in_words(self) -> str:
        return ", ".join(
            f"{name} {share * self.budget.amount:.0f}"
            for name, share in zip(self.names, self.ceiling(), strict=True)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains, in the order of every array [K]."""
        return tuple(domain.name for domain in self.domains)

    def room(self) -> Vector:
        """Most that each domain can give [K] under its epoch cap, in the budget's unit."""
        if self.replacement:
            return np.full(len(self.domains), np.inf)
        sizes = np.array([d.size(self.budget.unit) for d in self.domains], dtype=np.float64)
        epochs = np.asarray(self.max_epochs, dtype=np.float64)
        # Nothing comes of an empty domain, however often it may be repeated.
        return np.multiply(epochs, sizes, out=np.zeros(len(sizes)), where=sizes > 0)

    def ceiling(self) -> Vector:
        """Largest share [K] that bound and epoch cap allow."""
        return np.minimum(
            np.asarray(self.upper, dtype=np.float64), self.room() / self.budget.amount
        )

    def free(self) -> NDArray[np.bool_]:
        """Which domains [K] may be trained on at all."""
        return self.ceiling() > 0

    def project(self, weights: Sequence[float] | Vector) -> Mixture:
        """The nearest allowed mixture to `weights` [K] (Euclidean)."""
        nearest = project(np.asarray(weights, dtype=np.float64), self.lower, self.ceiling())
        return Mixture.normalised(self.names, nearest)

    def uniform(self) -> Mixture:
        """Equal shares; nothing for domains with an upper bound of 0."""
        return shared_out(self.names, np.ones(len(self.domains)), self.upper)

    def proportional(self) -> Mixture:
        """Shares by the domains' sizes in the budget's unit; nothing where the upper bound is 0."""
        sizes = [d.size(self.budget.unit) for d in self.domains]
        return shared_out(self.names, sizes, self.upper)

    def settings(self, params: Mapping[str, float]) -> dict[str, float]:
        """Every parameter's number: as `params` has it, else its default."""
        return {each.name: params.get(each.name, each.default) for each in self.params}


def shared_out(
    names: Sequence[str], sizes: Sequence[float] | Vector, upper: Sequence[float]
) -> Mixture:
    """Shares in proportion to `sizes` [K]; a domain whose upper bound is 0 gets none.

    Such a domain is only evaluated (a guarded general set, the target of a reweighter): what it
    would have is the others', in proportion. Nothing else of the bounds is heeded.
    """
    may = np.asarray(upper, dtype=np.float64) > 0
    # Where none may be trained on there is no mixture, and `Space` says so in better words.
    return Mixture.normalised(names, np.where(may, sizes, 0.0) if may.any() else np.asarray(sizes))


def in_words(params: Mapping[str, float]) -> str:
    """Short form for tables, after the mixture's: `k .0039`; empty without parameters."""
    return " ".join(f"{name} {_short(number)}" for name, number in params.items())


def _short(number: float) -> str:
    text = f"{number:.2g}"
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.")
