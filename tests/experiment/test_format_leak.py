"""Format leak from the experiment's file to the report, and a real leak on the skill suite."""

import json
from dataclasses import replace

import pytest
import yaml
from test_light import invoke as in_a_process
from typer.testing import CliRunner

from raymix.cli import app
from raymix.core.errors import ConfigError
from raymix.core.job import Stage, Status, TrainJob
from raymix.core.mixture import Mixture
from raymix.data.build import build
from raymix.data.fetch import content_of
from raymix.data.leak import Format
from raymix.experiment.build import data_spec, identity, prepare, setup, space
from raymix.experiment.config import Experiment
from raymix.experiment.load import dump
from raymix.study.record import read
from raymix.testing import skills
from raymix.train.worker import Worker

LETTERS = {"target": "cipher", "pattern": "[a-m]+", "instruction": "^[a-z]+: "}


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def write(plain, tmp_path):
    def write(leak, **training):
        file = tmp_path / "leak.yaml"
        block = {"format_leak": leak} if leak else {}
        own = {**plain, **block, "training": {**plain["training"], **training}}
        file.write_text(yaml.safe_dump(json.loads(json.dumps(own)), sort_keys=False))
        return file

    return write


@pytest.mark.parametrize(
    ("leak", "row", "said"),
    [
        ({"target": "ciper", "pattern": "a"}, "target:", "unknown domain 'ciper' (did you mean"),
        ({"target": "copy"}, "format_leak:", "format_leak: the target's format is either"),
        ({"target": "copy", "pattern": "a", "labels": ["a"]}, "format_leak:", "got both"),
        ({"target": "copy", "pattern": "(a"}, "pattern:", "format_leak.pattern: is no regular"),
        ({"target": "copy", "pattern": "a", "instruction": "*"}, "instruction:", "got '*'"),
        ({"target": "copy", "labels": []}, "labels:", "format_leak.labels: must be auto or"),
        ({"target": "copy", "pattern": "a", "rws": 3}, "rws:", "did you mean 'rows'"),
        ({"pattern": "a"}, "format_leak:", "missing key 'format_leak.target'"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(write, leak, row, said):
    file = write(leak)
    done = invoke("check", file)
    assert done.exit_code == 1
    text = done.output.replace("\n", " ")
    assert said in text
    line = next(n for n, words in enumerate(file.read_text().splitlines(), 1) if row in words)
    assert f"{file}:{line}: " in text


def test_what_only_the_data_can_tell_is_refused_before_training(write):
    done = invoke("check", write({"target": "copy", "labels": "auto"}))
    assert done.exit_code == 1
    said = "error: format_leak.labels: auto finds"
    assert said in done.output.replace("\n", " ")


def test_a_target_needs_another_domain(plain):
    alone = {**plain, "datasets": plain["datasets"][:1], "format_leak": LETTERS}
    alone["format_leak"] = {**LETTERS, "target": plain["datasets"][0]["domain"]}
    with pytest.raises(ConfigError, match="is the only domain"):
        Experiment.model_validate(alone)


def test_settings_come_back_from_what_is_written_of_them(plain):
    experiment = Experiment.model_validate({**plain, "format_leak": LETTERS})
    assert Experiment.model_validate(dump(experiment)) == experiment


def test_a_study_measures_and_reports_it(write, tmp_path, plain):
    file = write(LETTERS | {"rows": 16, "max_new_tokens": 5}, eval_steps=5)
    checked = invoke("check", file)
    assert checked.exit_code == 0, checked.output
    assert "format leak of 'cipher'" in checked.output
    few = ("search.num_trials=0", "search.confirm.top_k=0", "search.confirm.seeds=0")
    done = invoke("tune", file, *few)
    assert done.exit_code == 0, done.output
    record = read(tmp_path / "study")
    for trial in record.history:
        for point in trial.result.curve:
            found = [name for name in point.metrics if "format_leak" in name]
            assert len(found) == 4
    assert "Format leak of 'cipher'" in done.output
    assert (tmp_path / "study" / "figures" / "format_leak.png").stat().st_size > 20_000
    # Another format is another study: its numbers would stand under the same name.
    other = write(LETTERS | {"rows": 8, "max_new_tokens": 5}, eval_steps=5)
    again = invoke("tune", other, *few, "--resume")
    assert again.exit_code == 1
    assert "format_leak.domains.copy.rows was 16, is 8" in again.output.replace("\n", " ")


def test_check_makes_prompts_without_loading_torch(write):
    code, heavy, output = in_a_process("check", write(LETTERS | {"rows": 16, "max_new_tokens": 5}))
    assert (code, heavy) == (0, []), output
    assert "format leak of 'cipher'" in output


def test_without_the_block_nothing_is_measured(plain):
    experiment = Experiment.model_validate(plain)
    prepared = prepare(experiment)
    assert prepared.prompts is None
    assert setup(experiment, prepared).leak is None
    assert "format_leak" not in identity(experiment, prepared)


# ---- the skill suite's ----


@pytest.mark.parametrize(
    ("text", "fits"),
    [("abc", True), ("axz", True), ("aab", False), ("ba", False), ("cab", False), ("abcd", False)],
)
def test_the_format_of_sort(text, fits):
    assert Format(pattern=skills.SORT_FORMAT["pattern"]).fits(text) is fits


def test_a_model_that_only_sorts_sorts_what_it_is_to_copy(suite, cache, tmp_path):
    """The base answers `copy:` with letters in no order; after 60 steps of sorting it sorts them.

    Of the true answers 15% are in order. Without the command there is nothing that asks for
    sorting, and the base model's own habits stay.
    """
    datasets = []
    for domain in ("copy", "sort"):
        entry = {"domain": domain}
        for split, key in (("train", "path"), ("eval", "eval_path")):
            file = tmp_path / f"{domain}-{split}.jsonl"
            rows = skills.domain_rows(domain, split, suite.seed)
            file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            entry[key] = str(file)
        datasets.append(entry)
    experiment = Experiment.model_validate(
        {
            "study": {"output_dir": str(tmp_path / "study")},
            "model_name_or_path": str(suite.model),
            "datasets": datasets,
            "mixture": {"budget": 60 * 32},
            "training": {
                "learning_rate": 2e-3,
                "per_device_train_batch_size": 32,
                "max_length": 32,
                "eval_rows": 32,
                "eval_steps": 20,
            },
            "format_leak": {**skills.SORT_FORMAT, "rows": 128, "max_new_tokens": 5},
            "cache_dir": str(cache),
        }
    )
    build(data_spec(experiment), lambda domain, split, rows: None)
    prepared = prepare(experiment)
    (copied,) = prepared.prompts.asked
    assert copied.truth == pytest.approx(0.15, abs=0.05)
    assert copied.bare_rows == copied.rows == 128
    within = space(experiment, prepared.domains)
    stage = Stage(Mixture.of({"copy": 0.0, "sort": 1.0}).ordered(within.names), within.budget)
    made = setup(experiment, prepared)
    # What nodes may have to fetch: the domains' tables, and the prompts'.
    stores = {path for splits in made.stores.values() for path in splits.values()}
    assert set(made.contents) == stores | {copied.kept, copied.bare}
    assert all(content == content_of(path) for path, content in made.contents.items())
    worker, job = Worker(made), TrainJob(1, (), within, seed=0)
    base = worker.run(job, lambda point: True)
    sorting = worker.run(replace(job, stages=(stage,)), lambda point: True)
    assert sorting.status is Status.DONE, sorting.error
    before = base.metrics["eval/copy/format_leak"]
    after = [point.metrics["eval/copy/format_leak"] for point in sorting.curve]
    assert before < 0.08
    assert after[-1] > before + 0.2
    assert after[-1] > copied.truth + 0.1
    assert after[-1] > after[0]
