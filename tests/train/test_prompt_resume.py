"""Stop-and-resume equals straight through, in the middle of stages of every kind."""

from dataclasses import replace
from pathlib import Path

import pytest
from scripted import Scripted
from staged import ANTS, promot, same, stage, staged
from test_resume import StopAt

from raymix.core.codec import to_spec
from raymix.core.job import Status
from raymix.core.mixture import Unit
from raymix.core.signals import Signal
from raymix.train import checkpoint
from raymix.train.worker import Worker

HALF = ("ants",)


def _jobs(job_of):
    job, packed = job_of(), job_of(unit=Unit.TOKENS)
    return {
        "promot": promot(job),
        "packed": promot(packed, 1200, 1500),
        "unfrozen": staged(
            job, stage(job, "prompt", 48, ANTS, carriers=HALF), stage(job, "joint", 64)
        ),
        "lora-first": staged(
            job,
            stage(job, "lora", 48, ANTS, carriers=HALF),
            stage(job, "weights", 64, carriers=HALF, restart=True),
        ),
        "weights-first": staged(job, stage(job, "weights", 48), stage(job, "lora", 64)),
        "turns": staged(
            job,
            stage(job, "lora", 40),
            stage(job, "joint", 40, carriers=HALF),
            stage(job, "lora", 40, prompt="frozen", carriers=HALF),
        ),
    }


KINDS = ("promot", "packed", "unfrozen", "lora-first", "weights-first", "turns")


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_straight_through(kind, setup_of, job_of, keep_points, tmp_path):
    """Dies three times, in another stage or at another place of it each time."""
    job = _jobs(job_of)[kind]
    setup = setup_of(
        save_steps=2,
        eval_steps=2,
        num_virtual_tokens=3,
        lora_r=4,
        lora_dropout=0.1,
        packing=kind == "packed",
        per_device_train_batch_size=4 if kind == "packed" else 8,
    )
    straight = Worker(replace(setup, output_dir=str(tmp_path / "straight"))).run(job, keep_points)
    assert straight.status is Status.DONE, straight.error
    assert len({point.stage for point in straight.curve}) == len(job.stages)
    died = set()
    for _stops in range(3):
        stop = StopAt(3)
        with pytest.raises(KeyboardInterrupt):
            Worker(setup).run(job, stop)
        newest = sorted((tmp_path / "out/checkpoints/trial-1").glob("step-*"))[-1]
        died.add(checkpoint.peek(newest)["course"]["stage"])
    resumed = Worker(setup).run(replace(job, attempt=3), keep_points)
    assert died >= {0, 1}
    assert resumed.status is Status.DONE, resumed.error
    assert resumed.curve == straight.curve
    assert resumed.realised == straight.realised
    assert resumed.spent.extra == straight.spent.extra
    for name in ("model", "optimizer"):
        left, right = (
            checkpoint.tensors(Path(result.checkpoint), name) for result in (straight, resumed)
        )
        assert same(left, right)


def test_rows_that_were_charged_are_not_charged_again_after_a_plain_stage(
    setup_of, job_of, keep_points, reference, tmp_path
):
    """Reweighted, plain, reweighted: it dies in the plain stage, which has no steering state."""
    job = job_of(reference=reference)
    spec = to_spec(Scripted(frozenset({Signal.EXCESS_LOSS}), every=2))
    again = {"reweighter": spec, "replay": ("ants", "bees", "cats"), "restart": True}
    job = staged(
        job,
        stage(job, "weights", 48, reweighter=spec),
        stage(job, "weights", 48),
        stage(job, "weights", 48, **again),
    )
    setup = setup_of(save_steps=2, eval_steps=5)
    straight = Worker(replace(setup, output_dir=str(tmp_path / "straight"))).run(job, keep_points)
    with pytest.raises(KeyboardInterrupt):
        Worker(setup).run(job, StopAt(3))
    resumed = Worker(setup).run(replace(job, attempt=1), keep_points)
    assert resumed.status is Status.DONE, resumed.error
    assert resumed.curve == straight.curve
    assert resumed.spent.extra == straight.spent.extra > 0


def test_a_branch_goes_on_with_stages_that_move_other_parts(
    setup_of, job_of, keep_points, tmp_path
):
    """The trunk's first stage is shared; what it does not know starts as it would have."""
    job = job_of()
    first = stage(job, "lora", 40)
    rest = stage(job, "joint", 40, restart=True)
    setup = setup_of(num_virtual_tokens=3, lora_r=4)
    other = stage(job, "weights", 40, restart=True)
    trunk = Worker(setup).run(replace(staged(job, first, other), turn=True), keep_points)
    assert trunk.status is Status.DONE, trunk.error
    whole = replace(staged(job, first, rest), trial=2)
    straight = Worker(setup).run(whole, keep_points)
    branch = replace(whole, trial=3, branch=trunk.diagnostics["turn"])
    found = Worker(setup).run(branch, keep_points)
    assert found.status is Status.DONE, found.error
    assert found.metrics == straight.metrics
