"""`raymix influence` on the embedded suite: measured, then held against retraining."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from raymix.cli import app
from raymix.core.errors import ConfigError
from raymix.experiment.influence import Probe, probing
from raymix.experiment.load import load
from raymix.study.record import read


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def words(done):
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def config(tmp_path_factory, describe):
    folder = tmp_path_factory.mktemp("probed")
    plain = describe(folder)
    plain["influence"] = {"train_rows": 32}
    plain["search"]["early_stopping"] = {"scheduler": "asha"}
    plain["training"]["eval_steps"] = 5
    path = folder / "mix.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture(scope="module")
def measured(config):
    done = invoke("influence", config)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def validated(config, measured):
    done = invoke("influence", config, "--validate", "--repeats", 2, "--resume")
    assert done.exit_code == 0, done.output
    return done


def test_a_measurement_is_one_training(config, measured):
    folder = config.parent / "study" / "influence"
    text = words(measured)
    for said in (
        "change of eval loss, 10% more of",
        "Influence on the objective by estimator",
        "ekfac kfac identity adam",
        "Of 14 layers, those that add most",
        "does the influence agree with itself?",
        "A pass is one training pass over the rows; true Fisher, damping 0.1.",
    ):
        assert said in text, said
    assert str(folder) in measured.output.replace("\n", "")


def test_a_validation_goes_on_from_it(config, validated):
    folder = config.parent / "study" / "influence"
    trials = read(folder).history.trials
    # The base, and twice the mixture and each of three domains up and down; none stopped early.
    assert len(trials) == 1 + 2 * (1 + 2 * 3)
    assert all(t.finished and t.result.status.value == "done" for t in trials)
    assert [t.seed for t in trials[1:]] == [0] * 7 + [1] * 7
    text = words(validated)
    for said in ("Agreement with retraining (3 domains, 2 repeat(s))", "ceiling", "Regime: fixed"):
        assert said in text, said
    told = json.loads((folder / "validation.json").read_text())
    assert {row["name"] for row in told["rows"]} == {"ekfac", "kfac", "identity", "adam"}
    assert {p.name for p in folder.glob("*.png")} == {"influence.png", "validation.png"}


def test_it_is_not_run_again_and_nothing_else_goes_into_its_folder(config, validated):
    refused = invoke("influence", config)
    assert refused.exit_code == 1
    assert "already holds a study of 15 trials" in refused.output
    other = invoke("influence", config, "--step", 0.2, "--validate", "--resume")
    assert other.exit_code == 1
    assert "perturb.step was 0.3, is 0.2" in words(other)
    again = invoke("influence", config, "--validate", "--repeats", 2, "--resume")
    assert again.exit_code == 0, again.output
    assert len(read(config.parent / "study" / "influence").history) == 15


def test_the_report_reads_its_folder_too(config, validated):
    done = invoke("report", config.parent / "study" / "influence")
    assert done.exit_code == 0, done.output
    assert "does the influence agree with itself?" in words(done)


def test_the_mixture_is_as_given(config):
    experiment = load(config)
    ready = probing(experiment, Probe(validate=True, repeats=1))
    (method,) = ready.plan.methods
    assert method.num_trials == 7
    shares = dict(zip(experiment.names, (0.5, 0.3, 0.2), strict=True))
    done = invoke("influence", config, "--weights", ",".join(f"{n}={s}" for n, s in shares.items()),
                  f"study.output_dir={config.parent / 'other'}")  # fmt: skip
    assert done.exit_code == 0, done.output
    trial = read(config.parent / "other" / "influence").history.trials[1]
    assert trial.mixture.as_dict() == pytest.approx(shares)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--step", "1.5"], "step must be between 0 and 1, got 1.5"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--weights", "x=1"], "unknown domain 'x'"),
        (["--weights", "x=1", "--mixture", "y"], "give --mixture or --weights, not both"),
        (["influence.layers=*.nothing"], "matches no layer"),
    ],
)
def test_what_does_not_fit_is_one_error(config, tmp_path, options, said):
    refused = invoke("influence", config, f"study.output_dir={tmp_path}", *options)
    assert refused.exit_code == 1, refused.output
    assert isinstance(refused.exception, SystemExit), refused.exception
    assert said in words(refused)


def test_a_total_that_is_none_is_refused(config):
    with pytest.raises(ConfigError, match="total must be fixed or free"):
        probing(load(config), Probe(total="some"))
