"""Runs a reweighter beside a training: rank 0 decides, all ranks hear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from raymix.core.codec import from_spec
from raymix.core.errors import RaymixError, TrainingError
from raymix.core.job import Json, Spec, TrainJob
from raymix.core.mixture import Mixture
from raymix.core.signals import SUMMED, Decision, Reweighter, Signal, Signals, named
from raymix.core.simplex import Vector
from raymix.data.batches import Batches
from raymix.train.instruments import Instruments, rows_of
from raymix.train.kit import Kit
from raymix.train.meter import Meter
from raymix.train.reference import TokenLosses
from raymix.train.shard import together

_SHOWN = frozenset({Signal.DOMAIN_LOSS, Signal.VALIDATION_LOSS})
"""Signals with curves of their own: `train/<domain>/loss`, `eval/<domain>/loss`."""


class Steering:
    """A stage's reweighter (or none) with its state, its instruments and the weights in force.

    `weights` are of the domains' mean losses in the step, or of their gradients: as long as they
    are known beforehand that is the same. None: every token of the step counts the same.

    Args:
        spec: the reweighter.
        kit: model and tables.
        job: space, seed and reference.
        batches: of the stage; their mixture is moved.
        begun: the job's optimizer steps before the stage; a reweighter counts the stage's own.
        steps: that the stage is expected to take.
        kept: gives the losses of train rows under weights that do not move.
        meter: counts what the signals take.
    """

    def __init__(
        self,
        spec: Spec | None,
        kit: Kit,
        job: TrainJob,
        batches: Batches,
        begun: int,
        steps: int,
        kept: Callable[[UPath | None], TokenLosses],
        meter: Meter,
    ) -> None:
        self._spec = spec
        self.reweighter: Reweighter[Any] | None = from_spec(spec) if spec else None
        self.weights: Mixture | None = None
        self.instruments: Instruments | None = None
        if self.reweighter is not None:
            self.instruments = Instruments(self.reweighter, kit, job, batches, kept, meter)
        self.batches, self._job, self._begun, self._steps = batches, job, begun, steps
        self._names, self._world, self._state = job.space.names, kit.model.world, None
        self._heard: dict[str, list[float]] = {}

    def start(self) -> None:
        """Ask for the decision of step 0; a collective call."""
        reweighter, job = self.reweighter, self._job
        if reweighter is not None:
            self._ask(lambda: reweighter.init(job.space, self._steps, job.seed))

    def due(self, step: int) -> bool:
        """Whether an update follows the job's optimizer step number `step` (the first is 1)."""
        return self.reweighter is not None and (step - self._begun) % self.reweighter.every == 0

    def at_once(self, step: int) -> bool:
        """Whether an update is due in `step` itself, which waits for it."""
        return self.due(step) and self.reweighter is not None and self.reweighter.same_step

    def wants(self, signal: Signal, step: int) -> bool:
        """Whether the reweighter asks for `signal` in the update of optimizer step `step`."""
        return self.due(step) and self.reweighter is not None and signal in self.reweighter.needs

    @property
    def sums(self) -> bool:
        """Whether a signal is a mean over the steps' tokens."""
        return self.reweighter is not None and bool(self.reweighter.needs & SUMMED)

    def update(self, step: int, lr: float, validation: Vector | None) -> None:
        """Show the window to the reweighter, and heed what it says; a collective call."""
        reweighter, instruments = self.reweighter, self.instruments
        assert reweighter is not None
        assert instruments is not None
        since = step - self._begun
        foreseen = max(1, (self._steps - since) // reweighter.every + 1)
        tokens, values = instruments.read(foreseen, validation)
        self._heard = {
            signal.value: rows_of(values[signal]).tolist()
            for signal in sorted(values.keys() - _SHOWN)
        }
        signals = Signals(since, lr, self.batches.mixture, tokens, values)
        self._ask(lambda: reweighter.update(self._state, signals))

    def _ask(self, question: Callable[[], tuple[Decision, Json]]) -> None:
        decision = Decision()
        with together(self._world):
            if self._world.first:
                with _blamed(self.reweighter):
                    decision, self._state = question()
        with _blamed(self.reweighter):
            self._heed(self._world.told(decision))

    def _heed(self, decision: Decision) -> None:
        if decision.restore is not None:
            raise TrainingError("it decided on restore, which is not supported yet")
        if decision.loss_weights is not None and decision.gradient_weights is not None:
            raise TrainingError("it decided on loss_weights and gradient_weights at once")
        weights = decision.loss_weights or decision.gradient_weights
        if weights is not None:
            self.weights = self._spared(weights)
        if decision.sampling is not None:
            self.batches.set_mixture(self._within(self._spared(decision.sampling)))

    def _within(self, mixture: Mixture) -> Mixture:
        """`mixture` over what the stage is of; one of several stages does not draw the others'.

        As the stage has it where the mixture has nothing of it.
        """
        asked = self.batches.sampler.asked
        shares = np.where(asked.array() > 0, mixture.array(), 0.0)
        if len(self._job.stages) < 2 or np.array_equal(shares, mixture.array()):
            return mixture
        return Mixture.normalised(self._names, shares) if shares.any() else asked

    def _spared(self, mixture: Mixture) -> Mixture:
        """`mixture` over all domains, none of it a target's."""
        whole = mixture.ordered(self._names)
        for target in self.reweighter.targets if self.reweighter is not None else ():
            if whole.as_dict()[target] > 0:
                raise TrainingError(f"it gives weight to its target '{target}'")
        return whole

    def scale(self, tokens: Vector) -> NDArray[np.float32]:
        """What one token of each domain counts [K] in a step that has `tokens` [K] of loss.

        Without weights the step's loss is the mean over its tokens; with weights w it is
        sum_k w_k * (mean over the tokens of domain k): absent domains add nothing, and nobody
        takes their place.
        """
        if self.weights is None:
            return np.full(len(tokens), 1.0 / max(1.0, float(tokens.sum())), dtype=np.float32)
        return (self.weights.array() / np.maximum(tokens, 1.0)).astype(np.float32)

    def metrics(self) -> dict[str, float]:
        """What was last heard, one number a domain (see `rows_of`), and the weights in force."""
        columns = {**self._heard}
        if self.weights is not None:
            columns["weight"] = self.weights.array().tolist()
        return {
            f"reweight/{name}/{domain}": value
            for name, values in columns.items()
            for domain, value in zip(self._names, values, strict=True)
            if not np.isnan(value)
        }

    def learned(self) -> Json:
        """Type (import path) and last state of the reweighter; None: there is none. Collective."""
        if self._spec is None:
            return None
        return {"type": self._spec.path, "state": self._world.told(self._state)}

    def state(self) -> Json:
        """Plain JSON for the checkpoint; a collective call."""
        return {
            "reweighter": self._state,
            "weights": self.weights and self.weights.as_dict(),
            "instruments": self.instruments and self.instruments.state(),
            "heard": self._heard,
        }

    def restore(self, state: Json) -> None:
        """Go on from `state`."""
        self._state, self._heard = state["reweighter"], state["heard"]
        self.weights = Mixture.of(state["weights"]) if state["weights"] else None
        if self.instruments is not None:
            self.instruments.restore(state["instruments"])


@contextmanager
def _blamed(reweighter: object) -> Iterator[None]:
    """Say whose decision it was that cannot be followed, or whose code failed."""
    name = type(reweighter).__name__
    try:
        with named(reweighter):
            yield
    except RaymixError as error:
        if f"reweighter {name}" in str(error):
            raise
        raise TrainingError(f"reweighter {name}: {error}") from error
    except Exception as error:
        raise TrainingError(f"reweighter {name}: {type(error).__name__}: {error}") from error
