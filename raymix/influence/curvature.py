"""EK-FAC: the curvature of linear layers, as eigenvectors of two covariances and eigenvalues.

For a layer with inputs x_t and loss gradients d_t by its outputs, the Gauss-Newton matrix is near
A (x) S with A = E[x x'], S = E[d d'] (Martens and Grosse 2015, K-FAC). In the eigenbasis of the two
its diagonal is taken exactly, from the gradients of single examples: Lambda = E[(Qs' G Qa)^2]
(George et al. 2018, EK-FAC). All is per judged token: the curvature of the mean loss in nats per
token. Padding is left out of both sides, and labels are drawn, and losses taken, at judged tokens
alone; a token before them has a gradient all the same, by attention, and it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from raymix.core.errors import InfluenceError
from raymix.influence.batch import Batch, Network, Peers, drawn_labels
from raymix.influence.layers import Layer, Tap, tapped

Fisher = Literal["true", "empirical"]
Step = Callable[[], None]

_CHUNK = 2**26
"""Most numbers in the gradients of single examples held at once."""

_STRIPES, _WIDTH = 4, 64
"""Most stripes of a symmetric product and the least width of one: thinner ones are slow."""

_EXACTLY = 1024
"""Covariances of at most so many rows are summed in fp64."""


@dataclass(frozen=True, eq=False)
class Factors:
    """The curvature of one layer: about (Qs (x) Qa) diag(eigenvalues) (Qs (x) Qa)'.

    Attributes:
        inputs: Qa [i, i], eigenvectors as columns; `outputs`: Qs [o, o].
        eigenvalues: Lambda [o, i], corrected (EK-FAC); nats per token per squared unit of weight.
        kronecker: the product of the covariances' eigenvalues in its place [o, i] (K-FAC).
    """

    inputs: Tensor
    outputs: Tensor
    eigenvalues: Tensor
    kronecker: Tensor

    def rotated(self, gradients: Tensor) -> Tensor:
        """Gradients [..., o, i] in the eigenbasis: Qs' G Qa."""
        turned: Tensor = self.outputs.mT @ gradients @ self.inputs
        return turned

    def solved(self, gradients: Tensor, damping: float, kronecker: bool = False) -> Tensor:
        """Inverse damped curvature times gradients [..., o, i]; damping is of the mean eigenvalue.

        The rotation is Qs' G Qa, the eigenvalues *divide*, and Qs . Qa' goes back.
        """
        scale = 1.0 / damped(self.kronecker if kronecker else self.eigenvalues, damping)
        found: Tensor = self.outputs @ (self.rotated(gradients) * scale) @ self.inputs.mT
        return found


def damped(eigenvalues: Tensor, damping: float) -> Tensor:
    """`eigenvalues` [o, i] plus `damping` of their mean; above 0 also where all of them are 0."""
    return (eigenvalues + damping * eigenvalues.mean()).clamp(min=1e-30)


@dataclass(frozen=True, eq=False)
class Covariances:
    """Sums over tokens: of x x' by source, of d d' by layer; how many tokens and judged ones."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    tokens: float
    judged: float


def covariances(
    network: Network,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    peers: Peers,
    fisher: Fisher = "true",
    seed: int = 0,
    step: Step = lambda: None,
) -> Covariances:
    """One pass over the examples of weight above 0; a collective call.

    Args:
        network: the model.
        layers: those of one group.
        batches: of this worker; every worker has as many.
        peers: sums are taken over all.
        fisher: "true": labels drawn from the model; "empirical": the data's own.
        seed: of the drawn labels.
        step: called after each batch.
    """
    device = peers.device
    inputs = {layer.shape.source: _accumulator(layer.shape.columns, device) for layer in layers}
    outputs = {layer.name: _accumulator(layer.shape.out, device) for layer in layers}
    first = {layer.shape.source: layer.name for layer in reversed(layers)}
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    scale = torch.zeros(0)

    def fed(layer: Layer, x: Tensor) -> None:
        if first[layer.shape.source] == layer.name:
            x = _features(layer, x).flatten(0, 1) * scale
            _add_gram(inputs[layer.shape.source], x)

    def graded(layer: Layer, gradient: Tensor) -> None:
        d = gradient.float().flatten(0, 1)
        _add_gram(outputs[layer.name], d)

    with tapped(network, layers, fed, graded) as tap:
        for batch in batches:
            if batch.curves:
                # The square root: covariances are quadratic in it.
                scale = batch.by_token(batch.weights.sqrt()).flatten()[:, None]
                counts += _counts(batch)
                logits = forward(network, tap, batch)
                curve(logits, tap, batch, fisher, seed)
            step()
    for total in (*inputs.values(), *outputs.values(), counts):
        peers.summed(total)
    for matrix in (*inputs.values(), *outputs.values()):
        matrix.copy_(matrix.triu() + matrix.triu(1).mT)
    tokens, judged = counts.tolist()
    return Covariances(inputs, outputs, tokens, judged)


def _accumulator(size: int, device: torch.device) -> Tensor:
    """Zeros [size, size]: in fp64 where that costs little, else in fp32.

    Eigenvectors of small eigenvalues turn with the last digit of a sum.
    """
    dtype = torch.float64 if size <= _EXACTLY else torch.float32
    return torch.zeros((size, size), device=device, dtype=dtype)


def _add_gram(total: Tensor, x: Tensor) -> None:
    """Add x' x to the upper triangle of `total`; what is below it is not to be looked at.

    In stripes of rows, each from its diagonal block on: four do 5/8 of the whole product's work.
    """
    width = max(_WIDTH, -(-len(total) // _STRIPES))
    for first in range(0, len(total), width):
        rows = slice(first, first + width)
        part = total[rows, first:]
        if total.dtype == x.dtype:
            part.addmm_(x[:, rows].mT, x[:, first:])
        else:
            part.add_(x[:, rows].mT @ x[:, first:])


def _counts(batch: Batch) -> Tensor:
    """Weighted numbers of tokens and of judged tokens [2]."""
    weights = batch.weights.double()
    return torch.stack([batch.by_token(weights).sum(), weights[batch.owners].sum()])


def _features(layer: Layer, x: Tensor) -> Tensor:
    """The layer's inputs in fp32 [P, T, i], with a 1 where there is a bias."""
    x = x.float()
    if layer.bias is None:
        return x
    return torch.cat([x, x.new_ones((*x.shape[:-1], 1))], dim=-1)


