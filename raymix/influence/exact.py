"""The whole Gauss-Newton matrix, by conjugate gradients: an oracle for small models on one worker.

Nothing is taken to be block-diagonal or a Kronecker product. A product with the matrix costs a
forward and three backward passes over the rows, a solution some tens of products, some hundreds
where the damping is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raymix.core.errors import InfluenceError
from raymix.influence.batch import Batch, Network, Peers
from raymix.influence.gradients import Gradients
from raymix.influence.layers import Layer

_TOLERANCE, _STEPS = 1e-4, 2000


@dataclass(frozen=True, eq=False)
class GaussNewton:
    """The Gauss-Newton matrix of the mean loss over `batches` by the weights of `layers`, damped.

    `damping` [P] is added to the diagonal. Vectors are flat, layer by layer, weight then bias.
    """

    network: Network
    layers: Sequence[Layer]
    batches: Sequence[Batch]
    damping: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters, in the vectors' order."""
        return [tensor for layer in self.layers for tensor in layer.tensors]

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with `vector` [P]."""
        total, judged = torch.zeros_like(vector), 0.0
        parts = _unflattened(vector, self.tensors)
        with sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second derivative
            for batch in self._weighty():
                weights = batch.weights[batch.owners]
                total += self._of_batch(batch, parts, weights[:, None])
                judged += float(weights.sum())
        return total / max(1.0, judged) + self.damping * vector

    def _weighty(self) -> Iterator[Batch]:
        return (batch for batch in self.batches if batch.curves and batch.examples)

    def _of_batch(self, batch: Batch, parts: list[Tensor], weights: Tensor) -> Tensor:
        """J' W (diag p - p p') J v, by the derivative of J' u in u."""
        logits = self.network.logits(batch.input_ids, batch.position_ids, batch.index).float()
        dual = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, self.tensors, dual, create_graph=True)
        (ahead,) = torch.autograd.grad(back, dual, parts, retain_graph=True)
        p = logits.detach().softmax(-1)
        curved = weights * p * (ahead - (p * ahead).sum(-1, keepdim=True))
        return _flat(torch.autograd.grad(logits, self.tensors, curved))


def solve(matrix: GaussNewton, target: Tensor) -> Tensor:
    """The x with `matrix` x = `target` [P], by conjugate gradients, to 1e-4 of the target's norm.

    Preconditioned by the damping: it is of each layer's own scale, which makes the layers alike.

    Raises:
        InfluenceError: it does not get there.
    """
    # A layer without any curvature has no damping either, and no gradient.
    scale = 1.0 / matrix.damping.clamp(min=1e-30)
    x, r = torch.zeros_like(target), target.clone()
    p = scale * r
    along, goal = r @ p, _TOLERANCE**2 * (target @ target)
    for _ in range(_STEPS):
        if r @ r <= goal:
            return x
        image = matrix(p)
        length = along / (p @ image)
        x, r = x + length * p, r - length * image
        before, along = along, r @ (scale * r)
        p = scale * r + along / before * p
    raise InfluenceError(
        f"conjugate gradients have not converged in {_STEPS} steps (residual "
        f"{float(r.norm() / target.norm()):.2g}); raise influence.damping"
    )


def exact(
    network: Network,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    train: Gradients,
    held: Gradients,
    domains: int,
    dampings: Sequence[float],
    peers: Peers,
) -> Tensor:
    """Influence through the whole curvature [K', K], fp64.

    Args:
        network: the model, in eval mode.
        layers: whose weights are looked at.
        batches: of the curvature.
        train: gradients of the domains.
        held: gradients of the eval losses.
        domains: K.
        dampings: added to the diagonal of each layer's block.
        peers: a single worker.
    """
    if peers.size > 1:
        raise InfluenceError("influence.exact needs a single worker; set cluster.num_workers to 1")
    sizes = [layer.shape.out * layer.shape.columns for layer in layers]
    pairs = zip(dampings, sizes, strict=True)
    damping = torch.cat([torch.full((n,), d, device=peers.device) for d, n in pairs])
    matrix = GaussNewton(network, layers, batches, damping)
    g, v = (_means(side, layers, domains, peers.device) for side in (train, held))
    solved = torch.stack([solve(matrix, row) for row in v])
    return -(solved @ g.mT).double().cpu()


def _means(found: Gradients, layers: Sequence[Layer], domains: int, device: torch.device) -> Tensor:
    """Mean gradients of all rows, flat [K, P]."""
    rows = []
    for domain in range(domains):
        total, judged = torch.zeros(0), 0.0
        for half in (0, 1):
            if (domain, half) in found.parts:
                parts = found.parts[domain, half]
                flat = _flat([part for layer in layers for part in parts[layer.name]])
                total = flat if not judged else total + flat
                judged += found.tokens[domain, half]
        rows.append(total / max(1.0, judged))
    size = max(len(row) for row in rows)
    return torch.stack([row if len(row) else torch.zeros(size) for row in rows]).to(device)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])


def _unflattened(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
