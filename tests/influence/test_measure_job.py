"""Influence as a worker measures it: at the end of a training, or later from what was kept."""

from dataclasses import replace

import numpy as np
import pytest
from small_jobs import MEASURE, influence_of, later, matrices, same, yes

from raymix.train.worker import Worker


def test_bf16_gives_nearly_the_same(setup_of, job_of):
    """Forward and backward in bf16, curvature in fp32."""
    found = []
    for bf16 in (False, True):
        setup = setup_of(bf16=bf16)
        job = job_of(keep=True)
        kept = Worker(setup_of(bf16=False)).run(job, yes)
        found.append(influence_of(Worker(setup).run(later(job, kept), yes)))
    for name, matrix in matrices(found[0]).items():
        other = matrices(found[1])[name]
        cosine = (matrix * other).sum() / np.linalg.norm(matrix) / np.linalg.norm(other)
        assert cosine > 0.98, (name, cosine)


@pytest.mark.parametrize("variant", ["plain", "lora", "packed", "qwen2"])
def test_measured_later_is_measured_at_the_end(variant, setup_of, job_of):
    """Of the checkpoint all is there: weights, adapters, the optimizer's moments, the rows."""
    training = {
        "lora": {"use_peft": True, "lora_r": 4},
        "packed": {"packing": True, "per_device_train_batch_size": 2},
    }
    setup = setup_of("qwen2" if variant == "qwen2" else "llama", **training.get(variant, {}))
    job = job_of(keep=True, measure=MEASURE)
    result = Worker(setup).run(job, yes)
    end = influence_of(result)
    assert set(end.estimates) == {"ekfac", "kfac", "identity", "adam"}
    again = Worker(setup).run(later(job, result), yes)
    print(variant, max(same(end, influence_of(again), 1e-6).values()))
    assert again.metrics["eval/ants/loss"] == pytest.approx(result.metrics["eval/ants/loss"])


def test_measuring_changes_nothing_of_the_training(setup_of, job_of, tmp_path):
    setup = setup_of(save_steps=10)
    worker = Worker(setup)
    plain = worker.run(job_of(), yes)
    measured = Worker(replace(setup, output_dir=str(tmp_path / "other"))).run(
        job_of(measure=MEASURE), yes
    )
    assert measured.metrics == plain.metrics
    assert measured.curve == plain.curve
    again = worker.run(job_of(trial=2), yes)
    assert again.metrics == plain.metrics


def test_what_an_influence_says_of_itself(setup_of, job_of):
    result = Worker(setup_of()).run(job_of(measure=MEASURE), yes)
    found = influence_of(result)
    assert found.domains == ("ants", "bees", "cats")
    assert sum(found.shares) == pytest.approx(1.0)
    loss = {drawn.domain: drawn.loss_tokens for drawn in result.realised}
    total = sum(loss.values())
    assert found.shares == pytest.approx([loss[name] / total for name in found.domains])
    rows = {drawn.domain: drawn.rows for drawn in result.realised}
    unique = {drawn.domain: drawn.unique_rows for drawn in result.realised}
    assert found.rows == tuple(unique[name] for name in found.domains)
    assert found.epochs == pytest.approx([rows[n] / unique[n] for n in found.domains])
    assert found.factor_rows == sum(found.rows)
    assert len(found.layers) == len(found.contributions) == 14
    summed = np.sum(found.contributions, axis=0)
    assert summed == pytest.approx(np.asarray(found.estimates["ekfac"]), rel=1e-6)
    assert sum(found.passes.values()) <= 5
