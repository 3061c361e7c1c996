"""Adapters as what a stage moves: with weights before or after, and for some domains only."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from staged import ANTS, Watch, same, stage, staged, values
from transformers import AutoModelForCausalLM

from raymix.core.job import Status
from raymix.data.batches import item_of
from raymix.data.store import open_table
from raymix.train.config import Training
from raymix.train.measure import micro
from raymix.train.parts import Part
from raymix.train.use import PLAIN, uses
from raymix.train.worker import Worker

KIND = ("target", True, False)


@pytest.fixture
def ran(setup_of):
    """Runs a job; gives the result, the points and the parameters at each point."""

    def run(job, **training):
        worker = Worker(setup_of(**{"lora_r": 4, "warmup_steps": 0, **training}))
        watch = Watch(worker, KIND)
        result = worker.run(job, watch)
        assert result.status is Status.DONE, result.error
        return result, watch, worker._models[KIND]

    return run


def test_weights_after_adapters_move_while_these_stay(ran, job_of):
    job = job_of()
    job = staged(job, stage(job, "lora", 40), stage(job, "weights", 40, restart=True))
    _, watch, model = ran(job, eval_steps=2)
    model.reset(job.seed)
    base, drawn = values(model, Part.WEIGHTS), values(model, Part.ADAPTERS)
    stages = [point.stage for point in watch.points]
    first = [v for v, s in zip(watch.values, stages, strict=True) if s == 0]
    second = [v for v, s in zip(watch.values, stages, strict=True) if s == 1]
    assert all(same(found[Part.WEIGHTS], base) for found in first)
    assert not same(first[-1][Part.ADAPTERS], drawn)
    for found in second:
        assert same(found[Part.ADAPTERS], first[-1][Part.ADAPTERS])
        assert not same(found[Part.WEIGHTS], base)


def test_adapters_after_weights_move_while_these_stay(ran, job_of):
    job = job_of()
    job = staged(job, stage(job, "weights", 40), stage(job, "lora", 40))
    _, watch, model = ran(job)
    first, last = watch.values[0], watch.values[-1]
    model.reset(job.seed)
    assert same(first[Part.ADAPTERS], values(model, Part.ADAPTERS))
    assert not same(first[Part.WEIGHTS], values(model, Part.WEIGHTS))
    assert same(first[Part.WEIGHTS], last[Part.WEIGHTS])
    assert not same(first[Part.ADAPTERS], last[Part.ADAPTERS])


def test_weights_before_adapters_are_trained_as_without_them(ran, job_of, setup_of):
    """Also where adapters have dropout: they are not passed, and draw nothing."""
    job = job_of()
    plain = Worker(setup_of(warmup_steps=0)).run(
        staged(job, stage(job, "weights", 40)), lambda point: True
    )
    job = staged(job, stage(job, "weights", 40), stage(job, "lora", 40, restart=True))
    result, _, _ = ran(job, lora_dropout=0.3)
    ours = result.curve[0].metrics
    for name in ("eval/ants/loss", "eval/bees/loss", "train/loss"):
        assert ours[name] == plain.metrics[name]


def test_a_lora_stage_is_what_use_peft_trains(ran, job_of):
    job = job_of()
    asked = staged(job, stage(job, "lora", 48))
    stages, _, _ = ran(asked)
    whole, _, _ = ran(staged(job, stage(job, "weights", 48)), use_peft=True)
    assert stages.metrics == whole.metrics


def test_rows_that_are_no_carriers_pass_without_adapters(ran, job_of, setup_of, stores):
    job = job_of()
    first = stage(job, "lora", 48, (0.5, 0.5, 0.0), carriers=("ants",))
    result, watch, model = ran(staged(job, first), learning_rate=0.05, eval_steps=2)
    base = Worker(setup_of()).run(job_of(stages=()), lambda point: True)
    for name in ("bees", "cats"):
        found = [point.metrics[f"eval/{name}/loss"] for point in result.curve]
        assert found == pytest.approx([base.metrics[f"eval/{name}/loss"]] * len(found), abs=1e-6)
    assert abs(result.metrics["eval/ants/loss"] - base.metrics["eval/ants/loss"]) > 0.05
    bare = result.metrics["swap/ants/loss"]
    assert bare == pytest.approx(base.metrics["eval/ants/loss"], abs=1e-6)
    assert abs(result.metrics["swap/bees/loss"] - base.metrics["eval/bees/loss"]) > 0.01
    assert len(watch.points) > 1
    # Row by row: with the adapters off it is the model from which they were taken off.
    table = open_table(stores["bees"]["train"])
    plain = AutoModelForCausalLM.from_pretrained(model.path).eval()
    model.module.eval()
    batch = micro(
        [item_of(0, (3,), table)], [table], np.ones(1, np.float32), torch.device("cpu"),
        adapted=False,
    )  # fmt: skip
    logits = plain(batch.input_ids).logits.flatten(0, 1)[batch.index]
    expected = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    torch.testing.assert_close(model.losses(batch), expected, rtol=0, atol=1e-6)


def test_carriers_in_a_stage_of_weights_that_follows(ran, job_of):
    """ProMoT with adapters in the prompt's place; with checkpointing, which passes blocks twice."""
    job = job_of()
    job = staged(
        job,
        stage(job, "lora", 40, ANTS, carriers=("ants",)),
        stage(job, "weights", 64, carriers=("ants",), replay=("ants",), restart=True),
    )
    plain, one, _ = ran(job)
    again, other, _ = ran(job, gradient_checkpointing=True)
    assert same(one.values[0][Part.ADAPTERS], one.values[-1][Part.ADAPTERS])
    for name, value in plain.metrics.items():
        assert again.metrics[name] == pytest.approx(value, abs=1e-6)
    for point in plain.curve:
        assert "swap/ants/loss" in point.metrics
    for name, value in one.values[-1][Part.WEIGHTS].items():
        torch.testing.assert_close(other.values[-1][Part.WEIGHTS][name], value)


