"""What a training in several stages has forgotten: losses at the ends of its stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from raymix.core.job import Point, Status
from raymix.core.simplex import Vector
from raymix.core.trial import Proposal, Trial


def parted(proposal: Proposal) -> bool:
    """Whether the stages are the two parts of one, cut so that others can branch off it.

    The strategy knows nothing of such stages, and there is nothing to forget between them.
    """
    return proposal.turn is not None or proposal.branch is not None


def several(trial: Trial) -> bool:
    """Whether a told trial got into a second stage of its strategy."""
    curve = trial.result.curve if trial.result is not None else ()
    return not parted(trial.proposal) and any(point.stage > 0 for point in curve)


def ended(trial: Trial) -> dict[int, Point]:
    """The last point of each stage that came to its end, by the stage's number (from 0)."""
    if trial.result is None:
        return {}
    curve, whole = trial.result.curve, trial.result.status is Status.DONE
    if parted(trial.proposal):
        curve = tuple(replace(point, stage=0) for point in curve)
    return ends(curve, whole)


def ends(curve: Sequence[Point], whole: bool) -> dict[int, Point]:
    """The last point of each stage that came to its end, by the stage's number (from 0).

    A stage has ended where a later one reports, the last one where the training is `whole`. A stage
    that drew nothing has no point and is left out.
    """
    last = {point.stage: point for point in curve}
    newest = max(last, default=0)
    return {number: last[number] for number in sorted(last) if whole or number < newest}


def read(metrics: Mapping[str, float], names: Sequence[str], what: str = "eval/{}/loss") -> Vector:
    """The metric `what` of each domain of `names` [K]; NaN where one is missing."""
    return np.array([metrics.get(what.format(name), math.nan) for name in names])


def forgotten(losses: Vector) -> Vector:
    """How much each domain's loss has risen again [K], nats per token, >= 0.

    The forgetting measure of Chaudhry et al. 2018 (arXiv:1801.10112), which is the best
    accuracy that a task had at an earlier stage less that at the end. It is the backward transfer
    of Lopez-Paz and Ranzato 2017 (arXiv:1706.08840) with its sign turned, and against the best
    stage in place of the task's own.

    Departs from the paper: it is of losses, so the lowest is the best. All domains count in it, as
    a stage may train on several, and one may gain from a stage that does not train on it. The end
    is among the stages that are looked at, so a domain that is at its best there has 0; so does
    every domain after a single stage. What was lost against the model before training is no part of
    it: that is the change to the base.

    Args:
        losses: [S, K] at the end of each stage, in their order, without the model before training.
            NaN is unknown: an unknown end makes NaN, an unknown stage before it is passed over.
    """
    values = np.asarray(losses, dtype=np.float64)
    found: Vector = values[-1] - np.fmin.reduce(values, axis=0)
    return found
