"""Strategies in real trainings: one stage is multi-task, and a stop in stage 2 changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_tables import DOMAINS

from raymix.core.job import Status
from raymix.core.mixture import Mixture, Unit
from raymix.strategy import DMT, MixedSequential, MultiTask, ProMoT, Sequential
from raymix.train.local import LocalRunner
from raymix.train.worker import Worker


def ordered(job, strategy, mixture=None):
    (plain,) = job.stages
    return replace(job, stages=strategy.stages(mixture or plain.mixture, plain.budget, {}))


def files(result):
    folder = Path(result.checkpoint)
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")]


def trained(setup, job):
    points = []
    runner = LocalRunner(setup)
    (result,) = runner.run([job], lambda trial, point: points.append(point) or True)
    assert result.status is Status.DONE, result.error
    return result, points


@pytest.mark.parametrize(
    ("strategy", "weights"),
    [
        (Sequential((DOMAINS,)), (0.5, 0.3, 0.2)),
        (Sequential(DOMAINS, replay=0.5), (0.0, 1.0, 0.0)),
        (MixedSequential("ants"), (0.0, 0.6, 0.4)),
        (DMT("cats", k=1.0), (0.7, 0.3, 0.0)),
        (DMT(("ants", "bees"), k=0.0), (0.7, 0.3, 0.0)),
        (ProMoT("ants"), (0.0, 0.6, 0.4)),
    ],
    ids=str,
)
def test_one_stage_is_multi_task_bit_for_bit(strategy, weights, setup_of, job_of, tmp_path):
    job = job_of(83, keep=True)
    mixture = Mixture(DOMAINS, weights)
    found = []
    for name, order in (("one", strategy), ("other", MultiTask())):
        setup = replace(setup_of(), output_dir=str(tmp_path / name))
        found.append(trained(setup, ordered(job, order, mixture)))
    (one, points), (other, others) = found
    assert files(one) == files(other)
    assert points == others
    assert one.realised == other.realised


def test_stages_are_trained_in_their_order(setup_of, job_of):
    job = ordered(job_of(320), DMT(("bees", "cats"), k=0.25))
    first, second = job.stages
    result, points = trained(setup_of(), job)
    assert [p.stage for p in points] == [0, 1]
    assert result.realised[0].rows == round(second.mixture.weights[0] * second.budget.amount)
    assert [d.unique_rows for d in result.realised[1:]] == [
        round(w * first.budget.amount) for w in first.mixture.weights[1:]
    ]
    assert result.spent.rows == 320
    # The schedule starts anew: at either end it has come down to its last step.
    rates = [p.metrics["train/lr"] for p in points]
    assert max(rates) < 0.2 * 3e-3
    assert points[0].metrics["mix/ants/share"] == 0.0
    learned = points[0].metrics["eval/bees/loss"] - points[1].metrics["eval/bees/loss"]
    assert np.isfinite(learned)


class StopIn:
    """Kills the process's job at its second report in stage `number`, as a dying worker would."""

    def __init__(self, number):
        self.number, self.left = number, 2

    def __call__(self, point):
        self.left -= point.stage == self.number and point.progress < 1.0
        if self.left == 0:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("unit", [Unit.EXAMPLES, Unit.TOKENS])
@pytest.mark.parametrize(
    "strategy", [DMT(("ants", "bees"), k=0.5), Sequential(DOMAINS, 0.2, restart=False)], ids=str
)
def test_resumed_in_a_later_stage_equals_straight_through(
    strategy, unit, setup_of, job_of, keep_points, tmp_path
):
    setup = setup_of(save_steps=3, eval_steps=2)
    job = ordered(job_of(160 if unit is Unit.EXAMPLES else 2000, unit), strategy)
    straight = Worker(replace(setup, output_dir=str(tmp_path / "straight"))).run(job, keep_points)
    assert straight.status is Status.DONE, straight.error
    assert {p.stage for p in straight.curve} == set(range(len(job.stages)))
    with pytest.raises(KeyboardInterrupt):
        Worker(setup).run(job, StopIn(1))
    resumed = Worker(setup).run(replace(job, attempt=1), keep_points)
    assert files(resumed) == files(straight)
    assert resumed.metrics == straight.metrics
    assert resumed.curve == straight.curve
    assert resumed.realised == straight.realised
