"""The whole Gauss-Newton matrix, by conjugate gradients: an oracle for small models on one worker.

Nothing is taken to be block-diagonal or a Kronecker product. A product with the matrix costs a
forward and three backward passes over the rows, a solution some tens of products, some hundreds
where the damping is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raymix.core.errors import InfluenceError
from raymix.influence.batch import Batch, Network, Peers
from raymix.influence.gradients import Gradients
from raymix.influence.layers import Layer

_STEPS = 2000

Heard = Callable[[float], None]
"""Is told the passes of each product with the matrix, in those that a training makes."""


def _deaf(passes: float) -> None:
    """Hears nothing."""


def passes(vectors: int) -> float:
    """What one product with `vectors` vectors takes, in passes forward and back over the rows.

    A forward and a backward pass for all, and for each vector a derivative of the backward pass and
    a backward pass, which cost as much as one another.
    """
    return (3 + 4 * vectors) / 3


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

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products with `vectors` [M, P], in one pass over the rows."""
        total, judged = torch.zeros_like(vectors), 0.0
        with sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second derivative
            for batch in self._weighty():
                weights = batch.weights[batch.owners]
                total += self._of_batch(batch, vectors, weights[:, None])
                judged += float(weights.sum())
        return total / max(1.0, judged) + self.damping * vectors

    def _weighty(self) -> Iterator[Batch]:
        return (batch for batch in self.batches if batch.curves and batch.examples)

    def _of_batch(self, batch: Batch, vectors: Tensor, weights: Tensor) -> Tensor:
        """J' W (diag p - p p') J v for each v, by the derivative of J' u in u [M, P]."""
        logits = self.network.logits(batch.input_ids, batch.position_ids, batch.index).float()
        dual = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, self.tensors, dual, create_graph=True)
        p = logits.detach().softmax(-1)
        made = []
        for vector in vectors:
            parts = _unflattened(vector, self.tensors)
            (ahead,) = torch.autograd.grad(back, dual, parts, retain_graph=True)
            curved = weights * p * (ahead - (p * ahead).sum(-1, keepdim=True))
            made.append(torch.autograd.grad(logits, self.tensors, curved, retain_graph=True))
        return torch.stack([_flat(gradient) for gradient in made])


def solve(
    matrix: GaussNewton, targets: Tensor, tolerance: float = 1e-4, heard: Heard = _deaf
) -> Tensor:
    """The x with `matrix` x = target for each of `targets` [M, P], to `tolerance` of its norm.

    Conjugate gradients, all M in step. Preconditioned by the damping, which differs by layer; with
    EK-FAC's inverse it takes a third more steps.

    Raises:
        InfluenceError: it does not get there.
    """
    x, r = torch.zeros_like(targets), targets.clone()
    damping = matrix.damping.clamp(min=1e-30)  # a layer of no curvature has none
    z = r / damping
    p, inner = z.clone(), (r * z).sum(1)
    goal = tolerance**2 * targets.square().sum(1)
    for _ in range(_STEPS):
        going = r.square().sum(1) > goal
        if not going.any():
            return x
        image = matrix(p[going])
        heard(passes(int(going.sum())))
        length = inner[going] / (p[going] * image).sum(1)
        x[going] += length[:, None] * p[going]
        r[going] -= length[:, None] * image
        z[going] = r[going] / damping
        before, inner = inner, (r * z).sum(1)
        p[going] = z[going] + (inner / before)[going][:, None] * p[going]
    worst = float((r.square().sum(1) / targets.square().sum(1)).max().sqrt())
    raise InfluenceError(
        f"conjugate gradients have not converged in {_STEPS} steps (residual {worst:.2g}); raise "
        "influence.damping"
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
    tolerance: float = 1e-4,
    heard: Heard = _deaf,
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
        tolerance: of the residual, relative to the eval losses' gradients.
        heard: is told what each product has cost.
    """
    if peers.size > 1:
        raise InfluenceError("influence.exact needs a single worker; set cluster.num_workers to 1")
    sizes = [layer.shape.out * layer.shape.columns for layer in layers]
    pairs = zip(dampings, sizes, strict=True)
    damping = torch.cat([torch.full((n,), d, device=peers.device) for d, n in pairs])
    matrix = GaussNewton(network, layers, batches, damping)
    g, v = (_means(side, layers, domains, peers.device) for side in (train, held))
    solved = solve(matrix, v, tolerance, heard)
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
