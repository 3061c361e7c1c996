"""One optimizer step, and what reweighters may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import AdamW

from raymix.core.errors import TrainingError
from raymix.core.signals import Signal
from raymix.core.simplex import Vector
from raymix.data.batches import Item
from raymix.train.domains import DomainGradients
from raymix.train.instruments import Instruments
from raymix.train.kit import Kit
from raymix.train.measure import Micro, Window, loss_tokens, micro, passes, share
from raymix.train.meter import Meter
from raymix.train.optim import clip
from raymix.train.parts import Part
from raymix.train.shard import reshard
from raymix.train.steer import Steering
from raymix.train.timetable import Rates
from raymix.train.use import PLAIN

Decide = Callable[[], None]
"""Has the reweighter take its decision now."""


class Stepper:
    """Takes optimizer steps. Every rank makes the same passes in the same order.

    Losses are divided by counts over the whole step, so the gradient does not depend on how the
    step is cut up.

    Args:
        kit: model, tables and settings.
        optimizer: over the model's parameters.
        window: hears the training loss for reports.
        meter: counts what passes through the model beside the steps' own tokens.

    `use` says how rows pass through the model in the stage that is being trained.
    """

    def __init__(self, kit: Kit, optimizer: AdamW, window: Window, meter: Meter) -> None:
        self._kit, self._model, self._world = kit, kit.model, kit.model.world
        self._optimizer, self._window, self._meter = optimizer, window, meter
        self.use = PLAIN

    def take(
        self,
        items: Sequence[Item],
        number: int,
        rates: Rates,
        steering: Steering,
        decide: Decide | None,
    ) -> Tensor:
        """One optimizer step on `items`; returns the gradient's norm before it is clipped.

        Args:
            items: of all ranks.
            number: of the step, the job's first is 1.
            rates: learning rates.
            steering: says what a token of each domain counts, and what is measured.
            decide: moves `steering`'s weights in this very step; None: nobody waits for it.
        """
        tokens = loss_tokens(items, len(self._kit.train))
        if steering.instruments is not None:
            steering.instruments.cover(items)
        if steering.wants(Signal.GRADIENT_GRAM, number):
            self._apart(items, tokens, number, steering, decide)
        else:
            if decide is not None:
                self._look(items, tokens, steering)
                decide()
            heard = steering.instruments if decide is None else None
            self._backward(items, steering.scale(tokens), heard)
            if heard is not None:
                heard.count(tokens)
        self._window.count(tokens)
        if decide is not None or self.use.adapted is not None:
            # What was only looked at has left weights gathered that now change.
            reshard(self._model.module)
        if self.use.slots is not None and not self.use.extra(items):
            # No row of the step has the prompt: what is left of earlier steps must not move it.
            for parameter in self._model.named(Part.PROMPT).values():
                parameter.grad = None
        parameters = self._model.parameters.values()
        norm = clip(parameters, self._kit.setup.training.max_grad_norm, self._world)
        for group in self._optimizer.param_groups:
            group["lr"] = rates.prompt if group["part"] is Part.PROMPT else rates.weights
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _apart(
        self,
        items: Sequence[Item],
        tokens: Vector,
        number: int,
        steering: Steering,
        decide: Decide | None,
    ) -> None:
        """The same gradient, made of one for each domain, whose inner products are measured.

        The passes are those of a plain step, but of one domain each, with what they pad and cost
        beside their tokens; targets come on top. See `DomainGradients` for what it takes to keep
        them. They are not clipped one by one, only their sum is.
        """
        instruments, world = steering.instruments, self._world
        assert instruments is not None
        host = self._kit.setup.training.offload_gradients
        gradients = DomainGradients(self._model.parameters, world, host)
        alone = (1.0 / np.maximum(tokens, 1.0)).astype(np.float32)
        present = sorted({item.domain for item in items})
        for domain in present:
            own = [item for item in items if item.domain == domain]
            self._backward(own, alone, instruments)
            gradients.keep(domain)
        instruments.count(tokens)
        aims = []
        for rows in instruments.targets():
            count = loss_tokens(rows, len(tokens))
            scale = (1.0 / np.maximum(count, 1.0)).astype(np.float32)
            self._backward(rows, scale, instruments, reported=False)
            self._meter.trained(sum(item.tokens for item in rows))
            instruments.count(count)
            aims.append(rows[0].domain)
            gradients.keep(aims[-1])
        gram = gradients.gram(len(tokens))
        self._check(gram, [*present, *aims], number)
        instruments.gram = gram
        gradients.drop(aims)
        if decide is not None:
            decide()
        gradients.combine(steering.scale(tokens).astype(np.float64) * tokens)

    def _check(self, gram: Vector, present: Sequence[int], number: int) -> None:
        for domain in present:
            if not np.isfinite(gram[domain, domain]):
                raise TrainingError(
                    f"the gradient of domain '{self._kit.train[domain].domain}' in step {number} "
                    f"is {gram[domain, domain]}; lower learning_rate or look for broken rows"
                )

    def _look(self, items: Sequence[Item], tokens: Vector, steering: Steering) -> None:
        """Let the signals hear a step's losses before it is taken: a forward pass more, no more.

        Without dropout, so that the training draws from its generators what it would anyway.
        """
        instruments = steering.instruments
        assert instruments is not None
        instruments.count(tokens)
        if not steering.sums:
            return
        nothing = np.zeros(len(tokens), dtype=np.float32)
        self._model.module.eval()
        with torch.no_grad():
            for batch in self._passes(items, nothing, instruments):
                instruments.add(batch, self._model.losses(batch))
        self._meter.looked(sum(item.tokens for item in items) + self.use.extra(items))
        self._model.module.train()

    def _backward(
        self,
        items: Sequence[Item],
        scale: NDArray[np.float32],
        heard: Instruments | None,
        reported: bool = True,
    ) -> None:
        """Add the gradient of `items` to what is in `.grad`; [K] `scale` is a token's weight."""
        self._meter.trained(self.use.extra(items))
        for batch in self._passes(items, scale, heard):
            learns = self._model.learns(batch)
            with torch.set_grad_enabled(learns):
                losses = self._model.losses(batch)
            if learns:
                torch.autograd.backward((losses * batch.scale).sum())
            if reported:
                self._window.add(batch, losses)
            if heard is not None:
                heard.add(batch, losses)

    def _passes(
        self, items: Sequence[Item], scale: NDArray[np.float32], heard: Instruments | None
    ) -> Iterator[Micro]:
        """This rank's batches of the passes over `items`.

        Every rank takes its contiguous part of each pass, which is nothing where there are fewer
        items than ranks: FSDP2 needs the same passes on all.
        """
        kit, world, pace, slots = self._kit, self._world, self._kit.pace, self.use.slots
        limit = kit.setup.training.per_device_train_batch_size * world.size
        for group, adapted in self.use.groups(items):
            for part in passes(group, limit, world.size, pace.overhead, slots):
                mine = share(part, world.rank, world.size)
                known = None if heard is None else heard.reference(mine)
                yield micro(mine, kit.train, scale, world.device, pace.width, known, slots, adapted)
