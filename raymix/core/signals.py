"""What a reweighter hears and says while a training runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar

from raymix.core.errors import MixtureError, TrainingError
from raymix.core.mixture import Mixture, Space
from raymix.core.simplex import Vector

State = TypeVar("State")


class Signal(StrEnum):
    """A measurement that workers take on a reweighter's behalf."""

    DOMAIN_LOSS = "domain_loss"
    """Mean training loss of each domain in the window, nats per token [K]."""
    VALIDATION_LOSS = "validation_loss"
    """Mean eval loss of each domain now, nats per token [K]."""
    REFERENCE_LOSS = "reference_loss"
    """Mean loss of the reference model on the window's tokens [K]."""
    EXCESS_LOSS = "excess_loss"
    """Mean over the window's tokens of the loss minus the reference model's [K]."""
    CLIPPED_EXCESS_LOSS = "clipped_excess_loss"
    """The same with each token's excess clipped below at 0, as DoReMi has it [K]."""
    GRADIENT_GRAM = "gradient_gram"
    """Inner products of the domains' gradients in the window's last step [K, K]."""
    HIDDEN_SIMILARITY = "hidden_similarity"
    """Cosine of the domains' mean hidden states now, on rows drawn to be looked at [K, K]."""
    PERPLEXITY_RATIO = "perplexity_ratio"
    """Perplexity over that of the model before training, a mean over such rows [K]."""


REFERENCED = frozenset({Signal.REFERENCE_LOSS, Signal.EXCESS_LOSS, Signal.CLIPPED_EXCESS_LOSS})
"""Signals that ask for losses of the reference model."""
SUMMED = REFERENCED | {Signal.DOMAIN_LOSS}
"""Signals that are means over the window's tokens."""
PROBED = frozenset({Signal.HIDDEN_SIMILARITY, Signal.PERPLEXITY_RATIO})
"""Signals that are read from rows of every domain when an update is due."""


@dataclass(frozen=True)
class Signals:
    """One window of a training, reduced over all workers.

    `step`: optimizer steps that the stage has taken, of the `steps` that `init` was told of.
    `tokens` [K] are the loss tokens of each domain in the window, those measured of a target
    included; 0 means that the domain was absent, and what is read from the window is NaN for it.
    `values[s]` has the shape that `Signal` states.
    """

    step: int
    lr: float
    mixture: Mixture
    tokens: Vector
    values: Mapping[Signal, Vector] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What changes from the next step on; None leaves a thing as it is.

    `sampling` moves the sampler; `loss_weights` makes the step's loss the weighted sum of the
    domains' mean losses; `gradient_weights` combines per-domain gradients of the same step;
    `restore` rolls back to the checkpoint of a step.
    """

    sampling: Mixture | None = None
    loss_weights: Mixture | None = None
    gradient_weights: Mixture | None = None
    restore: int | None = None


class Reweighter(Protocol[State]):
    """Moves the mixture inside a training. `State` is plain JSON: it goes into the checkpoint."""

    @property
    def needs(self) -> frozenset[Signal]:
        """The signals that workers must measure."""
        ...

    @property
    def every(self) -> int:
        """Optimizer steps between two updates."""
        ...

    @property
    def same_step(self) -> bool:
        """Whether a decision acts in the very step whose signals it was taken from.

        Else it acts from the next step on. Workers then hold back the step for the decision, which
        costs what the decision's kind asks for (a gradient of each domain, a second forward pass).
        """
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Domains of the space that are measured but never trained on: their upper bound is 0."""
        ...

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, State]:
        """The decision for step 0 and the first state; `steps` is the expected length."""
        ...

    def update(self, state: State, signals: Signals) -> tuple[Decision, State]:
        """Take in one window; decide for the steps after it."""
        ...


@contextmanager
def named(reweighter: object) -> Iterator[None]:
    """Say whose decision it was where weights turn out to be no mixture (NaN, negative).

    Raises:
        TrainingError: in place of a MixtureError, with the reweighter's name before it.
    """
    try:
        yield
    except MixtureError as error:
        raise TrainingError(f"reweighter {type(reweighter).__name__}: {error}") from error
