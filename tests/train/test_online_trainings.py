"""The methods themselves in real trainings of a tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import on_ranks
from scripted import held_out, steered
from tiny_tables import DOMAINS

from raymix.core.job import Status
from raymix.core.signals import Decision
from raymix.reweight.doge import DoGE
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.reweight.schedule import Schedule
from raymix.train.worker import Worker

METHODS = {
    "doremi": DoReMi(),
    "doremi-unclipped": DoReMi(clip=False, sampling="proportional", same_step=True, every=2),
    "doge": DoGE(mu=0.01),
    "doge-target": DoGE(mu=0.01, target="cats", same_step=False),
    "mos": MoS(every=3, rewards=("transferability", "difficulty", "trajectory"), relax=0.5),
    "mospec": MoS(objective="pg", every=3, lr=1e-2, target="cats"),
}


def job_for(name, job_of, model_folder, **fields):
    method = METHODS[name]
    job = job_of(160, reference=model_folder("llama"), **fields)
    return steered(held_out(job, "cats") if method.targets else job, method)


def stop_at_ten(point):
    return point.step < 10


@pytest.mark.parametrize("name", METHODS)
def test_stopped_and_resumed_is_straight_through(
    name, setup_of, job_of, keep_points, tmp_path, model_folder
):
    setup = setup_of(save_steps=4, eval_steps=5)
    job = job_for(name, job_of, model_folder)
    whole = replace(setup, output_dir=str(tmp_path / "straight"))
    straight = Worker(whole).run(job, keep_points)
    assert straight.status is Status.DONE, straight.error
    assert Worker(setup).run(job, stop_at_ten).spent.steps == 10
    resumed = Worker(setup).run(replace(job, attempt=1), keep_points)
    assert resumed.curve == straight.curve
    assert resumed.mean_mixture == straight.mean_mixture
    left, right = (
        (Path(r.checkpoint) / "model.safetensors").read_bytes() for r in (straight, resumed)
    )
    assert left == right
    # The method has moved something, and only what it may.
    mean = straight.mean_mixture.array()
    begun = job.stages[0].mixture.array()
    assert abs(mean - begun).max() > 1e-3
    if METHODS[name].targets:
        assert mean[2] == 0
        assert straight.realised[2].rows == 0


def test_a_schedule_that_was_learned_is_replayed_bit_for_bit(setup_of, job_of, keep_points):
    setup = setup_of(eval_steps=1, eval_rows=4)
    method = METHODS["mos"]
    learned = Worker(setup).run(steered(job_of(160), method), keep_points)
    assert learned.status is Status.DONE, learned.error
    shares = [[p.metrics[f"mix/{n}/share"] for n in DOMAINS] for p in learned.curve]
    assert len({tuple(s) for s in shares}) > 4
    # Reports come after a step's update: they tell the mixture of the next step.
    space = job_of(160).space
    first, _ = method.init(space, 20, 3)
    assert isinstance(first, Decision)
    points = [(0, first.sampling.as_dict())]
    for point, share in zip(learned.curve, shares, strict=True):
        if point.step % method.every == 0 and point.step < 20:
            points.append((point.step, dict(zip(DOMAINS, share, strict=True))))
    replayed = Worker(setup).run(steered(job_of(160), Schedule(tuple(points))), keep_points)
    for ours, theirs in zip(learned.curve, replayed.curve, strict=True):
        told = {k: v for k, v in ours.metrics.items() if not k.startswith("reweight/")}
        assert told == theirs.metrics
    assert replayed.realised == learned.realised
    assert np.isclose(sum(d.share for d in learned.realised), 1.0)


def _run_all(world, setup, jobs):
    worker = Worker(setup, world)
    return [worker.run(job, lambda point: True) for job in jobs]


@pytest.mark.slow
def test_two_workers_equal_one(setup_of, job_of, model_folder):
    jobs = [replace(job_for(name, job_of, model_folder), trial=n) for n, name in enumerate(METHODS)]
    one = _run_all(None, setup_of(eval_steps=4, per_device_train_batch_size=8), jobs)
    two = on_ranks(2, _run_all, setup_of(eval_steps=4, per_device_train_batch_size=4), jobs)
    for name, left, right, other in zip(METHODS, one, *two, strict=True):
        assert left.status is right.status is Status.DONE, (name, right.error)
        assert right.metrics == other.metrics
        assert left.realised == right.realised
        means = [result.mean_mixture.array() for result in (left, right)]
        np.testing.assert_allclose(*means, atol=1e-5, err_msg=name)
        for ours, theirs in zip(left.curve, right.curve, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-5), name
