"""Two FSDP2 workers generate what one does, though one of them may have nothing to ask."""

from dataclasses import replace

import numpy as np
import pytest
from ranks import on_ranks
from test_leak import LIMIT, prompts
from tiny_tables import write_rows

from raymix.core.job import Status
from raymix.data.leak import Asked, Format, Prompts
from raymix.train.leak import greedy
from raymix.train.pretrained import load
from raymix.train.shard import World
from raymix.train.worker import Worker

pytestmark = pytest.mark.slow


def _measured(world, setup, job):
    result = Worker(setup, world).run(job, lambda point: True)
    assert result.status is Status.DONE, result.error
    return [{k: v for k, v in p.metrics.items() if "leak" in k} for p in result.curve]


@pytest.mark.parametrize("batch", [4, 100])
def test_two_workers_measure_what_one_does(batch, setup_of, job_of, tmp_path):
    """With batches of 4 the work is shared unevenly, with one of 100 one worker has none."""
    rows = [(p.tolist(), [0] * len(p)) for p in prompts(17)]
    path = write_rows(tmp_path / "p.arrow", "bees", "kept", rows)
    asked = (Asked("bees", path, None, 17, 0, 0, 0.0),)
    shape = Format(pattern=r"(w[1-4]\d ?)+")
    leak = Prompts("ants", shape, None, 3, (3,), 1.0, asked, (), {})
    common = {"eval_steps": 5, "per_device_eval_batch_size": batch}
    one = replace(setup_of("untied", per_device_train_batch_size=8, **common), leak=leak)
    two = replace(setup_of("untied", per_device_train_batch_size=4, **common), leak=leak)
    alone = _measured(World(), one, job_of(160))
    assert len(alone) == 4
    assert any(0 < point["eval/bees/format_leak"] < 1 for point in alone)
    assert on_ranks(2, _measured, two, job_of(160)) == [alone, alone]


def _generated(world, setup, shares, ends):
    model = load(setup.models["target"], setup.training, world, lora=False, trust=False)
    model.module.eval()
    return greedy(model, shares[world.rank], LIMIT, ends)


def test_ranks_with_outputs_of_other_lengths_wait_for_each_other(setup_of):
    setup, asked = setup_of("untied"), prompts(9)
    alone = _generated(World(), setup, [asked], [63])
    ends = [alone[0][0], 63]
    alone = _generated(World(), setup, [asked], ends)
    assert len({len(output) for output in alone}) > 1
    order = np.argsort([len(output) for output in alone], kind="stable")
    # One rank has those that end first, or none.
    for split in (5, 9):
        shares = [[asked[i] for i in order[:split]], [asked[i] for i in order[split:]]]
        first, second = on_ranks(2, _generated, setup, shares, ends)
        assert [*first, *second] == [alone[i] for i in order]
