"""Accuracy against what the model says when it is left to speak: batched greedy decoding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import on_ranks

from raymix.core.job import Stage, Status, TrainJob
from raymix.core.mixture import Budget, Mixture, Space
from raymix.data.prepare import prepare
from raymix.data.source import DatasetSpec, DataSpec
from raymix.testing.skills import domain_rows
from raymix.testing.suite import write_suite
from raymix.train.config import Setup, Training
from raymix.train.evaluate import whole_rows
from raymix.train.measure import Micro
from raymix.train.worker import Worker

NAMES = ("cipher", "copy", "talk")
"""Slow, fast, and conversations of two turns made of the fast one's."""


def talks(split):
    """Rows of two exchanges, one after the other."""
    rows = [row["messages"] for row in domain_rows("copy", split, 0)]
    return [{"messages": [*a, *b]} for a, b in zip(rows[0::2], rows[1::2], strict=True)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Model, files by domain and split, prepared data and the space of a budget of 64 steps."""
    folder = tmp_path_factory.mktemp("accuracy")
    paths = write_suite(folder / "suite", 4)
    files = {n: {s: str(paths.data(n, s)) for s in ("train", "eval", "test")} for n in NAMES[:2]}
    files["talk"] = {}
    for split in ("train", "eval", "test"):
        path = folder / f"talk-{split}.jsonl"
        path.write_text("\n".join(map(json.dumps, talks(split))) + "\n")
        files["talk"][split] = str(path)
    datasets = tuple(
        DatasetSpec(domain=n, path=f["train"], eval_path=f["eval"], test_path=f["test"])
        for n, f in files.items()
    )
    cache, model = str(folder / "cache"), str(paths.model)
    spec = DataSpec(datasets=datasets, tokenizer=model, max_length=64, cache_dir=cache)
    prepared = prepare(spec, quiet=True)
    budget = Budget(64 * 32)
    even = Mixture.normalised(NAMES, [1, 1, 1])
    space = Space(prepared.domains, budget, even, (0.0,) * 3, (1.0,) * 3, (float("inf"),) * 3)
    return model, files, prepared, space


@pytest.fixture
def learnt(suite, tmp_path):
    """Trains the suite's model; gives its setup, its job and where it saves the model."""
    model, _, prepared, space = suite

    def make(**training):
        settings = {"learning_rate": 2e-3, "per_device_train_batch_size": 32, "max_length": 64}
        setup = Setup(
            models={"target": model},
            training=Training(**{**settings, **training}),
            stores=prepared.stores,
            output_dir=str(tmp_path / "out"),
        )
        stage = Stage(space.prior, space.budget)
        save = str(tmp_path / "saved")
        return setup, TrainJob(1, (stage,), space, seed=2, test=True, save=save)

    return make


def spoken(model, tokenizer, prompts, most):
    """What greedy decoding adds to each prompt (text), as tokens, `most` at the most."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    made = model.generate(**inputs, do_sample=False, max_new_tokens=most)
    return made[:, inputs["input_ids"].shape[1] :].tolist()


def exact_by_speaking(folder, path):
    """For each row of a file: whether each of its answers is spoken to the last token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts, answers, owners = [], [], []
    rows = [json.loads(line)["messages"] for line in Path(path).read_text().splitlines()]
    for number, messages in enumerate(rows):
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                before = tokenizer.apply_chat_template(
                    messages[:turn], tokenize=False, add_generation_prompt=True
                )
                after = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
                prompts.append(before)
                answers.append(
                    tokenizer(after[len(before) :], add_special_tokens=False)["input_ids"]
                )
                owners.append(number)
    right = np.ones(len(rows), dtype=bool)
    for first in range(0, len(prompts), 50):
        part = slice(first, first + 50)
        most = max(map(len, answers[part]))
        said = spoken(model, tokenizer, prompts[part], most)
        for owner, ours, theirs in zip(owners[part], said, answers[part], strict=True):
            right[owner] &= ours[: len(theirs)] == theirs
    return right


def test_accuracy_is_that_of_greedy_decoding(suite, learnt):
    setup, job = learnt()
    _, files, prepared, _ = suite
    result = Worker(setup).run(job, lambda point: True)
    assert result.status is Status.DONE, result.error
    found = {}
    for name in NAMES:
        for split in ("eval", "test"):
            right = exact_by_speaking(job.save, files[name][split])
            counts = next(p for p in prepared.parts if p.domain == name).counts[split]
            assert counts.kept == len(right)
            found[name, split] = right.mean()
            told = result.metrics[f"{split}/{name}/accuracy"]
            assert told == pytest.approx(right.mean(), abs=1e-12), (name, split)
    # A test worth making: something is right, not all is, and two turns are harder than one.
    assert 0.1 < found["talk", "eval"] < found["copy", "eval"] < 0.95, found


@pytest.mark.parametrize(
    "training", [{"use_peft": True, "lora_r": 4, "learning_rate": 1e-2}, {"bf16": True}]
)
def test_adapters_and_half_precision_have_accuracies_too(training, suite, learnt):
    setup, job = learnt(**training)
    result = Worker(setup).run(replace(job, save=None), lambda point: True)
    assert result.status is Status.DONE, result.error
    for split in ("eval", "test"):
        values = [result.metrics[f"{split}/{name}/accuracy"] for name in NAMES]
        assert all(0 <= value <= 1 for value in values)
        assert max(values) > 0.02


def _trained(world, setup, job):
    return Worker(setup, world).run(job, lambda point: True).curve


@pytest.mark.slow
def test_two_workers_count_the_same_rows(learnt):
    setup, job = learnt(eval_steps=20, per_device_eval_batch_size=7)
    job = replace(job, save=None)
    one = _trained(None, setup, job)
    halves = {"per_device_train_batch_size": 16}
    setup = replace(setup, training=setup.training.model_copy(update=halves))
    for two in on_ranks(2, _trained, setup, job):
        for left, right in zip(one, two, strict=True):
            for name in NAMES:
                key = f"eval/{name}/accuracy"
                # A row of 256: rounding may turn a choice that is as good as even.
                assert left.metrics[key] == pytest.approx(right.metrics[key], abs=1.5 / 256)
    assert one[-1].metrics["eval/copy/accuracy"] > 0.1


def test_one_wrong_token_spoils_its_row_alone():
    nothing = torch.zeros(0, dtype=torch.int64)
    # Three rows of four tokens: judged are two of the first, none of the second, two of the third.
    index = torch.tensor([1, 2, 8, 10])
    batch = Micro(torch.zeros(3, 4, dtype=torch.int64), None, index, nothing, nothing, nothing)
    right = torch.tensor([True, False, True, True])
    assert whole_rows(batch, right).tolist() == [0.0, 1.0, 1.0]
    assert whole_rows(batch, ~right).tolist() == [0.0, 1.0, 0.0]
