"""Two FSDP2 workers are one worker."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import on_ranks
from transformers import AutoModelForCausalLM

from raymix.core.codec import to_spec
from raymix.core.job import Status
from raymix.core.mixture import Unit
from raymix.reweight.constant import Constant
from raymix.train.worker import Worker

pytestmark = pytest.mark.slow


def _yes(point):
    return True


def _run_all(world, cases):
    """Each case's result on this rank: cases are (setup, jobs), a worker for each setup."""
    results = []
    for setup, jobs in cases:
        worker = Worker(setup, world)
        results.append([worker.run(job, _yes) for job in jobs])
    return results


def _trajectory(result, name):
    return np.array([point.metrics[name] for point in result.curve])


VARIANTS = {
    "plain": ({"per_device_train_batch_size": 4}, {}),
    "accumulated": (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {},
    ),
    "checkpointed": ({"per_device_train_batch_size": 4, "gradient_checkpointing": True}, {}),
    "packed": ({"per_device_train_batch_size": 1, "packing": True}, {"unit": Unit.TOKENS}),
    "lora": (
        {"per_device_train_batch_size": 4, "use_peft": True, "lora_r": 8, "learning_rate": 0.006},
        {},
    ),
    "untied": ({"per_device_train_batch_size": 4}, {}),
}


def test_two_workers_equal_one_over_50_steps(setup_of, job_of, tmp_path):
    cases, alone = [], []
    for name, (training, jobs) in VARIANTS.items():
        common = {"eval_steps": 1, "eval_rows": 5, "weight_decay": 0.1, **training}
        family = "untied" if name == "untied" else "llama"
        job = job_of(6600 if "unit" in jobs else 397, **jobs)
        cases.append((setup_of(family, **common), [job]))
        common["per_device_train_batch_size"] *= 2
        alone.append((setup_of(family, **common), [job]))
    one = [results[0] for results in _run_all(None, alone)]
    two = on_ranks(2, _run_all, cases)
    for v, name in enumerate(VARIANTS):
        left, (right, other) = one[v], (rank[v][0] for rank in two)
        assert left.status is right.status is Status.DONE, (name, right.error)
        assert right.metrics == other.metrics
        assert right.realised == left.realised
        assert left.spent.steps == right.spent.steps >= 50
        for metric in ("train/loss", "eval/ants/loss", "eval/cats/loss"):
            ours, theirs = _trajectory(left, metric), _trajectory(right, metric)
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0, err_msg=name)
            assert ours[0] - ours[-1] > 0.05, name


def _stop_at_six(point):
    return point.step < 6


def _stop_and_resume(world, straight, stopped, job):
    """Results and checkpoints of a run straight through and of one that stops on its way."""
    whole = Worker(straight, world).run(job, _yes)
    first = Worker(stopped, world).run(job, _stop_at_six)
    second = Worker(stopped, world).run(replace(job, attempt=1), _yes)
    return whole, first, second


@pytest.mark.parametrize("lora", [False, True])
def test_resumed_equals_straight_through_on_two(lora, setup_of, job_of, tmp_path):
    """Bit for bit, on the same two ranks; a third run goes on alone and stays close."""
    setup = setup_of(
        per_device_train_batch_size=4,
        eval_steps=3,
        save_steps=4,
        use_peft=lora,
        lora_dropout=0.1 * lora,
    )
    straight = replace(setup, output_dir=str(tmp_path / "straight"))
    job = job_of(160, stage={"reweighter": to_spec(Constant(every=5))})
    for whole, first, second in on_ranks(2, _stop_and_resume, straight, setup, job):
        assert [whole.status, first.status, second.status] == [
            Status.DONE,
            Status.STOPPED,
            Status.DONE,
        ]
        assert first.spent.steps == 6
        assert second.curve == whole.curve
        assert second.realised == whole.realised
        for name in ("model", "optimizer"):
            left, right = (
                (Path(result.checkpoint) / f"{name}.safetensors").read_bytes()
                for result in (whole, second)
            )
            assert left == right
    if not lora:
        newest = max(Path(whole.checkpoint).parent.iterdir())
        shutil.rmtree(newest)
        alone = Worker(replace(straight, training=_double(straight))).run(job, _yes)
        assert alone.curve[:5] == whole.curve[:5]
        for point, other in zip(alone.curve, whole.curve, strict=True):
            assert point.metrics == pytest.approx(other.metrics, abs=1e-5)


def _double(setup):
    return setup.training.model_copy(update={"per_device_train_batch_size": 8})


def test_failures_are_the_same_on_all_ranks_and_survived(setup_of, job_of, tmp_path):
    setup = setup_of(per_device_train_batch_size=4)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    missing = replace(setup, models={"target": "/no/such/model"})
    full = replace(setup_of(per_device_train_batch_size=4, save_steps=5), output_dir=str(blocked))
    probe = to_spec(Constant(every=0))
    cases = [
        (missing, [job_of()]),
        (full, [job_of()]),
        (setup, [job_of(start=str(tmp_path)), job_of(stage={"reweighter": probe}), job_of()]),
        (setup, [job_of(save=str(tmp_path / "final")), job_of(stages=(), test=True)]),
        (setup_of("untied"), [job_of(stages=()), job_of(), job_of(stages=()), job_of()]),
    ]
    one, two = on_ranks(2, _run_all, cases)
    assert _plain(one) == _plain(two)
    errors = [result.error for results in one for result in results]
    assert "cannot load model '/no/such/model'" in errors[0]
    assert "cannot write checkpoint" in errors[1]
    assert "cannot start" in errors[2] or "cannot load" in errors[2]
    assert "every must be at least 1" in errors[3]
    assert errors[4:] == [""] * 7
    base, trained, base_again, trained_again = one[4]
    assert base_again.metrics == base.metrics
    assert trained_again.metrics == trained.metrics
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    alone = Worker(setup).run(job_of(stages=(), start=str(tmp_path / "final")), _yes)
    assert alone.metrics["eval/ants/loss"] == pytest.approx(
        one[3][0].metrics["eval/ants/loss"], abs=1e-6
    )
    assert saved.config.tie_word_embeddings


def _plain(results):
    return [
        [(result.status, result.metrics, result.curve, result.error) for result in row]
        for row in results
    ]
