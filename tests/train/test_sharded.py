"""Two FSDP2 workers are one worker."""

import numpy as np
import pytest
from ranks import on_ranks

from raymix.core.job import Status
from raymix.core.mixture import Unit
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
            print(name, metric, ours[0], ours[-1], np.abs(ours - theirs).max())
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0, err_msg=name)
            assert ours[0] - ours[-1] > 0.05, name
