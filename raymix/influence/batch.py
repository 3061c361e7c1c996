"""What a model is shown while its influence is measured, and the labels drawn for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

T = TypeVar("T")


class Network(Protocol):
    """A causal language model that may be sharded."""

    @property
    def module(self) -> nn.Module:
        """The module itself; its linear layers are what influence looks at."""
        ...

    @property
    def embedding(self) -> nn.Module:
        """What turns tokens into vectors."""
        ...

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters that training moves, by name."""
        ...

    def logits(self, ids: Tensor, positions: Tensor | None, index: Tensor) -> Tensor:
        """Logits [N, V] at the places `index` of the flattened [P * T] tokens."""
        ...


class Peers(Protocol):
    """The workers that hold the model together, seen from one of them."""

    @property
    def rank(self) -> int:
        """This one's number."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this one computes."""
        ...

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all workers, in place, on each."""
        ...

    def gathered(self, value: T) -> list[T]:
        """What every worker has, by number, on each."""
        ...


@dataclass(frozen=True)
class Batch:
    """One forward pass of one worker: P places of T tokens that hold E examples.

    Attributes:
        input_ids: [P, T]; `position_ids` restart with each example where places hold several.
        index: places in the flattened tokens whose prediction is judged [N]; `targets` [N] come
            next in the data.
        owner: number of each token's example [P, T]; E at padding.
        keys: id of each example's row [E], the same on any worker.
        weights: of each example in the curvature [E].
        domain: of all examples; `half` (0 or 1) of the data that they belong to.
        curves: whether this pass goes into the curvature; the same on all workers.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    index: Tensor
    targets: Tensor
    owner: Tensor
    keys: NDArray[np.uint64]
    weights: Tensor
    domain: int
    half: int
    curves: bool = True

    @property
    def examples(self) -> int:
        """How many examples it holds; 0: this worker only keeps the others company."""
        return len(self.keys)

    @property
    def owners(self) -> Tensor:
        """The example of each judged token [N]."""
        return self.owner.flatten().index_select(0, self.index)

    def by_token(self, values: Tensor) -> Tensor:
        """The value of each token's example [P, T], of `values` [E]; 0 at padding."""
        return torch.cat([values, values.new_zeros(1)])[self.owner]


def loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed loss of `targets` [N] under `logits` [N, V], nats, fp32."""
    return cross_entropy(logits.float(), targets, reduction="sum")


def drawn_labels(logits: Tensor, batch: Batch, seed: int) -> Tensor:
    """Labels drawn from the model's own prediction [N], by inverse transform.

    The uniform number of a token depends on `seed`, its row's id and its place among the row's
    judged tokens, and on nothing else: the same labels come from any number of workers.
    """
    chance = torch.from_numpy(_uniform(batch, seed)).to(logits.device)
    heaped = logits.detach().float().softmax(-1).cumsum_(-1)
    drawn = torch.searchsorted(heaped, (chance * heaped[:, -1])[:, None], right=True)[:, 0]
    return drawn.clamp(max=logits.shape[-1] - 1)


def _uniform(batch: Batch, seed: int) -> NDArray[np.float32]:
    """Numbers in [0, 1) of the judged tokens [N]: SplitMix64 of seed, row and place."""
    owners = batch.owners.cpu().numpy()
    starts = np.searchsorted(owners, np.arange(len(batch.keys)))
    place = np.arange(len(owners)) - starts[owners]
    with np.errstate(over="ignore"):
        word = _mixed(batch.keys[owners] ^ _mixed(np.asarray([seed], dtype=np.uint64)))
        word = _mixed(word + place.astype(np.uint64))
    return ((word >> np.uint64(40)).astype(np.float64) / 2.0**24).astype(np.float32)


def _mixed(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea, Flood 2014): one step and its output function."""
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
