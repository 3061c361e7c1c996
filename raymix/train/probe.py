"""What is measured on rows of every domain, whether steps draw them or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from raymix.core.job import Json
from raymix.core.signals import Signal
from raymix.core.simplex import Vector
from raymix.data.aside import UNTRAINED, Aside
from raymix.data.batches import Item
from raymix.data.stream import Stream
from raymix.train.kit import Kit
from raymix.train.measure import means, micro, passes, share
from raymix.train.meter import Meter
from raymix.train.reference import TokenLosses

ROWS = 16
"""Rows of each domain that one measurement looks at."""


class Probe:
    """Hidden states and perplexities of `ROWS` rows of each domain, with the model as it is.

    Each measurement draws rows of its own, from each domain's pool in an order that is a function
    of (seed, domain). A domain's state is the mean over its rows of each row's mean over its own
    tokens, prompt and answer alike; a perplexity is over judged tokens only. (The trainer that MoS
    is read from looks at 64 rows for the states and 16 for perplexities, prompts and padding
    included.) Unlike what comes by in a batch they are there for every domain, also for one
    that is hardly sampled, are looked at without dropout, and all under the same weights.

    Cost: a forward pass over `ROWS` rows a domain, of which a training step on b rows a domain has
    3 b. Every S steps that is ROWS / (3 b S) of the training: .9% at b = 6, S = 100. The perplexity
    ratio takes as much again for the base model's losses, once a row.

    Args:
        kit: model, tables and batch size.
        streams: of each domain [K].
        base: losses of the model before training; None: perplexities are not asked for.
        meter: counts what passes through the model.
    """

    def __init__(
        self, kit: Kit, streams: Sequence[Stream], base: TokenLosses | None, meter: Meter
    ) -> None:
        self._kit, self._base, self._meter = kit, base, meter
        rows = [replace(stream, pack=None) for stream in streams]
        self._asides = [Aside(stream, d, UNTRAINED) for d, stream in enumerate(rows)]

    def measure(self, foreseen: int) -> dict[Signal, Vector]:
        """HIDDEN_SIMILARITY [K, K] and, with a base, PERPLEXITY_RATIO [K]; a collective call.

        NaN where a domain has no rows.

        Args:
            foreseen: measurements still expected, this one included: when the base's losses are
                not known they are computed for all of these.
        """
        kit, base = self._kit, self._base
        items = [item for aside in self._asides for item in aside.take(ROWS)]
        if base is not None:
            later = ROWS * (foreseen - 1)
            base.cover(items, lambda: [aside.ahead(later) for aside in self._asides])
        sums = self._look(items).cpu().numpy()
        self._meter.looked(sum(item.tokens for item in items))
        ratios, rows_seen, states = sums[:, 0], sums[:, 1], sums[:, 2:]
        found = {Signal.HIDDEN_SIMILARITY: similarity(states)}
        if base is not None:
            found[Signal.PERPLEXITY_RATIO] = means(ratios, rows_seen)
        kit.model.module.train()
        return found

    def _look(self, items: Sequence[Item]) -> Tensor:
        """Per domain: summed perplexity ratios, rows, summed hidden states [K, 2 + H]; collective.

        The cosine of sums is that of means.
        """
        kit, world = self._kit, self._kit.model.world
        limit = kit.setup.training.per_device_eval_batch_size * world.size
        zeros = np.zeros(len(kit.train), dtype=np.float32)
        total: Tensor | None = None
        kit.model.module.eval()
        with torch.no_grad():
            for part in passes(items, limit, world.size, kit.pace.overhead):
                mine = share(part, world.rank, world.size)
                before = self._base.of(mine) if self._base else None
                batch = micro(mine, kit.train, zeros, world.device, kit.pace.width, before)
                losses, states = kit.model.seen(batch)
                if total is None:
                    shape = (len(kit.train), 2 + states.shape[-1])
                    total = torch.zeros(shape, dtype=torch.float64, device=world.device)
                if not mine:
                    continue
                owners = torch.tensor([item.domain for item in mine], device=world.device)
                lengths = torch.tensor([item.tokens for item in mine], device=world.device)
                ratio = torch.zeros(len(mine), dtype=torch.float64, device=world.device)
                if batch.reference is not None:
                    rows = batch.index // batch.input_ids.shape[1]
                    ratio.index_add_(0, rows, (losses - batch.reference).double())
                    judged = torch.bincount(rows, minlength=len(mine))
                    ratio = (ratio / judged).exp()
                columns = [ratio[:, None], torch.ones_like(ratio)[:, None], pooled(states, lengths)]
                total.index_add_(0, owners, torch.cat(columns, dim=1))
        assert total is not None
        return world.summed(total)

    def state(self) -> Json:
        """How far each domain's draws have come, as JSON."""
        return [aside.state() for aside in self._asides]

    def restore(self, state: Json) -> None:
        """Go on where `state` was taken."""
        for aside, kept in zip(self._asides, state, strict=True):
            aside.restore(kept)


def pooled(states: Tensor, lengths: Tensor) -> Tensor:
    """Mean over each row's own tokens [P, H] of hidden states [P, T, H]; padding does not count."""
    places = torch.arange(states.shape[1], device=states.device)
    real = (places < lengths[:, None])[:, :, None]
    sums = torch.where(real, states.float(), 0.0).sum(dim=1).double()
    return sums / lengths[:, None]


def similarity(states: Vector) -> Vector:
    """Cosines [K, K] of the rows of `states` [K, H]; NaN where one of them is all zeros."""
    norms = np.linalg.norm(states, axis=1, keepdims=True)
    unit = np.divide(states, norms, out=np.full(states.shape, np.nan), where=norms > 0)
    return np.asarray(unit @ unit.T)