def forward(network: Network, tap: Tap, batch: Batch) -> Tensor:
    """Logits of the judged tokens [N, V]; the layers' inputs are heard, unless there is nothing."""
    tap.forward = True
    logits = network.logits(batch.input_ids, batch.position_ids, batch.index)
    tap.forward = False
    return logits


def curve(
    logits: Tensor, tap: Tap, batch: Batch, fisher: Fisher, seed: int, keep: bool = False
) -> None:
    """A backward pass that the curvature is made of: heard by the layers, no weight's gradient.

    Each example's summed loss counts with the root of its weight. `keep`: the graph stays.
    """
    labels = drawn_labels(logits, batch, seed) if fisher == "true" else batch.targets
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    losses = losses * batch.weights.sqrt()[batch.owners]
    assert tap.root is not None
    tap.listens = batch.examples > 0
    torch.autograd.grad(losses.sum(), [tap.root], retain_graph=keep)
    tap.listens = False


def eigenvectors(found: Covariances, layers: Sequence[Layer], peers: Peers) -> Rotations:
    """Eigenvectors of all covariances, the work spread over workers; a collective call.

    The covariances' memory is taken over.

    Raises:
        InfluenceError: one has no finite decomposition; names its layer.
    """
    matrices = {("inputs", name): matrix for name, matrix in found.inputs.items()}
    matrices |= {("outputs", name): matrix for name, matrix in found.outputs.items()}
    load = [0.0] * peers.size
    owners = {}
    for key in sorted(matrices, key=lambda k: -len(matrices[k])):
        owners[key] = load.index(min(load))
        load[owners[key]] += float(len(matrices[key])) ** 3
    values, failed = {}, ""
    for key, owner in owners.items():
        values[key] = torch.zeros(len(matrices[key]), device=peers.device)
        if owner == peers.rank and not failed:
            try:
                values[key][:] = _decomposed(matrices[key], " ".join(key))
            except InfluenceError as error:
                failed = str(error)
    # All raise or none: the others would wait for ever.
    failures = [said for said in peers.gathered(failed) if said]
    if failures:
        raise InfluenceError(failures[0])
    if peers.size > 1:
        for key, owner in owners.items():
            dist.broadcast(matrices[key], src=owner)
            dist.broadcast(values[key], src=owner)
    return Rotations(found, values)


