"""The gradient of each domain in one step, their inner products, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from raymix.core.simplex import Vector
from raymix.train.shard import World, like, local


class DomainGradients:
    """Gradients of the domains' mean losses, this rank's shards of them.

    One copy of the trained parameters for each domain that is present, in fp32, sharded as they
    are: K present domains take K - 1 copies more than a plain step does. In host memory (`host`)
    the device holds two at a time, and each pair of domains is a copy over the bus.
    """

    def __init__(self, parameters: Mapping[str, Tensor], world: World, host: bool) -> None:
        self._parameters, self._world, self._host = parameters, world, host
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._dots: dict[tuple[int, int], Tensor] = {}

    def keep(self, domain: int) -> None:
        """Take what is in `.grad` as the gradient of `domain`, and leave nothing there."""
        found = {n: local(p.grad) for n, p in self._parameters.items() if p.grad is not None}
        for parameter in self._parameters.values():
            parameter.grad = None
        self._kept[domain] = found
        for other, gradient in self._kept.items():
            self._dots[other, domain] = _dot(found, gradient, self._world.device)
        if self._host:
            self._kept[domain] = {name: shard.cpu() for name, shard in found.items()}

    def gram(self, domains: int) -> Vector:
        """Inner products [K, K] over all ranks, NaN for absent domains; a collective call."""
        full = np.full((domains, domains), np.nan)
        if self._dots:
            products = self._world.summed(torch.stack(list(self._dots.values()))).tolist()
            for (i, j), product in zip(self._dots, products, strict=True):
                full[i, j] = full[j, i] = product
        return full

    def drop(self, domains: Sequence[int]) -> None:
        """Forget the gradients of `domains`."""
        for domain in domains:
            self._kept.pop(domain, None)

    def combine(self, weights: Vector) -> None:
        """Put the sum of `weights` [K] times the gradients into `.grad`; absent ones add nothing.

        Nothing is left here.
        """
        total: dict[str, Tensor] = {}
        for domain in list(self._kept):
            part, weight = self._kept.pop(domain), float(weights[domain])
            part = {name: shard.to(self._world.device) for name, shard in part.items()}
            old = [name for name in part if name in total]
            new = {name: shard for name, shard in part.items() if name not in total}
            if old:
                sums = [total[name] for name in old]
                torch._foreach_add_(sums, [part[name] for name in old], alpha=weight)
            if new:
                torch._foreach_mul_(list(new.values()), weight)
            total |= new
        for name, shard in total.items():
            self._parameters[name].grad = like(self._parameters[name], shard)


def _dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Inner product of two gradients' shards, a scalar on the device."""
    both = [name for name in left if name in right]
    dots = [torch.dot(left[n].flatten(), right[n].to(device).flatten()) for n in both]
    if not dots:  # of a domain whose rows do not reach what moves
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(dots).double().sum()
