"""What is saved loads with transformers and peft alone, and gives the same logits."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from staged import ANTS, promot, stage, staged
from transformers import AutoModelForCausalLM

from raymix.core.job import Status
from raymix.train.parts import Part
from raymix.train.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = torch.arange(4, 24).view(2, 10)


def _saved(setup, job, folder):
    """The folder of a trained model, and the model as it was when it was saved."""
    worker = Worker(setup)
    result = worker.run(replace(job, save=str(folder)), lambda point: True)
    assert result.status is Status.DONE, result.error
    (model,) = worker._models.values()
    model.module.eval()
    return model


def _ours(model, slots=0, adapted=None):
    """Logits of each token of `IDS` [2, 10, V] with and without what is before or beside it."""
    before = torch.zeros(2, slots, dtype=torch.long)
    ids = torch.cat([before, IDS], dim=1)
    if adapted is not None:
        model.adapt(adapted)
    if slots:
        width = ids.shape[1]
        model._prompt.places = torch.cat([torch.arange(slots), width + torch.arange(slots)])
    with torch.no_grad():
        logits = model.module(ids).logits[:, slots:]
    if slots:
        model._prompt.places = None
    return logits


def _theirs(module, skip=0):
    with torch.no_grad():
        logits = module.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return logits[:, skip:]


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3", "untied"])
def test_promot_is_a_model_and_a_prompt_beside_it(family, setup_of, job_of, tmp_path):
    setup = setup_of(family, num_virtual_tokens=3, prompt_learning_rate=0.5)
    model = _saved(setup, promot(job_of()), tmp_path / "final")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert not list((tmp_path / "final").glob("adapter*"))
    _close(_ours(model), _theirs(base))
    prompted = PeftModel.from_pretrained(base, tmp_path / "final" / "prompt")
    _close(_ours(model, slots=3), _theirs(prompted, skip=3))
    assert float((_ours(model, slots=3) - _ours(model)).abs().max()) > 1e-3
    told = json.loads((tmp_path / "final" / "prompt" / "adapter_config.json").read_text())
    assert told["num_virtual_tokens"] == 3
    assert told["base_model_name_or_path"] == str(tmp_path / "final")


def test_prompt_tuning_alone_is_a_prompt_adapter_of_the_base(setup_of, job_of, tmp_path):
    job, setup = job_of(), setup_of(num_virtual_tokens=3, prompt_tuning_init="random")
    alone = staged(job, stage(job, "prompt", 32, ANTS))
    model = _saved(setup, alone, tmp_path / "final")
    told = json.loads((tmp_path / "final" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == model.path
    assert not (tmp_path / "final" / "config.json").exists()
    base = AutoModelForCausalLM.from_pretrained(model.path)
    prompted = PeftModel.from_pretrained(base, tmp_path / "final")
    _close(_ours(model, slots=3), _theirs(prompted, skip=3))


def test_a_prompt_beside_adapters(setup_of, job_of, tmp_path):
    job, setup = job_of(), setup_of(num_virtual_tokens=3, lora_r=4)
    both = staged(job, stage(job, "prompt", 24, ANTS), stage(job, "lora", 40, prompt="frozen"))
    model = _saved(setup, both, tmp_path / "final")
    base = AutoModelForCausalLM.from_pretrained(model.path)
    _close(_ours(model, adapted=True), _theirs(PeftModel.from_pretrained(base, tmp_path / "final")))
    base = AutoModelForCausalLM.from_pretrained(model.path)
    prompted = PeftModel.from_pretrained(base, tmp_path / "final" / "prompt")
    _close(_ours(model, slots=3, adapted=False), _theirs(prompted, skip=3))


@pytest.mark.parametrize("order", [("lora", "weights"), ("weights", "lora")])
def test_adapters_beside_weights_that_have_moved(order, setup_of, job_of, tmp_path):
    job = job_of()
    job = staged(job, *(stage(job, kind, 40) for kind in order))
    model = _saved(setup_of(lora_r=4), job, tmp_path / "final")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    _close(_ours(model, adapted=False), _theirs(base))
    tuned = PeftModel.from_pretrained(base, tmp_path / "final" / "adapter")
    _close(_ours(model, adapted=True), _theirs(tuned))
    assert float((_ours(model, adapted=True) - _ours(model, adapted=False)).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["llama", "untied"])
@pytest.mark.parametrize("kinds", [("lora",), ("lora", "weights")])
def test_merged_adapters_are_in_a_plain_model(family, kinds, setup_of, job_of, tmp_path):
    job = job_of()
    job = staged(job, *(stage(job, kind, 40) for kind in kinds))
    setup = setup_of(family, lora_r=4, merge_lora=True, learning_rate=0.02)
    model = _saved(setup, job, tmp_path / "final")
    assert not (tmp_path / "final" / "adapter").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    _close(_ours(model, adapted=True), _theirs(merged))
    assert float((_ours(model, adapted=True) - _ours(model, adapted=False)).abs().max()) > 1e-3
    names = set(dict(merged.named_parameters()))
    assert names == set(model.named(Part.WEIGHTS))


def test_adapters_of_a_head_are_merged_where_its_weight_is_its_own(setup_of, job_of, tmp_path):
    head = {"lora_r": 4, "lora_target_modules": ("q_proj", "lm_head"), "learning_rate": 0.02}
    job = job_of()
    job = staged(job, stage(job, "lora", 40))
    model = _saved(setup_of("untied", merge_lora=True, **head), job, tmp_path / "final")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    _close(_ours(model, adapted=True), _theirs(merged))
    refused = {
        ("q_proj", "lm_head"): "model.embed_tokens and lm_head share",
        r".*\.(q_proj|embed_tokens)": "model.embed_tokens and lm_head share",
    }
    for targets, name in refused.items():
        setup = setup_of("llama", **{**head, "lora_target_modules": targets}, use_peft=True)
        result = Worker(setup).run(job, lambda point: True)
        assert result.status is Status.FAILED
        assert f"training.lora_target_modules: {name}" in result.error


def test_a_model_of_another_kind_is_replaced_whole(setup_of, job_of, tmp_path):
    job, folder = job_of(), tmp_path / "final"
    _saved(setup_of(num_virtual_tokens=3), promot(job), folder)
    _saved(setup_of(lora_r=4), staged(job, stage(job, "lora", 16)), folder)
    assert not (folder / "config.json").exists()
    assert not (folder / "prompt").exists()
    _saved(setup_of(), staged(job, stage(job, "weights", 16)), folder)
    assert not (folder / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(folder)
