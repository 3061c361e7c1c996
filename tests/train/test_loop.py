import math

import pytest

from raymix.core.job import Status
from raymix.train.worker import Worker


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
def test_families_learn(family, setup_of, job_of, keep_points):
    worker = Worker(setup_of(family, eval_steps=10))
    base = worker.run(job_of(stages=()), keep_points)
    result = worker.run(job_of(320), keep_points)
    assert result.status is Status.DONE, result.error
    for name in ("ants", "bees", "cats"):
        assert result.metrics[f"eval/{name}/loss"] < base.metrics[f"eval/{name}/loss"] - 0.05
    assert [point.step for point in result.curve] == [10, 20, 30, 40]
    assert result.spent.rows == 320
    assert math.isclose(sum(d.share for d in result.realised), 1.0)
