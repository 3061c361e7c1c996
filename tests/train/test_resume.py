"""Stop-and-resume equals straight through, and what a checkpoint survives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raymix.core.codec import to_spec
from raymix.core.job import Status
from raymix.core.mixture import Budget, Unit
from raymix.reweight.constant import Constant
from raymix.train.worker import Worker

VARIANTS = {
    "plain": ({}, {}),
    "packed": ({"packing": True, "per_device_train_batch_size": 2}, {"unit": Unit.TOKENS}),
    "accumulated": ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, {}),
    "lora": ({"use_peft": True, "lora_r": 4, "lora_dropout": 0.1}, {}),
    "reweighted": ({}, {"stage": {"reweighter": to_spec(Constant(every=3))}}),
    "two-stages": ({}, {}),
    "staged-anew": ({"warmup_steps": 0.2}, {}),
}


def _job(job_of, variant, jobs):
    amount = 2400 if jobs.get("unit") is Unit.TOKENS else 176
    job = job_of(amount, **jobs)
    if variant == "two-stages":
        second = replace(job_of(64, weights=(0.2, 0.2, 0.6)).stages[0], learning_rate=1e-3)
        job = replace(job, stages=(*job_of(112).stages, second))
    if variant == "staged-anew":
        (first,) = job_of(64).stages
        steered = replace(first, reweighter=to_spec(Constant(every=3)))
        again = replace(steered, replay=("ants",), restart=True)
        job = replace(job, stages=(steered, again, replace(first, budget=Budget(48))))
    return job


def _weights(worker):
    (model,) = worker._models.values()
    return {name: p.detach().clone() for name, p in model.parameters.items()}


def _same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


class StopAt:
    """Kills the process's job after so many points, as a dying worker would."""

    def __init__(self, points):
        self.left = points

    def __call__(self, point):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_straight_through(variant, setup_of, job_of, keep_points, tmp_path):
    training, jobs = VARIANTS[variant]
    setup = setup_of(save_steps=5, eval_steps=6, **training)
    job = _job(job_of, variant, jobs)
    straight_worker = Worker(replace(setup, output_dir=str(tmp_path / "straight")))
    straight = straight_worker.run(job, keep_points)
    assert straight.status is Status.DONE, straight.error
    expected = _weights(straight_worker)
    assert straight.spent.steps > 16

    for _stops in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            Worker(setup).run(job, StopAt(2))
    worker = Worker(setup)
    resumed = worker.run(replace(job, attempt=3), keep_points)

    _same(_weights(worker), expected)
    assert resumed.metrics == straight.metrics
    assert resumed.curve == straight.curve
    assert resumed.realised == straight.realised
    assert resumed.mean_mixture == straight.mean_mixture
    assert (resumed.spent.rows, resumed.spent.tokens) == (
        straight.spent.rows,
        straight.spent.tokens,
    )
    assert _files(resumed, "model") == _files(straight, "model")
    assert _files(resumed, "optimizer") == _files(straight, "optimizer")


def _files(result, name):
    return (Path(result.checkpoint) / f"{name}.safetensors").read_bytes()
