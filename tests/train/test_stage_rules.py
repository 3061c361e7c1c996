"""Stages with LoRA as the weights, with reweighters, of a single step, and without a carrier."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from staged import ANTS, promot, stage, staged
from tiny_tables import DOMAINS

from raymix.core.codec import to_spec
from raymix.core.job import Status
from raymix.core.trial import History, Proposal, Role, Trial
from raymix.reweight.schedule import Schedule
from raymix.study.confirm import Confirm, winner
from raymix.train.parts import Part
from raymix.train.worker import Worker

BEES = (0.0, 1.0, 0.0)


def go_on(point):
    return True


def loss(result, name):
    return result.metrics[f"eval/{name}/loss"]


def test_adapters_that_are_the_weights_are_everybodys(setup_of, job_of):
    worker = Worker(setup_of(use_peft=True, lora_r=4, num_virtual_tokens=3))
    job = promot(job_of(112), 48, 64)
    base = worker.run(replace(job, stages=()), go_on)
    result = worker.run(job, go_on)
    assert result.status is Status.DONE, result.error
    for name in DOMAINS:
        assert loss(result, name) < loss(base, name) - 1e-3, name
    first = [point for point in result.curve if point.stage == 0][-1]
    assert first.metrics["eval/bees/loss"] == pytest.approx(loss(base, "bees"), abs=1e-5)


def test_adapters_of_carriers_beside_adapters_of_all_are_refused(setup_of, job_of):
    job = job_of(64)
    job = staged(job, stage(job, "lora", 32, carriers=("ants",)), stage(job, "weights", 32))
    result = Worker(setup_of(use_peft=True)).run(job, go_on)
    assert result.status is Status.FAILED
    assert "use_peft" in result.error


def test_a_reweighter_draws_only_what_its_stage_is_of(setup_of, job_of):
    shares = dict(zip(DOMAINS, (0.2, 0.3, 0.5), strict=True))
    pushy = to_spec(Schedule(((0, shares),)))
    job = job_of(96)
    job = staged(
        job,
        stage(job, "weights", 48, ANTS, reweighter=pushy),
        stage(job, "weights", 48, (0.0, 0.5, 0.5), reweighter=pushy, restart=True),
    )
    result = Worker(setup_of()).run(job, go_on)
    assert result.status is Status.DONE, result.error
    # Stage 2: 3 to 5, as the reweighter has them; all of ants comes from stage 1.
    assert [part.rows for part in result.realised] == [48, 18, 30]


@pytest.mark.parametrize("rows", [4, 8])
def test_a_stage_of_one_step_trains_in_spite_of_warm_up(setup_of, job_of, rows):
    setup = setup_of(warmup_steps=0.1)
    batch = setup.training.per_device_train_batch_size
    assert rows <= batch
    job = job_of(rows + 32)
    job = staged(job, stage(job, "weights", rows), stage(job, "weights", 32, restart=True))
    base = Worker(setup).run(replace(job, stages=()), go_on)
    result = Worker(setup).run(job, go_on)
    first = [point for point in result.curve if point.stage == 0][-1]
    assert first.step == 1
    assert first.metrics["eval/ants/loss"] != loss(base, "ants")


def test_steps_without_a_carrier_leave_the_prompt_where_it_is(setup_of, job_of):
    worker = Worker(setup_of(num_virtual_tokens=3, save_steps=None))
    job = job_of(96)
    joint = {"carriers": ("ants",)}
    job = staged(
        job,
        stage(job, "joint", 32, ANTS, **joint),
        stage(job, "joint", 64, BEES, **joint),
    )
    found = []

    def keep(point):
        model = worker._models["target", False, True]
        found.append((point.stage, [p.detach().clone() for p in model.named(Part.PROMPT).values()]))
        return True

    result = worker.run(job, keep)
    assert result.status is Status.DONE, result.error
    (before,) = [value for number, value in found if number == 0][-1:]
    assert all(torch.equal(a, b) for a, b in zip(before, found[-1][1], strict=True))


def test_a_study_of_which_every_confirmation_failed_has_its_best_of_the_search(job_of):
    from raymix.core.job import TrainResult

    mixture = job_of(8).stages[0].mixture
    done = TrainResult(Status.DONE, {"eval/ants/loss": 1.0})
    search = Trial(3, "tpe", Proposal(mixture), 0, done, 1.0)
    again = Proposal(mixture, role=Role.CONFIRM, note={"of": 3, "block": 0})
    lost = Trial(4, "confirm", again, 1, TrainResult(Status.FAILED, {}, error="no room"))
    assert np.isnan(lost.score)
    assert winner(History((search, lost)), Confirm(1, 1)) == search
