"""What cannot be trained with soft prompts and adapters is said before any step."""

from dataclasses import replace

import pytest
import torch
from scripted import Scripted
from staged import ANTS, promot, stage, staged
from transformers import AutoModelForCausalLM, OPTConfig

from raymix.core.codec import to_spec
from raymix.core.errors import TrainingError
from raymix.core.job import Diagnostic, Status
from raymix.core.signals import Signal
from raymix.train.config import Training
from raymix.train.pretrained import load
from raymix.train.prompt import extend
from raymix.train.shard import World
from raymix.train.worker import Worker


@pytest.fixture
def refused(setup_of):
    """The words in which a job is refused."""

    def run(job, family="llama", **training):
        result = Worker(setup_of(family, **training)).run(job, lambda point: True)
        assert result.status is Status.FAILED
        assert result.spent.steps == 0
        return result.error

    return run


def test_a_stage_that_moves_nothing(refused, job_of):
    job = job_of()
    for prompt in ("off", "frozen"):
        error = refused(staged(job, stage(job, "prompt", 8, prompt=prompt)))
        assert "stage 1 moves nothing" in error
        assert f"'{prompt}'" in error


def test_carriers_that_are_no_domain(refused, job_of):
    job = job_of()
    error = refused(staged(job, stage(job, "joint", 8, carriers=("antz",))))
    assert "stage 1 has carrier 'antz', which is no domain" in error
    assert "ants" in error
    assert "has no carriers" in refused(staged(job, stage(job, "joint", 8, carriers=())))


def test_a_stage_whose_rows_do_not_reach_what_moves(refused, job_of):
    job = job_of()
    for kind in ("prompt", "lora"):
        error = refused(staged(job, stage(job, kind, 8, ANTS, carriers=("cats",))))
        assert "stage 1 has nothing to learn from" in error
        assert "cats" in error


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_that_is_longer_than_the_context(refused, job_of, family):
    error = refused(promot(job_of()), family, num_virtual_tokens=65)
    for number in ("65", "64", "128", "training.num_virtual_tokens", "training.max_length"):
        assert number in error


def test_a_prompt_that_just_fits(setup_of, job_of):
    job = job_of()
    job = staged(job, stage(job, "joint", 16))
    result = Worker(setup_of(num_virtual_tokens=64)).run(job, lambda point: True)
    assert result.status is Status.DONE, result.error


def test_a_model_that_cannot_be_extended(tmp_path, model_folder):
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = OPTConfig(vocab_size=64, word_embed_proj_dim=16, max_position_embeddings=2048, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "narrow")
    with pytest.raises(TrainingError, match="embedding is 16 wide, its hidden states 32"):
        load(str(tmp_path / "narrow"), Training(), World(), lora=False, trust=False, prompt=True)
    inner = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    inner.set_input_embeddings(torch.nn.Identity())
    with pytest.raises(TrainingError, match=r"model 'odd' .* \(Identity\) is no table of vectors"):
        extend(inner, "odd", Training())


def test_signals_and_measurements_that_are_not_taken(refused, job_of, reference):
    job = replace(job_of(), reference=reference)
    spec = to_spec(Scripted(frozenset({Signal.EXCESS_LOSS})))
    error = refused(staged(job, stage(job, "joint", 8, reweighter=spec)))
    assert "Scripted of stage 1 needs signal 'excess_loss'" in error
    spec = to_spec(Scripted(frozenset({Signal.HIDDEN_SIMILARITY})))
    mixed = staged(job, stage(job, "lora", 8), stage(job, "weights", 8, reweighter=spec))
    assert "of stage 2 needs signal 'hidden_similarity'" in refused(mixed)
    measured = replace(promot(job), measure=frozenset({Diagnostic.INFLUENCE}))
    assert "'influence'" in refused(measured)


def test_adapters_of_some_domains_are_not_merged(refused, job_of, tmp_path):
    job = job_of(save=str(tmp_path / "final"))
    some = staged(job, stage(job, "lora", 8, carriers=("ants",)))
    assert "training.merge_lora" in refused(some, merge_lora=True)


def test_weights_with_a_prompt_that_no_stage_uses(setup_of, job_of):
    worker = Worker(setup_of(num_virtual_tokens=3))
    made = worker.run(replace(promot(job_of()), keep=True), lambda point: True)
    plain = worker.run(job_of(start=made.checkpoint), lambda point: True)
    assert plain.status is Status.FAILED
    assert "they have a soft prompt, which no stage of this job uses" in plain.error
    trained = promot(job_of()).stages
    again = worker.run(
        job_of(stages=(), start=made.checkpoint, trained=trained), lambda point: True
    )
    assert again.status is Status.DONE, again.error
    names = [name for name in made.metrics if name.split("/")[0] in ("eval", "swap")]
    assert {name: again.metrics[name] for name in names} == {n: made.metrics[n] for n in names}


def test_a_text_that_has_no_tokens(refused, job_of):
    job = job_of()
    job = staged(job, stage(job, "joint", 8))
    words = {"prompt_tuning_init": "text", "prompt_tuning_init_text": "  "}
    assert "training.prompt_tuning_init_text '  '" in refused(job, **words)


def test_prompts_with_gradients_of_domains(setup_of, job_of, heard):
    """A reweighter that compares gradients sees those of what moves, the prompt's among them."""
    job = job_of()
    for kind in ("prompt", "joint"):
        one = staged(job, stage(job, kind, 32, carriers=("ants", "bees")))
        needs = frozenset({Signal.GRADIENT_GRAM, Signal.DOMAIN_LOSS})
        result, told = heard(Worker(setup_of(num_virtual_tokens=3)), one, Scripted(needs))
        gram = told[-1]["gradient_gram"]
        assert gram[0][0] > 0
        assert (gram[2][2] == 0) is (kind == "prompt")
        assert result.spent.extra > 0


def test_adapters_of_some_domains_with_gradients_of_domains(setup_of, job_of, heard):
    """A domain whose rows pass without adapters has no gradient, and none is missed."""
    job = job_of()
    one = staged(job, stage(job, "lora", 32, carriers=("ants",)))
    needs = frozenset({Signal.GRADIENT_GRAM})
    _, told = heard(Worker(setup_of(lora_r=4)), one, Scripted(needs, moves="gradient_weights"))
    gram = told[-1]["gradient_gram"]
    assert gram[0][0] > 0
    assert gram[1][1] == gram[0][1] == gram[2][2] == 0
