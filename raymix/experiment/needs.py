"""What measuring influence takes, on paper: layers, memory, passes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from raymix.core.errors import ConfigError
from raymix.data.prepare import Prepared
from raymix.experiment.config import Experiment
from raymix.influence.memory import Shape, factor_bytes, gradient_bytes, plan_groups, product_bytes

_STATE = 16
"""Bytes of a weight in training: fp32 value, gradient and Adam's two moments."""


@dataclass(frozen=True)
class Needs:
    """What one measurement of influence takes.

    Attributes:
        layers: linear layers looked at; `weights`: in them.
        factors: bytes of their whole curvature; `group`: of the largest layer group, on one worker.
        groups: of layers, dealt with one after another; `limit`: bytes that a group may take, None:
            half of what is free when it is measured, here taken to hold all layers.
        gradients: bytes of all held gradients, in host memory over all workers.
        workers: that share gradients and the trained model.
        products: bytes of the largest layer's gradients, whole, on the worker whose turn it is.
        parameters: of the model; `state`: bytes of it on one worker in training.
        rows: training rows whose gradients are taken, in all.
    """

    layers: int
    weights: int
    factors: int
    group: int
    groups: int
    limit: int | None
    gradients: int
    workers: int
    parameters: int
    state: int
    products: int
    rows: int

    @property
    def passes(self) -> float:
        """Training passes over `rows`; one over the eval rows comes on top.

        A backward pass to the activations alone is half of one that has the weights' gradients, and
        a forward pass costs as much: for each group of layers 2/3 for the covariances and 2/3 for
        the eigenvalues, the first time with the domains' gradients for another 2/3.
        """
        return (4 * self.groups + 2) / 3


def needs(experiment: Experiment, prepared: Prepared) -> Needs:
    """What a measurement on the experiment's model takes; loads torch, but no weights.

    Raises:
        ConfigError, InfluenceError: the model cannot be described, no layer matches, or one does
            not fit into `influence.max_memory_gb`.
    """
    from raymix.experiment.sketch import sketch

    settings, workers = experiment.influence, experiment.cluster.num_workers
    drawn = sketch(experiment)
    shapes = drawn.shapes
    limit = None if settings.max_memory_gb is None else int(settings.max_memory_gb * 1e9)
    groups: list[tuple[Shape, ...]] = [shapes]
    if limit is not None:
        groups = plan_groups(shapes, limit)
    domains = len(experiment.names)
    return Needs(
        layers=len(shapes),
        weights=sum(shape.out * shape.columns for shape in shapes),
        factors=factor_bytes(shapes),
        group=max(map(factor_bytes, groups)),
        groups=len(groups),
        limit=limit,
        gradients=gradient_bytes(shapes, domains),
        products=product_bytes(shapes, domains),
        workers=workers,
        parameters=drawn.parameters,
        # What does not train has neither gradient nor moments.
        state=(_STATE * drawn.trained + 4 * (drawn.parameters - drawn.trained)) // workers,
        rows=sum(min(domain.rows, settings.train_rows) for domain in prepared.domains),
    )


def check_influence(experiment: Experiment, prepared: Prepared) -> None:
    """Refuse layers that are not there or do not fit, before hours of training.

    Raises:
        InfluenceError: says which.
    """
    # A model that cannot be drawn without weights may be trained all the same.
    with suppress(ConfigError):
        needs(experiment, prepared)
