"""Soft prompts and adapters by stage on two FSDP2 workers are those on one."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from ranks import on_ranks
from staged import ANTS, promot, same, stage, staged, values
from test_sharded import _run_all, _stop_at_six, _yes
from transformers import AutoModelForCausalLM

from raymix.core.job import Status
from raymix.core.mixture import Unit
from raymix.train import checkpoint
from raymix.train.parts import Part
from raymix.train.worker import Worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

SETTINGS = {"num_virtual_tokens": 3, "lora_r": 4, "eval_steps": 2, "eval_rows": 5}


def _cases(job_of):
    """Training settings and a job, by name. Budgets leave a worker without rows now and then."""
    job, packed = job_of(), job_of(unit=Unit.TOKENS)
    some = {"carriers": ("ants",)}
    after = [stage(job, "lora", 41, ANTS, **some), stage(job, "weights", 57, **some)]
    return {
        "promot": ({}, promot(job, 41, 57)),
        "unfrozen": ({}, promot(job, 41, 57, prompt="train")),
        "checkpointed": ({"gradient_checkpointing": True}, promot(job, 41, 57)),
        "packed": ({"packing": True}, promot(packed, 700, 900)),
        "joint": ({}, staged(job, stage(job, "joint", 57, (0.1, 0.5, 0.4), **some))),
        "lora": ({}, staged(job, stage(job, "lora", 57, **some))),
        "lora-checkpointed": (
            {"gradient_checkpointing": True},
            staged(job, stage(job, "lora", 57, (0.1, 0.5, 0.4), **some)),
        ),
        "after": ({}, staged(job, *after)),
        "before": ({}, staged(job, stage(job, "weights", 41), stage(job, "lora", 41))),
    }


def test_two_workers_equal_one(setup_of, job_of):
    cases = _cases(job_of)
    alone, pairs = [], []
    for training, job in cases.values():
        size = 2 if training.get("packing") else 4
        setting = {**SETTINGS, **training}
        alone.append((setup_of(per_device_train_batch_size=2 * size, **setting), [job]))
        pairs.append((setup_of(per_device_train_batch_size=size, **setting), [job]))
    one = [results[0] for results in _run_all(None, alone)]
    two = on_ranks(2, _run_all, pairs)
    for number, name in enumerate(cases):
        left, (right, other) = one[number], (rank[number][0] for rank in two)
        assert left.status is right.status is Status.DONE, (name, left.error, right.error)
        assert right.metrics == other.metrics
        assert right.realised == left.realised
        assert right.spent.extra == left.spent.extra
        assert [p.step for p in left.curve] == [p.step for p in right.curve]
        for ours, theirs in zip(left.curve, right.curve, strict=True):
            assert ours.metrics.keys() == theirs.metrics.keys()
            losses = [key for key in ours.metrics if key.endswith("loss")]
            found = [[point.metrics[key] for key in losses] for point in (ours, theirs)]
            np.testing.assert_allclose(*found, atol=1e-4, rtol=0, err_msg=name)


def _frozen(world, setup, jobs):
    """Whether weights and prompt of this rank's shards were frozen when they were to be."""
    worker, found = Worker(setup, world), []
    for job, kind in jobs:
        held = []

        def report(point, held=held, kind=kind, worker=worker):
            model = worker._models[kind]
            held.append((point.stage, {p: values(model, p) for p in Part if model.named(p)}))
            return True

        # Only rank 0 reports: it is its shards that are looked at.
        result = worker.run(job, report)
        assert result.status is Status.DONE, result.error
        found.append(_what_moved(held))
    return found


def _what_moved(held):
    """Parts that have moved from one report of a stage to the next, by stage."""
    moved = {}
    for (stage_, before), (next_, after) in pairwise(held):
        for part in before:
            local = [
                {n: p.to_local() if hasattr(p, "to_local") else p for n, p in side[part].items()}
                for side in (before, after)
            ]
            if stage_ == next_ and not same(*local):
                moved.setdefault(stage_, set()).add(part)
    return moved


