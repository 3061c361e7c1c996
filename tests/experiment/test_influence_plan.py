"""`raymix plan` says what influence needs, for models of any size and without their weights."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from raymix.cli import app
from raymix.core.errors import InfluenceError
from raymix.experiment.build import asks_influence, prepare
from raymix.experiment.load import load
from raymix.experiment.needs import needs

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def llama(suite, tmp_path_factory):
    """The folder of an 8B Llama: its description and a tokenizer, no weights."""
    folder = tmp_path_factory.mktemp("llama")
    for path in suite.model.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return folder


def settings(llama, *more):
    return [f"model_name_or_path={llama}", "search.searchers=[ideal]", *more]


def test_the_mlp_layers_of_an_8b_llama_fit_on_8_gpus_of_80_gb(written, llama):
    more = ("influence.layers=*.mlp.*", "influence.max_memory_gb=40", "cluster.num_workers=8")
    done = CliRunner().invoke(app, ["plan", str(written), *settings(llama, *more)])
    assert done.exit_code == 0, done.output
    experiment = load(written, settings(llama, *more))
    found = needs(experiment, prepare(experiment, weights=False))
    assert found.layers == 3 * 32
    assert found.parameters == 8_030_261_248
    # A block of 8B: two inputs (4096, 14336), outputs 14336 twice and 4096, three weights.
    block = 4 * (4096**2 + 14336**2 + 2 * 14336**2 + 4096**2 + 3 * 4096 * 14336)
    assert found.factors == 32 * block + 24 * 14336**2
    assert found.group <= 40e9
    assert found.groups == 4
    assert found.group + found.state < 80e9
    assert found.gradients == 16 * 3 * 32 * 3 * 4096 * 14336
    text = " ".join(done.output.split())
    for words in (
        "8.03B parameters",
        "111 GB",
        "39.1 GB",
        "layer groups",
        "24 bytes x max(i, o)^2",
    ):
        assert words in text, words


def test_what_does_not_fit_or_match_is_an_error(written, llama):
    prepared = prepare(load(written, settings(llama)), weights=False)
    with pytest.raises(InfluenceError, match=r"max_memory_gb leaves 1\.00"):
        needs(load(written, settings(llama, "influence.max_memory_gb=1")), prepared)
    with pytest.raises(InfluenceError, match="matches no layer"):
        needs(load(written, settings(llama, "influence.layers=*.mpl.*")), prepared)
    with pytest.raises(InfluenceError, match="matches the head"):
        needs(load(written, settings(llama, "influence.layers=*head*")), prepared)


@pytest.mark.parametrize("verb", ["check", "tune", "influence"])
def test_layers_that_are_not_there_are_refused_before_any_training(written, tmp_path, verb):
    wrong = ["search.searchers=[ideal]", "influence.layers=*.mpl.*"]
    refused = CliRunner().invoke(app, [verb, str(written), *wrong])
    assert refused.exit_code == 1
    assert "matches no layer" in refused.output
    assert not (tmp_path / "study").exists()


def test_adapters_are_the_layers_where_there_are_any(written):
    experiment = load(written, ["training.use_peft=true", "training.lora_r=2"])
    found = needs(experiment, prepare(experiment))
    # Two blocks of seven linear layers, two adapters each.
    assert found.layers == 2 * 7 * 2
    assert found.limit is None
    assert found.groups == 1
    assert found.passes == pytest.approx(2)


def test_weights_are_asked_for_where_something_is_trained(written, llama):
    refused = CliRunner().invoke(app, ["check", str(written), f"model_name_or_path={llama}"])
    assert refused.exit_code == 1
    assert "holds no weights" in refused.output


def test_a_plan_without_influence_says_nothing_of_it(written):
    done = CliRunner().invoke(app, ["plan", str(written)])
    assert "layer groups" not in done.output
    assert not asks_influence(load(written))
    assert asks_influence(load(written, ["search.searchers=[dirichlet, {type: ideal}]"]))
