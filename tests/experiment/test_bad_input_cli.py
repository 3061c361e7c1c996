"""Bad input on the command line: one error that names value, file and line; nothing lost."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from raymix.cli import app
from raymix.study.record import read
from raymix.train.optim import clip


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def flat(done):
    return done.output.replace("\n", " ")


def refused(*arguments):
    """The command's one error; no work was begun, and nothing else is on the screen."""
    done = invoke(*arguments)
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    said = flat(done)
    assert said.startswith("error: "), said
    return said


@pytest.fixture
def write(plain, tmp_path):
    """Write the experiment with dotted keys changed; its path."""

    def write(**changes):
        for key, value in changes.items():
            *path, last = key.split("__")
            here = plain
            for part in path:
                here = here[int(part)] if part.isdigit() else here.setdefault(part, {})
            here[last] = value
        file = tmp_path / "mix.yaml"
        file.write_text(yaml.safe_dump(plain, sort_keys=False))
        return file

    return write


def line_of(file, words):
    return next(n for n, row in enumerate(file.read_text().splitlines(), 1) if words in row)


# ---- the description, before any data are looked at ----


@pytest.mark.parametrize(
    ("change", "row", "said"),
    [
        ({"mixture__prior": {"copy": 0.5}}, "prior:", "mixture.prior: weights must sum to 1"),
        ({"mixture__prior": {"copy": 2.0, "cipher": -1.0}}, "prior:", "'cipher' must be a number"),
        ({"mixture__prior": {"copy": float("nan")}}, "prior:", "got nan"),
        ({"search__baselines": {"own": {"copy": 0.5}}}, "own:", "search.baselines.own: weights"),
        ({"search__baselines": {"own": {"x": 1.0}}}, "own:", "unknown domain 'x'"),
        ({"mixture__max_epochs": 0}, "max_epochs:", "must be above 0, got 0"),
        ({"mixture__max_epochs": float("nan")}, "max_epochs:", "must be above 0, got nan"),
        ({"mixture__max_epochs": {"copy": -1.0}}, "max_epochs:", "max_epochs of copy must be"),
        ({"mixture__budget": True}, "budget:", "must be a whole number"),
        ({"mixture__budget": "1.5"}, "budget:", "must be a whole number"),
        ({"mixture__budget": "1.2.3"}, "budget:", "got '1.2.3'"),
        ({"mixture__bounds": {"copy": [0.6, 1], "cipher": [0.6, 1]}}, "bounds:", "got 1.2"),
        ({"training__weight_decay": float("inf")}, "weight_decay:", "finite"),
        ({"search__constraints": ["eval/copy/loss < 1"]}, "constraints:", "cannot read"),
        ({"search__constraints": ["eval/x/loss <= 1"]}, "constraints:", "'eval/x/loss'"),
        ({"search__objective": {"weights": {"x": 1}}}, "weights:", "unknown name 'x'"),
        ({"search__objective": {"aggregate": "weighted"}}, "aggregate:", "lacks 'copy'"),
        ({"search__early_stopping": {"scheduler": "asha"}}, "scheduler:", "training.eval_steps"),
        ({"search__searchers": [{"type": "grid", "settings": 3}]}, "settings:", "got 3"),
        ({"datasets__1__domain": ".."}, "domain: ..", "domain '..' must be made of letters"),
        ({"datasets__1__eval_split": 0}, "domain: cipher", "domain 'cipher': eval_split takes"),
        ({"datasets__1__type": "mesages"}, "domain: cipher", "did you mean 'messages'"),
        ({"datasets__1__eval_path": None}, "domain: cipher", "domain 'cipher' has no eval data"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(write, change, row, said):
    file = write(**change)
    told = refused("check", file)
    assert said in told
    assert f"{file}:{line_of(file, row)}: " in told


def test_an_override_is_named_in_place_of_a_line(write):
    told = refused("check", write(), "search.num_trials=two")
    assert "override 'search.num_trials=two': search.num_trials: " in told


def test_square_brackets_in_what_was_given_are_shown_as_they_are(write):
    assert "no experiment file '[/bold].yaml'" in refused("check", "[/bold].yaml")
    assert "got '[red]'" in refused("check", write(mixture__unit="[red]"))


def test_a_key_that_stands_twice_is_refused(write):
    file = write()
    file.write_text(file.read_text() + "mixture: {budget: 7}\n")
    first, last = line_of(file, "mixture:"), len(file.read_text().splitlines())
    assert f":{last}: key 'mixture' stands in line {first} already" in refused("check", file)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("copy=.5,cipher=.2", "--weights: weights must sum to 1, got 0.7"),
        ("copy=2,cipher=-1", "--weights: weight of 'cipher' must be a number >= 0"),
        ("copy=nan", "--weights: weight of 'copy' must be a number >= 0, got nan"),
        ("copy=.5,copy=.5", "--weights: duplicate domain names"),
        ("x=1", "--weights: unknown domain 'x'"),
        ("copy", "--weights: 'copy' is not domain=share"),
    ],
)
def test_weights_are_refused_before_any_data_are_read(write, weights, said):
    assert said in refused("preview", write(), "--weights", weights)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mixture: {copy: 0.5}", "weights must sum to 1"),
        ("mixture: {x: 1}", "unknown domain 'x'"),
        ("mixture: {copy: true}", "mixture.copy must be a number, got True"),
        ("mixture: {copy: 1}\nbudget: 3", "only 'mixture:' is needed"),
        ("mixture: {copy: 1}\nbudget: {amount: 3}", "only 'mixture:' is needed"),
    ],
)
def test_a_mixture_file_that_does_not_fit_is_named(write, tmp_path, text, said):
    best = tmp_path / "best.yaml"
    best.write_text(text)
    told = refused("train", write(), "--mixture", best, "--save", tmp_path / "model")
    assert said in told
    assert str(best) in told


