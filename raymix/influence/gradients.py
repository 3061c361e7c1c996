"""Gradients of each domain's loss, kept as the model is sharded, in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from raymix.influence.batch import Batch, Network, Peers, loss_sum
from raymix.influence.curvature import Corrections, Fisher, Step, curve, forward
from raymix.influence.layers import Layer, tapped

Key = tuple[int, int]
"""A domain and a half of its rows."""


@dataclass
class Gradients:
    """Summed gradients of the judged tokens' losses, by domain and half.

    `parts` has this worker's shards by key and layer: of the weight and, where there is one, of
    the bias. `tokens` counts judged tokens, and `losses` sums their losses, over all workers.
    """

    parts: dict[Key, dict[str, tuple[Tensor, ...]]] = field(default_factory=dict)
    tokens: dict[Key, float] = field(default_factory=dict)
    losses: dict[Key, float] = field(default_factory=dict)

    def sums(self, layer: Layer, keys: Sequence[Key], device: torch.device) -> Tensor:
        """Summed gradients [len(keys), o, i] of one layer; 0 for absent keys; a collective call.

        A bias is the last column.
        """
        shape = layer.shape
        made = []
        for key in keys:
            if key not in self.parts:
                made.append(torch.zeros((shape.out, shape.columns), device=device))
                continue
            shards = zip(self.parts[key][layer.name], layer.tensors, strict=True)
            full = [_joined(shard.to(device), like) for shard, like in shards]
            made.append(torch.cat([part.reshape(shape.out, -1) for part in full], dim=1))
        return torch.stack(made)


def gradients(
    network: Network,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    peers: Peers,
    step: Step = lambda: None,
) -> Gradients:
    """One pass over `batches`, which come domain by domain and half by half; a collective call."""
    return _pass(network, layers, batches, peers, step, None, (), "true", 0)


def gradients_and_corrections(
    network: Network,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    peers: Peers,
    corrections: Corrections,
    corrected: Sequence[Layer],
    fisher: Fisher = "true",
    seed: int = 0,
    step: Step = lambda: None,
) -> Gradients:
    """The same, and the corrected eigenvalues of `corrected` from the same forward passes.

    Saves one forward pass in three. Also under the empirical Fisher the two need a backward pass
    each: examples have weights in the curvature that they do not have in the gradients.
    """
    return _pass(network, layers, batches, peers, step, corrections, corrected, fisher, seed)


def correct(
    network: Network,
    batches: Sequence[Batch],
    corrections: Corrections,
    corrected: Sequence[Layer],
    fisher: Fisher = "true",
    seed: int = 0,
    step: Step = lambda: None,
) -> None:
    """One pass for the corrected eigenvalues alone; a collective call."""
    with tapped(network, corrected, corrections.fed, corrections.graded) as tap:
        for batch in batches:
            if batch.curves:
                corrections.begin(batch)
                curve(forward(network, tap, batch), tap, batch, fisher, seed)
            step()


def _pass(
    network: Network,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    peers: Peers,
    step: Step,
    corrections: Corrections | None,
    corrected: Sequence[Layer],
    fisher: Fisher,
    seed: int,
) -> Gradients:
    found = Gradients()
    heard = (corrections.fed, corrections.graded) if corrections else (_deaf, _deaf)
    with tapped(network, corrected, *heard) as tap:
        for key, part in groupby(batches, key=lambda batch: (batch.domain, batch.half)):
            totals = torch.zeros(2, dtype=torch.float64, device=peers.device)
            for batch in part:
                if corrections and batch.curves:
                    corrections.begin(batch)
                    logits = forward(network, tap, batch)
                    curve(logits, tap, batch, fisher, seed, keep=True)
                else:
                    logits = network.logits(batch.input_ids, batch.position_ids, batch.index)
                loss = loss_sum(logits, batch.targets)
                _backward(layers, loss, peers)
                totals[0] += loss.detach()
                totals[1] += len(batch.targets)
                step()
            found.losses[key], found.tokens[key] = peers.summed(totals).tolist()
            found.parts[key] = {layer.name: _taken(layer) for layer in layers}
            network.module.zero_grad(set_to_none=True)
    return found


def _backward(layers: Sequence[Layer], loss: Tensor, peers: Peers) -> None:
    """Add to the gradients; where the model is whole, to those of the layers alone."""
    if peers.size > 1:
        # FSDP2 reduces what a backward pass leaves at its own copies of the weights.
        torch.autograd.backward(loss)
        return
    torch.autograd.backward(loss, inputs=[tensor for layer in layers for tensor in layer.tensors])


def _taken(layer: Layer) -> tuple[Tensor, ...]:
    """This worker's shards of a layer's gradients, in host memory."""
    taken = []
    for tensor in layer.tensors:
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        taken.append(local.detach().to("cpu", torch.float32, copy=True))
    return tuple(taken)


def _joined(shard: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which `shard` is this worker's part, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return shard
    spread = DTensor.from_local(
        shard,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    full: Tensor = spread.full_tensor()
    return full


def _deaf(layer: Layer, tensor: Tensor) -> None:
    """Hears nothing."""