def test_use_of_each_stage(job_of):
    job = job_of()
    tuning = Training(use_peft=True)
    plain = staged(job, stage(job, "weights", 8), stage(job, "lora", 8))
    assert uses(plain, tuning) == (PLAIN, PLAIN)
    assert [use.adapted for use in uses(plain, Training())] == [(False,) * 3, (True,) * 3]
    assert [use.swapped for use in uses(plain, Training())] == [None, None]
    some = staged(job, stage(job, "lora", 8, carriers=("bees",)))
    (use,) = uses(some, Training())
    assert use.adapted == (False, True, False)
    assert use.swapped.adapted == (True, False, True)
    assert uses(job, Training()) == (PLAIN,)
    evaluated = replace(job, stages=(), trained=plain.stages)
    assert [use.adapted for use in uses(evaluated, Training())] == [(True,) * 3]
    assert uses(replace(job, stages=()), Training()) == (PLAIN,)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
# torch's compiler warns of what it does itself (non-leaf gradients, deprecated calls).
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_heed_what_moves_and_what_is_passed(setup_of, job_of):
    job, carried = job_of(), {"carriers": ("ants",)}
    job = staged(job, stage(job, "lora", 24, **carried), stage(job, "joint", 24, **carried))
    settings = {"lora_r": 4, "num_virtual_tokens": 3, "warmup_steps": 0}
    plain, compiled = (
        Worker(setup_of(torch_compile=compiled, **settings)).run(job, lambda point: True)
        for compiled in (False, True)
    )
    assert plain.status is compiled.status is Status.DONE, compiled.error
    for ours, theirs in zip(plain.curve, compiled.curve, strict=True):
        for name in (name for name in ours.metrics if name.endswith("loss")):
            assert ours.metrics[name] == pytest.approx(theirs.metrics[name], abs=1e-5), name