def test_what_is_frozen_does_not_move_on_two(setup_of, job_of):
    setup = setup_of(**{**SETTINGS, "per_device_train_batch_size": 4, "warmup_steps": 0})
    job, cases = job_of(), _cases(job_of)
    jobs = [
        (cases["promot"][1], ("target", False, True)),
        (cases["unfrozen"][1], ("target", False, True)),
        (cases["after"][1], ("target", True, False)),
        (promot(replace(job, trial=2)), ("target", False, True)),
    ]
    found, _ = on_ranks(2, _frozen, setup, jobs)
    weights, adapters, prompt = {Part.WEIGHTS}, {Part.ADAPTERS}, {Part.PROMPT}
    assert found == [
        {0: prompt, 1: weights},
        {0: prompt, 1: weights | prompt},
        {0: adapters, 1: weights},
        {0: prompt, 1: weights},
    ]


def _stop_and_resume(world, straight, stopped, jobs):
    results = []
    for job in jobs:
        whole = Worker(straight, world).run(job, _yes)
        first = Worker(stopped, world).run(job, _stop_at_six)
        results.append((whole, first, Worker(stopped, world).run(replace(job, attempt=1), _yes)))
    return results


def test_resumed_equals_straight_through_on_two(setup_of, job_of, tmp_path):
    setup = setup_of(
        **{**SETTINGS, "per_device_train_batch_size": 4, "eval_steps": 3, "save_steps": 4}
    )
    straight = replace(setup, output_dir=str(tmp_path / "straight"))
    job = job_of()
    turns = staged(
        replace(job, trial=2),
        stage(job, "lora", 40, carriers=("ants", "bees")),
        stage(job, "joint", 40, carriers=("ants",)),
    )
    jobs = [promot(job, 40, 64), promot(replace(job, trial=3), 64, 40), turns]
    for whole, first, second in on_ranks(2, _stop_and_resume, straight, setup, jobs)[0]:
        assert whole.status is second.status is Status.DONE, (whole.error, second.error)
        assert first.status is Status.STOPPED
        assert second.curve == whole.curve
        for name in ("model", "optimizer"):
            left, right = (checkpoint.tensors(Path(r.checkpoint), name) for r in (whole, second))
            assert same(left, right)


def _of_size(setup, size):
    training = setup.training.model_copy(update={"per_device_train_batch_size": size})
    return replace(setup, training=training)


def test_saved_on_two_is_saved_on_one(setup_of, job_of, tmp_path):
    job, cases = job_of(), _cases(job_of)
    small = {"per_device_train_batch_size": 4, "num_virtual_tokens": 3, "lora_r": 4}
    merged = setup_of(**small, merge_lora=True)
    lora = staged(job, stage(job, "lora", 41), stage(job, "weights", 41))
    plan = [
        ("promot", setup_of(**small), cases["promot"][1]),
        ("beside", setup_of(**small), cases["after"][1]),
        ("merged", merged, lora),
    ]
    for side, size in (("two", 4), ("one", 8)):
        made = [
            (_of_size(setup, size), [replace(job, save=str(tmp_path / side / name))])
            for name, setup, job in plan
        ]
        found = on_ranks(2, _run_all, made)[0] if side == "two" else _run_all(None, made)
        assert [[r.status for r in results] for results in found] == [[Status.DONE]] * 3
    ids = torch.arange(4, 24).view(2, 10)
    for name, adapter in (("promot", "prompt"), ("beside", "adapter"), ("merged", None)):
        logits = []
        for side in ("one", "two"):
            folder = tmp_path / side / name
            model = AutoModelForCausalLM.from_pretrained(folder)
            found = [model(ids).logits]
            if adapter:
                tuned = PeftModel.from_pretrained(model, folder / adapter).eval()
                found.append(tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
            logits.append(torch.cat(found, dim=1))
        torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
