"""The command line on a real, small study, without Ray."""

import re

import pytest
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from raymix.cli import app
from raymix.report.best import read_best
from raymix.study.record import canonical, read


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def told(tmp_path_factory, describe):
    """A finished study: its configuration file, its folder and what was printed."""
    folder = tmp_path_factory.mktemp("told")
    plain = describe(folder)
    plain["training"]["eval_steps"] = 4
    config = folder / "mix.yaml"
    config.write_text(yaml.safe_dump(plain))
    ran = invoke("tune", config)
    assert ran.exit_code == 0, ran.output
    return config, folder / "study", ran.output


def test_tune_ends_with_ranking_verdict_and_where_things_are(told):
    _, folder, output = told
    for words in ("Ranking of the search", "Confirmed with 2 fresh seeds", "degrees of freedom"):
        assert words in output
    assert "best_mixture.yaml" in output
    assert {p.name for p in (folder / "figures").iterdir()} == {"losses.png", "ranking.png"}
    trials = read(folder).history.trials
    # The base, two baselines, two trials, three mixtures with two fresh seeds each.
    assert len(trials) == 1 + 2 + 2 + 6
    assert all(t.result is not None for t in trials)


def test_only_the_base_and_the_confirmations_are_evaluated_on_test(told):
    _, folder, _ = told
    for trial in read(folder).history:
        sees = any(key.startswith("test/") for key in trial.result.metrics)
        assert sees == (trial.role.value in {"measure", "confirm"}), trial


def test_a_finished_study_is_not_run_again(told):
    config, folder, _ = told
    before = canonical(read(folder).history)
    refused = invoke("tune", config)
    assert refused.exit_code == 1
    assert "already holds a study of 11 trials" in refused.output
    again = invoke("tune", config, "--resume")
    assert again.exit_code == 0, again.output
    assert canonical(read(folder).history) == before


def test_more_trials_can_be_added_but_nothing_else_changed(told, tmp_path):
    config, folder, _ = told
    refused = invoke("tune", config, "training.learning_rate=0.01", "--resume")
    assert refused.exit_code == 1
    assert "learning_rate" in refused.output
    assert str(folder / "history.jsonl") in refused.output.replace("\n", "")


def test_status_and_report_read_the_history(told):
    _, folder, _ = told
    assert "best so far" in invoke("status", folder).output
    assert "Against the baselines" in invoke("report", folder).output
    missing = invoke("report", folder / "nowhere")
    assert missing.exit_code == 1
    assert "nowhere" in missing.output


@pytest.mark.parametrize("target", ["yaml", "trl", "axolotl", "llamafactory", "hf"])
def test_export_writes_the_winner_for_every_trainer(told, target, tmp_path):
    _, folder, _ = told
    done = invoke("export", folder, "--to", target, "--out", tmp_path / target)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / target).iterdir())


def test_export_refuses_an_unknown_trainer(told):
    _, folder, _ = told
    refused = invoke("export", folder, "--to", "tlr")
    assert refused.exit_code == 1
    assert "trl" in refused.output


def test_train_saves_a_model_that_transformers_loads(told, tmp_path, suite):
    config, folder, _ = told
    done = invoke("train", config, "--mixture", folder, "--save", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert re.search(r"trained: 10 steps", done.output)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(suite.model)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in base.parameters())
    assert read_best(folder).mixture.names == suite.names


def test_one_study_repeats_another_exactly(told, tmp_path):
    config, folder, _ = told
    other = invoke("tune", config, f"study.output_dir={tmp_path / 'again'}")
    assert other.exit_code == 0, other.output
    assert canonical(read(tmp_path / "again").history) == canonical(read(folder).history)


def test_trainings_that_fail_are_recorded_and_a_study_of_nothing_else_is_an_error(told, tmp_path):
    config, _, _ = told
    ran = invoke(
        "tune", config, f"study.output_dir={tmp_path / 'nan'}", "training.learning_rate=10",
        "training.max_grad_norm=0", "training.warmup_steps=0", "training.weight_decay=10",
        "search.num_trials=1", "search.confirm={top_k: 0, seeds: 0}", "mixture.budget=3200",
    )  # fmt: skip
    trials = read(tmp_path / "nan").history.trials
    assert ran.exit_code == 1
    assert "no training has succeeded: the gradient of step" in ran.output
    assert "best_mixture.yaml" not in ran.output
    assert len(trials) == 4
    failed = [t.result for t in trials if t.result.status.value == "failed"]
    assert failed
    assert all("step" in result.error for result in failed)


def test_weights_must_be_understood(told):
    config, _, _ = told
    refused = invoke("preview", config, "--weights", "math")
    assert refused.exit_code == 1
    assert "domain=share" in refused.output