@dataclass(frozen=True, eq=False)
class Rotations:
    """Covariances whose matrices are now their eigenvectors, and the eigenvalues."""

    found: Covariances
    values: Mapping[tuple[str, str], Tensor]

    def basis(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Qa [i, i] and Qs [o, o] of `layer`."""
        return self.found.inputs[layer.shape.source], self.found.outputs[layer.name]

    def single(self) -> Rotations:
        """The same in fp32, as models compute."""
        found = self.found
        inputs = {name: matrix.float() for name, matrix in found.inputs.items()}
        outputs = {name: matrix.float() for name, matrix in found.outputs.items()}
        return Rotations(Covariances(inputs, outputs, found.tokens, found.judged), self.values)

    def kronecker(self, layer: Layer) -> Tensor:
        """K-FAC's eigenvalues [o, i] of `layer`, per judged token."""
        scale = max(1.0, self.found.tokens * self.found.judged)
        outputs: Tensor = self.values["outputs", layer.name].clamp(min=0)
        inputs: Tensor = self.values["inputs", layer.shape.source].clamp(min=0)
        product: Tensor = torch.outer(outputs, inputs) / scale
        return product


def _decomposed(matrix: Tensor, name: str) -> Tensor:
    """Overwrite a covariance with its eigenvectors; returns the eigenvalues."""
    for device in (matrix.device, torch.device("cpu")):
        try:
            whole = matrix.to(device, torch.float64)
            values, vectors = torch.linalg.eigh(0.5 * (whole + whole.mT))
        except RuntimeError:
            continue
        if bool(vectors.isfinite().all()):
            matrix.copy_(vectors)
            found: Tensor = values.to(matrix.device, matrix.dtype)
            return found
    raise InfluenceError(
        f"the covariance of the {name} has no eigendecomposition, not even in fp64 on the CPU; "
        f"finite: {bool(matrix.isfinite().all())}"
    )


class Corrections:
    """Takes in the examples of a pass and sums their squared gradients in the eigenbasis."""

    def __init__(self, layers: Sequence[Layer], rotations: Rotations, device: torch.device) -> None:
        self._rotations = rotations.single()
        self.sums = {
            layer.name: torch.zeros((layer.shape.out, layer.shape.columns), device=device)
            for layer in layers
        }
        self._inputs: dict[str, tuple[Tensor, bool]] = {}
        self._rows: tuple[Tensor, Tensor] | None = None
        self._examples = 0

    def begin(self, batch: Batch) -> None:
        """The next batch's examples: rows of the batch, or stretches of its places."""
        self._inputs.clear()
        self._examples, self._rows = batch.examples, None
        if batch.examples and batch.position_ids is not None:
            self._rows = _stretches(batch)

    def fed(self, layer: Layer, x: Tensor) -> None:
        """Keep the layer's input, turned to the eigenbasis where tokens are cheaper to turn."""
        if not self._examples:
            return
        source = layer.shape.source
        if source not in self._inputs:
            x = self._apart(_features(layer, x))
            length, out, columns = x.shape[1], layer.shape.out, layer.shape.columns
            early = length * (columns**2 + out**2) < out * columns * (out + columns)
            self._inputs[source] = (x @ self._rotations.basis(layer)[0] if early else x, early)

    def graded(self, layer: Layer, gradient: Tensor) -> None:
        """Sum the squares of each example's gradient, which the two sides make together."""
        x, early = self._inputs[layer.shape.source]
        qa, qs = self._rotations.basis(layer)
        d = self._apart(gradient.float())
        d = d @ qs if early else d
        each = max(1, _CHUNK // (layer.shape.out * layer.shape.columns))
        for first in range(0, len(d), each):
            g = d[first : first + each].mT @ x[first : first + each]
            if not early:
                g = qs.mT @ g @ qa
            self.sums[layer.name].add_(g.square_().sum(0))

    def _apart(self, tokens: Tensor) -> Tensor:
        """Tokens [P, T, .] by example [E, L, .]."""
        if self._rows is None:
            return tokens
        index, inside = self._rows
        return tokens.flatten(0, 1)[index] * inside[..., None]

    def factors(self, layers: Sequence[Layer], peers: Peers) -> dict[str, Factors]:
        """The curvature of each layer, from all workers' examples; a collective call."""
        judged = max(1.0, self._rotations.found.judged)
        made = {}
        for layer in layers:
            eigenvalues = peers.summed(self.sums[layer.name]) / judged
            qa, qs = self._rotations.basis(layer)
            made[layer.name] = Factors(qa, qs, eigenvalues, self._rotations.kronecker(layer))
        return made


def _stretches(batch: Batch) -> tuple[Tensor, Tensor]:
    """Places [E, L] of each packed example's tokens, and 1 where there is one (fp32) [E, L]."""
    owner = batch.owner.flatten()
    places = torch.nonzero(owner < batch.examples)[:, 0]
    owner = owner[places]
    lengths = torch.bincount(owner, minlength=batch.examples)
    starts = lengths.cumsum(0) - lengths
    index = owner.new_zeros((batch.examples, int(lengths.max())))
    inside = torch.zeros(index.shape, device=index.device)
    within = torch.arange(len(owner), device=index.device) - starts[owner]
    index[owner, within], inside[owner, within] = places, 1.0
    return index, inside