# ---- data, model, searchers ----


def test_a_budget_of_absurd_size_is_refused_and_not_counted_out(write):
    file = write(mixture__budget=10**15)
    for command in ("check", "preview", "plan"):
        assert "mixture.budget: 1000000000000000 examples are" in refused(command, file)


def test_a_template_that_is_no_text(write, tmp_path):
    template = tmp_path / "x.jinja"
    template.write_bytes(b"\xff")
    told = refused("check", write(chat_template=str(template)))
    assert "chat_template: cannot read" in told
    assert str(template) in told


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"[]", "config.json' names no model_type"),
        ("config.json", b"{", "cannot read"),
        ("model.safetensors", b"garbage", "is no safetensors file, or damaged"),
        ("model.safetensors", b"\xff" * 99, "is no safetensors file, or damaged"),
        ("model.safetensors", -9, "is damaged: it has"),
        ("model.safetensors", None, "holds no weights"),
    ],
)
def test_a_damaged_model_is_found_before_work(write, suite, tmp_path, name, content, said):
    model = tmp_path / "model"
    shutil.copytree(suite.model, model)
    file = model / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:content] if isinstance(content, int) else content)
    told = refused("check", write(model_name_or_path=str(model)))
    assert said in told
    assert str(model) in told


@pytest.mark.parametrize(
    ("searcher", "said"),
    [
        ("json:loads", "'json:loads' is no dataclass with a method propose"),
        ("raymix.core.mixture:Budget", "is no dataclass with a method propose"),
        ("broken_searcher:It", "cannot import 'broken_searcher:It': ZeroDivisionError"),
    ],
)
def test_a_searcher_of_the_users_own_that_is_none(write, tmp_path, monkeypatch, searcher, said):
    (tmp_path / "broken_searcher.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert said in refused("check", write(search__searchers=[searcher]))


# ---- studies and trainings ----


@pytest.mark.parametrize("command", ["status", "report", "export"])
@pytest.mark.parametrize(
    "text", ["", '{"event":"study","time":1}\n', '{"event":"asked","time":1}\n', "?\n"]
)
def test_a_folder_without_a_study(tmp_path, command, text):
    (tmp_path / "history.jsonl").write_text(text)
    assert str(tmp_path / "history.jsonl") in refused(command, tmp_path)


def test_a_study_folder_that_cannot_be_made(write, tmp_path):
    (tmp_path / "file").write_text("in the way")
    told = invoke("tune", write(study__output_dir=str(tmp_path / "file" / "study")))
    assert told.exit_code == 1
    assert "study.output_dir: cannot write to" in flat(told)
    assert isinstance(told.exception, SystemExit)


@pytest.mark.parametrize("options", [(), ("--resume",)], ids=["anew", "resumed"])
def test_a_base_model_that_fails_can_be_mended_and_the_study_goes_on(
    write, suite, tmp_path, options
):
    model = tmp_path / "model"
    shutil.copytree(suite.model, model)
    weights = load_file(model / "model.safetensors")
    broken = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    save_file(broken, model / "model.safetensors", {"format": "pt"})
    search = {"searchers": ["dirichlet"], "num_trials": 0, "confirm": {"top_k": 0, "seeds": 0}}
    file = write(model_name_or_path=str(model), search=search)
    failed = invoke("tune", file)
    assert failed.exit_code == 1
    assert "base model could not be evaluated: eval/copy/loss is nan" in flat(failed)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    again = invoke("tune", file, *options)
    assert again.exit_code == 0, again.output
    assert [t.finished for t in read(tmp_path / "study").history.trials] == [True] * 3


def test_a_training_that_goes_to_nan_is_recorded_and_the_search_goes_on(
    write, tmp_path, monkeypatch
):
    steps = []

    def exploding(*arguments):
        steps.append(1)
        return torch.tensor(torch.nan) if len(steps) == 1 else clip(*arguments)

    monkeypatch.setattr("raymix.train.step.clip", exploding)
    told = invoke("tune", write(mixture__budget=64))
    assert told.exit_code == 0, told.output
    assert "Traceback" not in told.output
    trials = read(tmp_path / "study").history.trials
    assert "gradient of step 1 is nan" in trials[1].result.error
    assert all(t.finished for t in trials if t.number != 1)


def test_a_full_disk_ends_the_study_which_goes_on_when_there_is_room(write, tmp_path, monkeypatch):
    file = write(mixture__budget=64, training__save_steps=1)
    with monkeypatch.context() as patch:

        def full(*arguments):
            raise OSError(28, "No space left on device")

        patch.setattr("raymix.train.checkpoint.save_file", full)
        told = invoke("tune", file)
    assert told.exit_code == 1
    assert "trial 1 was stopped: cannot write checkpoint" in flat(told)
    assert "No space left on device" in flat(told)
    assert "Traceback" not in told.output
    assert read(tmp_path / "study").pending == (1,)
    again = invoke("tune", file, "--resume")
    assert again.exit_code == 0, again.output
    assert all(t.finished for t in read(tmp_path / "study").history.trials)


def test_what_was_stopped_says_how_to_go_on(write, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("raymix.train.step.clip", interrupted)
    file = write()
    told = invoke("tune", file, "search.searchers=[dirichlet, grid]")
    assert told.exit_code == 130
    assert f"raymix tune {file} 'search.searchers=[dirichlet, grid]' --resume" in told.output
    alone = invoke("train", file, "training.save_steps=2", "--save", tmp_path / "model")
    assert alone.exit_code == 130
    assert "the same command goes on from the last checkpoint" in flat(alone)
    assert not (tmp_path / "model").exists()


def test_where_a_model_cannot_be_saved_nothing_is_trained(write, suite, tmp_path):
    file = write()
    held = tmp_path / "held"
    held.mkdir()
    (held / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for save, said in (
        (suite.model, "will not save over the base model"),
        (held, "it holds something else"),
        (tmp_path / "file", "cannot save a model to"),
        (tmp_path / "file" / "model", "cannot save a model to"),
    ):
        told = invoke("train", file, "--save", save)
        assert told.exit_code == 1
        assert said in flat(told), told.output
        assert "Traceback" not in told.output
    assert (held / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_single_training_goes_on_from_its_checkpoint(write, tmp_path):
    file, model = write(training__save_steps=2), tmp_path / "model"
    assert invoke("train", file, "--save", model).exit_code == 0
    shutil.rmtree(model)
    again = invoke("train", file, "--save", model)
    assert again.exit_code == 0, again.output
    assert (model / "config.json").is_file()
    assert not (model / "training").exists()


def test_an_address_where_nobody_listens_is_refused_at_once(write):
    file = write(cluster__runner="ray", cluster__address="127.0.0.1:1")
    assert "'127.0.0.1:1' does not answer" in refused("tune", file)
