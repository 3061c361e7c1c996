"""From gradients and curvature to the matrices of influence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymix.core.errors import InfluenceError
from raymix.influence.batch import Peers
from raymix.influence.curvature import Factors, damped
from raymix.influence.gradients import Gradients, Key
from raymix.influence.layers import Layer

DAMPINGS = (0.01, 1.0)
"""At which the estimate is taken too, to see how much it hangs on the damping."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Influence matrices by layer and name [L, K', K], and squared norms of gradients.

    `matrices`: "ekfac", "kfac", "identity", "ekfac@0.01", "ekfac@1", "half0", "half1" and, where
    the optimizer's moments are known, "adam". `norms` [K] of the domains' mean gradients,
    `eval_norms` [K'], both by layer. `means` of each layer's eigenvalues [L], `spread`: their
    relative variance.
    """

    matrices: Mapping[str, Tensor]
    norms: Tensor
    eval_norms: Tensor
    means: Tensor
    spread: Tensor


def scores(
    layers: Sequence[Layer],
    factors: Mapping[str, Factors],
    train: Gradients,
    held: Gradients,
    domains: int,
    damping: float,
    peers: Peers,
    diagonal: Mapping[str, tuple[Tensor, ...]] | None = None,
) -> Scores:
    """Influence through `layers`, which are spread over the workers; a collective call.

    Args:
        layers: L of them.
        factors: by layer.
        train: gradients of the domains' training losses.
        held: gradients of their eval losses.
        domains: K; here K' is K.
        damping: of each layer's mean eigenvalue.
        peers: take one layer each in turn.
        diagonal: a preconditioner, as shards by layer; None: no "adam".
    """
    shape = (len(layers), domains, domains)
    names = ["ekfac", "kfac", "identity", *map(_at, DAMPINGS), "half0", "half1"]
    matrices = {name: torch.zeros(shape, dtype=torch.float64) for name in names}
    norms = torch.zeros((2, len(layers), domains), dtype=torch.float64)
    moments = torch.zeros((2, len(layers)), dtype=torch.float64)
    for number, layer in enumerate(layers):
        factor = factors[layer.name] if number % peers.size == peers.rank else None
        # Gathering a layer's shards needs every worker, what follows its own.
        v, g = (_turned(side, layer, factor, domains, peers.device) for side in (held, train))
        if factor is None:
            continue
        for name, matrix in _of_layer(factor, v, g, damping).items():
            matrices[name][number] = matrix.cpu()
        norms[0, number], norms[1, number] = g.squares().cpu(), v.squares().cpu()
        mean, variance = factor.eigenvalues.mean(), factor.eigenvalues.var()
        moments[0, number] = mean.cpu()
        moments[1, number] = (variance / mean.square().clamp(min=1e-30)).cpu()
    if diagonal is not None:
        matrices["adam"] = _diagonal(layers, train, held, domains, diagonal)
    for total in (*matrices.values(), norms, moments):
        total.copy_(peers.summed(total.to(peers.device)).cpu())
    return Scores(matrices, norms[0], norms[1], moments[0], moments[1])


def _at(damping: float) -> str:
    return f"ekfac@{damping:g}"


@dataclass(frozen=True, eq=False)
class Turned:
    """Mean gradients of one layer in its eigenbasis, by half: two of [K, o * i].

    `parts` [2, K]: of the judged tokens, those of each half; the mean over all rows is the halves'
    by these weights, so products of the whole need no gradients of their own.
    """

    halves: tuple[Tensor, Tensor]
    parts: Tensor

    def squares(self) -> Tensor:
        """Squared norms [K] of the whole; a rotation leaves them as they are. fp64."""
        found = torch.zeros_like(self.parts[0])
        for a in (0, 1):
            for b in (0, 1):
                inner = (self.halves[a] * self.halves[b]).sum(1).double()
                found += self.parts[a] * self.parts[b] * inner
        return found


def _turned(
    found: Gradients, layer: Layer, factor: Factors | None, domains: int, device: torch.device
) -> Turned:
    """One side's gradients; nothing on a worker whose turn it is not. A collective call."""
    counts = torch.tensor(_counts(found, domains), dtype=torch.float64, device=device)
    halves = []
    for half, count in enumerate(counts):
        sums = found.sums(layer, _keys(domains, half), device)
        if factor is not None:
            sums = factor.rotated(sums).flatten(1) / count.clamp(min=1).float()[:, None]
        halves.append(sums)
    return Turned((halves[0], halves[1]), counts / counts.sum(0).clamp(min=1))


def _of_layer(factor: Factors, v: Turned, g: Turned, damping: float) -> dict[str, Tensor]:
    """The matrices [K', K] of one layer: of all rows, and of each half with itself."""
    ones = torch.ones_like(factor.eigenvalues)
    made = {
        "kfac": _whole(v, g, damped(factor.kronecker, damping)),
        "identity": _whole(v, g, ones),
    }
    for name, each in (("ekfac", damping), *((_at(other), other) for other in DAMPINGS)):
        made[name] = _whole(v, g, damped(factor.eigenvalues, each))
    curvature = damped(factor.eigenvalues, damping).flatten()
    for half in (0, 1):
        made[f"half{half}"] = _product(v.halves[half] / curvature, g.halves[half])
    return made


def _whole(v: Turned, g: Turned, curvature: Tensor) -> Tensor:
    """-<v_i / curvature, g_j> [K', K] of the mean gradients of all rows."""
    found = torch.zeros((len(v.parts[0]), len(g.parts[0])), dtype=torch.float64)
    for a in (0, 1):
        scaled = v.halves[a] / curvature.flatten()
        for b in (0, 1):
            weights = torch.outer(v.parts[a], g.parts[b])
            found += (weights * _product(scaled, g.halves[b])).cpu()
    return found


def _product(v: Tensor, g: Tensor) -> Tensor:
    """-<v_i, g_j> [K', K], fp64."""
    return -(v @ g.mT).double()


def _keys(domains: int, half: int) -> list[Key]:
    return [(domain, half) for domain in range(domains)]


def _counts(found: Gradients, domains: int) -> list[list[float]]:
    """Judged tokens [2, K]."""
    return [[found.tokens.get(key, 0.0) for key in _keys(domains, half)] for half in (0, 1)]


def _diagonal(
    layers: Sequence[Layer],
    train: Gradients,
    held: Gradients,
    domains: int,
    diagonal: Mapping[str, tuple[Tensor, ...]],
) -> Tensor:
    """This worker's part of the influence [L, K', K] through a diagonal preconditioner."""
    made = torch.zeros((len(layers), domains, domains), dtype=torch.float64)
    for number, layer in enumerate(layers):
        scale = torch.cat([part.flatten() for part in diagonal[layer.name]])
        g, v = (_flat(side, layer, domains, len(scale)) for side in (train, held))
        made[number] = -((v * scale) @ g.mT).double()
    return made


def _flat(found: Gradients, layer: Layer, domains: int, size: int) -> Tensor:
    """Mean gradients of all rows as they are sharded here [K, size]."""
    made = torch.zeros((domains, size))
    for (domain, _), parts in found.parts.items():
        made[domain] += torch.cat([part.flatten() for part in parts[layer.name]])
    counts = torch.tensor(_counts(found, domains)).sum(0)
    return made / counts.clamp(min=1)[:, None]


def check(found: Scores, train: Gradients, names: Sequence[str]) -> None:
    """Refuse gradients that say nothing.

    Raises:
        InfluenceError: names the domain whose gradient is 0 or not finite.
    """
    tokens = torch.tensor(_counts(train, len(names))).sum(0)
    sides = (("training", found.norms.sum(0)), ("eval", found.eval_norms.sum(0)))
    for side, norms in sides:
        for name, norm, count in zip(names, norms.sqrt().tolist(), tokens.tolist(), strict=True):
            if not norm < float("inf"):
                raise InfluenceError(f"the {side} gradient of domain '{name}' is {norm}")
            if norm == 0 and (side == "eval" or count):
                raise InfluenceError(
                    f"the {side} gradient of domain '{name}' is 0 in all layers looked at: nothing "
                    "can be said of its influence"
                )


def check_finite(train: Gradients, peers: Peers, names: Sequence[str]) -> None:
    """Refuse gradients with NaN or infinite entries; a collective call.

    Raises:
        InfluenceError: names the domain.
    """
    for (domain, _), layers in train.parts.items():
        mine = all(bool(part.isfinite().all()) for parts in layers.values() for part in parts)
        if not all(peers.gathered(mine)):
            raise InfluenceError(f"the training gradient of domain '{names[domain]}' is not finite")
