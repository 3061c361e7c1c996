"""Greedy outputs are those of transformers; shares are counted by hand; nothing else moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_tables import write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from raymix.core.codec import from_json, to_json
from raymix.core.errors import TrainingError
from raymix.core.job import Status
from raymix.data.leak import Asked, Format, Prompts
from raymix.train.config import Setup
from raymix.train.leak import greedy, leak_of, leaks
from raymix.train.pretrained import load
from raymix.train.shard import World
from raymix.train.use import PLAIN
from raymix.train.worker import Worker

LIMIT = 9


def prompts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 60, size).astype(np.int32) for size in rng.integers(1, 14, count)]


def generated(folder, asked, ends, limit=LIMIT):
    """What transformers generates after each prompt alone, without what ended it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outputs = []
    for prompt in asked:
        ids = torch.tensor(prompt[None], dtype=torch.long)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=list(ends),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        outputs.append(found[:-1] if found[-1] in ends else found)
    return outputs


def loaded(setup, folder):
    model = load(folder, setup.training, World(), lora=False, trust=False)
    model.module.eval()
    return model


@pytest.mark.parametrize("family", ["untied", "gemma2", "gemma3", "gpt2"])
def test_greedy_is_what_transformers_generates(family, setup_of, model_folder):
    folder, asked = model_folder(family), prompts(40)
    model = loaded(setup_of(family), folder)
    free = generated(folder, asked, [63])
    # Tokens that the model says late, so that outputs end at once, on their way and never.
    late = {output.index(output[-1]): output[-1] for output in free if output}
    ends = [late[max(late)], free[0][0], 63]
    truth = generated(folder, asked, ends)
    assert len({len(output) for output in truth}) > 2
    assert greedy(model, asked, LIMIT, ends) == truth
    for prompt, output in zip(asked[:5], truth, strict=False):
        assert greedy(model, [prompt], LIMIT, ends) == [output]
    assert greedy(model, [], LIMIT, ends) == []


@pytest.fixture
def leaking(tmp_path):
    """Prompts of `bees` (kept and bare) and `cats` (kept), looking for w10 to w29 said once."""

    def make(**fields):
        sizes = {"bees-kept": 20, "bees-bare": 7, "cats-kept": 11}
        paths = {}
        for seed, (name, count) in enumerate(sizes.items()):
            rows = [(p.tolist(), [0] * len(p)) for p in prompts(count, seed)]
            paths[name] = write_rows(tmp_path / f"{name}.arrow", name[:4], name[5:], rows)
        asked = (
            Asked("bees", paths["bees-kept"], paths["bees-bare"], 20, 7, 0, 0.0),
            Asked("cats", paths["cats-kept"], None, 11, 0, 0, 0.0),
        )
        made = Prompts("ants", Format(pattern=r"(w[1-4]\d ?)+"), None, 2, (3,), 1.0, asked, (), {})
        return replace(made, **fields)

    return make


def test_the_share_of_outputs_that_fit(setup_of, leaking, model_folder):
    asked = leaking()
    setup = replace(setup_of(per_device_eval_batch_size=5), leak=asked)
    folder = model_folder("llama")
    model = loaded(setup, folder)
    found = leaks(model, leak_of(setup, folder, ("ants", "bees", "cats")), PLAIN)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for seed, (name, count) in enumerate(
        {"bees/format_leak": 20, "bees/format_leak_bare": 7, "cats/format_leak": 11}.items()
    ):
        outputs = generated(folder, prompts(count, seed), [3], 2)
        fits = [asked.format.fits(tokenizer.decode(output)) for output in outputs]
        assert found.pop(f"eval/{name}") == sum(fits) / count
        assert seed or 0 < sum(fits) < count
    assert found == {}
    assert model.module.training
    # A job that knows only some of the domains is asked about these.
    assert set(leaks(model, leak_of(setup, folder, ("ants", "cats")), PLAIN)) == {
        "eval/cats/format_leak"
    }
    assert leaks(model, None, PLAIN) == {}


def test_the_models_own_ends_are_ends_too(setup_of, leaking, model_folder):
    """The tiny model's description names token 3, whatever the prompts' template ends with."""
    setup, folder = replace(setup_of(), leak=leaking(stops=(), max_new_tokens=1)), "llama"
    model = loaded(setup, model_folder(folder))
    leak = leak_of(setup, model_folder(folder), ("ants", "bees", "cats"))
    before = leaks(model, leak, PLAIN)
    model.module.generation_config.eos_token_id = list(range(10, 50))
    assert max(before.values()) > 0
    assert set(leaks(model, leak, PLAIN).values()) == {0.0}


def test_each_evaluation_measures_it_and_the_training_stays_as_it_was(
    setup_of, job_of, leaking, keep_points
):
    setup = setup_of(eval_steps=6, lora_dropout=0.1, use_peft=True)
    job = job_of(160)
    plain = Worker(setup).run(job, keep_points)
    result = Worker(replace(setup, leak=leaking())).run(job, keep_points)
    assert result.status is plain.status is Status.DONE, result.error
    assert [point.step for point in result.curve] == [6, 12, 18, 20]
    for point, other in zip(result.curve, plain.curve, strict=True):
        leak = {k: v for k, v in point.metrics.items() if "format_leak" in k}
        assert len(leak) == 3
        assert {**other.metrics, **leak} == point.metrics
    assert result.spent.extra == plain.spent.extra == 0
    assert result.spent.tokens == plain.spent.tokens


def test_prompts_reach_workers_as_json(setup_of, leaking):
    setup = replace(setup_of(), leak=leaking())
    assert from_json(Setup, to_json(setup)) == setup


def test_the_base_model_is_measured_too(setup_of, job_of, leaking, keep_points):
    result = Worker(replace(setup_of(), leak=leaking())).run(job_of(stages=()), keep_points)
    assert len([name for name in result.metrics if "format_leak" in name]) == 3


def test_prompts_of_another_vocabulary_are_refused(setup_of, job_of, leaking, tmp_path):
    path = write_rows(tmp_path / "odd.arrow", "bees", "kept", [([4, 999], [0, 0])])
    asked = leaking(asked=(Asked("bees", path, None, 1, 0, 0, 0.0),))
    result = Worker(replace(setup_of(), leak=asked)).run(job_of(stages=()), lambda point: True)
    assert result.status is Status.FAILED
    assert "token 999 of domain 'bees' (kept) is not in the vocabulary" in result.error


def test_a_tokenizer_that_is_not_there_is_named(setup_of, leaking, tmp_path):
    setup = replace(setup_of(), leak=leaking(), tokenizer=str(tmp_path / "none"))
    with pytest.raises(TrainingError, match="cannot load tokenizer"):
        leak_of(setup, setup.models["target"], ("bees",))
