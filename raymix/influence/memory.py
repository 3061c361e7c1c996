"""What the curvature of layers takes in memory, and which layers are dealt with at once.

One worker holds, in fp32, for a group of layers: a covariance (later its eigenvectors, in its
place) for each distinct input of `i` features and for each output of `o`, and `o * i` eigenvalues:

    bytes = 4 * (sum over inputs of i^2 + sum over layers of (o^2 + o * i)) + 24 * max(i, o)^2

The last term is the workspace of one eigendecomposition in fp64. Where that is more than there is,
layers are dealt with in groups; each group costs two more passes over the rows. When a layer's
products are taken its gradients are there too, whole, as they are and rotated: about 27 * K * o * i
bytes. Gradients are sharded as the model is and held in host memory: 2 halves * 2 splits * K *
parameters * 4 bytes, over all workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from raymix.core.errors import InfluenceError

_FLOAT, _WORKSPACE = 4, 24
_SIDES, _HALVES = 2, 2
_PRODUCTS = 27
"""Bytes for each weight and domain, seen while the products of a layer were taken."""


@dataclass(frozen=True)
class Shape:
    """A linear layer's size: `out` rows, `columns` of its weight and, where it has one, its bias.

    Layers of equal `source` are given the very same input, so they share its covariance.
    """

    name: str
    source: str
    out: int
    columns: int


S = TypeVar("S", bound=Shape)


def factor_bytes(shapes: Sequence[Shape]) -> int:
    """Peak memory of the curvature of `shapes` on one worker."""
    inputs = {shape.source: shape.columns**2 for shape in shapes}
    held = sum(inputs.values()) + sum(s.out**2 + s.out * s.columns for s in shapes)
    largest = max((max(s.out, s.columns) for s in shapes), default=0)
    return _FLOAT * held + _WORKSPACE * largest**2


def gradient_bytes(shapes: Sequence[Shape], domains: int) -> int:
    """Memory of all held gradients, over all workers."""
    parameters = sum(shape.out * shape.columns for shape in shapes)
    return _FLOAT * _SIDES * _HALVES * domains * parameters


def product_bytes(shapes: Sequence[Shape], domains: int) -> int:
    """Memory of the largest layer's gradients while its products are taken, on one worker."""
    return _PRODUCTS * domains * max((s.out * s.columns for s in shapes), default=0)


def plan_groups(shapes: Sequence[S], limit: int) -> list[tuple[S, ...]]:
    """Cut `shapes`, in their order, into as few groups as fit into `limit` bytes.

    Raises:
        InfluenceError: a layer on its own does not fit.
    """
    groups: list[list[S]] = []
    for shape in shapes:
        if factor_bytes([shape]) > limit:
            raise InfluenceError(
                f"the curvature of layer '{shape.name}' takes {factor_bytes([shape]) / 1e9:.2f} GB "
                f"but influence.max_memory_gb leaves {limit / 1e9:.2f}; choose other layers "
                "(influence.layers)"
            )
        if groups and factor_bytes([*groups[-1], shape]) <= limit:
            groups[-1].append(shape)
        else:
            groups.append([shape])
    return [tuple(group) for group in groups]
