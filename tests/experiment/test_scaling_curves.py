"""Scaling curves on a real experiment, and the script around them."""

import json

import pytest
import typer
import yaml
from scripts import loaded, ran
from typer.testing import CliRunner

from raymix.core.errors import ConfigError
from raymix.experiment.config import Experiment
from raymix.experiment.curves import Asked, draw, drawing
from raymix.report.curves import scaling_of

FRACTIONS = (1 / 16, 1 / 32, 1 / 64)


@pytest.fixture(scope="module")
def script():
    return loaded("scaling_curves.py")


@pytest.fixture
def experiment(describe, suite, tmp_path):
    # What would forbid a domain alone, or whole epochs of it, is about mixtures and not used.
    described = describe(tmp_path) | {"proxies": {"other": str(suite.model)}}
    described["mixture"] = {"budget": 320, "bounds": {"cipher": (0.1, 0.5)}, "max_epochs": 1.0}
    return Experiment.model_validate(described)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_study_of_curves(experiment, tmp_path):
    asked = Asked(FRACTIONS, epochs=2, seeds=1)
    record = draw(drawing(experiment, asked))
    folder = tmp_path / "study" / "curves"
    found = scaling_of(record)
    assert found.models == ("target", "other")
    assert found.pairs == (("cipher", "edges"),)
    # Alone 3 x 3, together 3, the pair 3, on both models.
    assert len(found.taken) == 2 * 15
    assert found.failed == 0
    assert not found.left_out
    for trial in record.history:
        note = trial.proposal.note
        if not note or note["curve"] == "base":
            continue
        for drawn in trial.result.realised:
            rows = note["rows"].get(drawn.domain, 0)
            assert (drawn.rows, drawn.unique_rows) == (2 * rows, rows)
    # The other model is the same one here, so all is equal, its base too.
    assert found.bases["target"]["eval/cipher/loss"] == found.bases["other"]["eval/cipher/loss"]
    for name in found.space.names:
        one, two = (found.alone(model, name) for model in found.models)
        assert one.losses.tolist() == two.losses.tolist()
    told = json.loads((folder / "curves.json").read_text())
    assert told["fractions"] == list(FRACTIONS)
    for name in ("alone", "together", "pairs"):
        assert (folder / f"{name}.png").stat().st_size > 10_000

    # More seeds are added to what is there.
    more = draw(drawing(experiment, Asked(FRACTIONS, epochs=2, seeds=2)), resume=True)
    assert len(scaling_of(more).taken) == 2 * len(found.taken)
    assert scaling_of(more).taken[: len(found.taken)] == found.taken


def test_the_script_on_a_config(script, describe, tmp_path):
    config, folder = tmp_path / "mix.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(describe(tmp_path)))))
    app = typer.Typer()
    app.command()(script["main"])
    options = ["--fractions", "0.02,0.01,1/300", "--epochs", "1", "--seeds", "2"]
    done = CliRunner().invoke(app, ["--config", str(config), "--folder", str(folder), *options])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "no --pair given: cipher in full with edges varied" in text
    assert "one model: name another size" in text
    assert "left out: 1/300 of edges is less than one row" in text
    assert "too few amounts: edges" in text
    assert "target: mixing helps" in text
    assert (folder / "curves" / "together.png").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pair", "cipher,egdes"], "unknown domain 'egdes' (did you mean 'edges'?)"),
        (["--pair", "cipher"], "two domains with a comma between them, got 'cipher'"),
        (["--pair", "cipher,cipher"], "two different domains"),
        (["--fractions", "1,1/4"], "at least 3 that differ"),
        (["--fractions", "1,1/4,2"], "above 0 and at most 1, got 2"),
        (["--fractions", "1,1/4,all"], "--fractions: cannot read '1,1/4,all'"),
        (["--fractions", "1,1/4,1/0"], "cannot read"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--seeds", "0"], "repeats must be at least 1"),
    ],
)
def test_bad_options_are_one_error_before_any_training(script, describe, tmp_path, options, words):
    config = tmp_path / "mix.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(describe(tmp_path)))))
    app = typer.Typer()
    app.command()(script["main"])
    folder = tmp_path / "out"
    done = CliRunner().invoke(app, ["--config", str(config), "--folder", str(folder), *options])
    assert done.exit_code == 1
    assert words in " ".join(done.output.split())
    assert done.output.count("error:") == 1
    assert not folder.exists()


def test_options_are_read(script):
    assert script["parts"]("1, 1/4,0.05") == (1.0, 0.25, 0.05)
    assert script["couples"](["math,code", " a , b "]) == (("math", "code"), ("a", "b"))
    assert script["couples"]([]) is None
    assert script["parts"](script["DEFAULT"]) == (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)


def test_one_domain_has_nothing_to_compare_with(describe, tmp_path):
    described = describe(tmp_path)
    described["datasets"] = described["datasets"][:1]
    with pytest.raises(ConfigError, match="the only domain"):
        drawing(Experiment.model_validate(described), Asked())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_on_the_suite(tmp_path):
    options = ["--fractions", "1/4,1/16,1/64", "--epochs", "1", "--seeds", "2", "--folder", "out"]
    printed = ran("scaling_curves.py", options, tmp_path)
    for words in ("Each domain alone", "Are the curves of larger steeper?", "mixing helps"):
        assert words in printed.stdout
    assert (tmp_path / "out" / "curves" / "curves.json").is_file()
