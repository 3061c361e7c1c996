"""Strategies as they are written, shown, trained and exported; what does not fit is named."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import yaml
from typer.testing import CliRunner

from raymix.cli import app
from raymix.core.errors import ConfigError
from raymix.core.job import Stage
from raymix.core.mixture import Budget, Domain, Parameter
from raymix.experiment.build import plan, space, strategy
from raymix.experiment.config import Experiment
from raymix.experiment.load import dump, load
from raymix.report.best import FILE, read_best
from raymix.strategy import DMT, MixedSequential, MultiTask, ProMoT, Prompted, Sequential
from raymix.study.record import read


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def made(plain, **changes):
    experiment = Experiment.model_validate({**plain, **changes})
    assert Experiment.model_validate(json.loads(json.dumps(dump(experiment)))) == experiment
    return experiment


def planned(plain, search=None, **changes):
    search = {**plain["search"], **(search or {})}
    experiment = made(plain, search=search, **changes)
    domains = tuple(Domain(name, 1000, 10_000, 5000) for name in experiment.names)
    return plan(experiment, space(experiment, domains))


def refused(plain, **changes):
    with pytest.raises(ConfigError) as error:
        planned(plain, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


@dataclass(frozen=True)
class Halves:
    """A strategy of the user's own."""

    first: float = 0.5
    places: tuple[int, ...] = ()

    def stages(self, mixture, budget, params):
        early = round(params.get("first", self.first) * budget.amount)
        parts = (early, budget.amount - early)
        return tuple(Stage(mixture, Budget(part, budget.unit)) for part in parts if part)


OWN = f"{Halves.__module__}:Halves"


# ---- written ----


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("multi_task", MultiTask()),
        ("MultiTask", MultiTask()),
        ({"type": "DMT", "special": ["copy", "cipher"]}, DMT(("copy", "cipher"))),
        ({"type": "dmt", "special": "copy", "k": 1}, DMT("copy", k=1.0)),
        ({"type": "dmt", "settings": {"special": "copy"}, "k": 0.5}, DMT("copy", k=0.5)),
        (
            {"type": "sequential", "order": ["mirror", ["copy", "cipher"]], "replay": 0.1},
            Sequential(("mirror", ("copy", "cipher")), 0.1),
        ),
        (
            {"type": "mixed_sequential", "special": ["copy"], "restart": False},
            MixedSequential(("copy",), restart=False),
        ),
        (
            {"type": "promot", "target": "copy", "share": 0.25, "carrier": "lora"},
            ProMoT("copy", 0.25, "lora"),
        ),
        ({"type": "Prompted", "target": "copy", "weights": True}, Prompted("copy", True)),
        ({"type": OWN, "places": [1, 2]}, Halves(places=(1, 2))),
    ],
)
def test_a_strategy_is_written_as_searchers_are(plain, written, expected):
    experiment = made(plain, strategy=written)
    found = strategy(experiment)
    assert found == expected
    assert hash(found) == hash(expected)
    assert planned(plain, strategy=written).strategy == expected


def test_without_a_word_it_is_multi_task(plain):
    assert planned(plain).strategy == MultiTask()
    assert all(m.strategy is None and m.params == () for m in planned(plain).methods)


def test_a_searcher_may_have_its_own_and_parameters_go_to_whom_they_fit(plain):
    search = {
        "searchers": [
            {"type": "dirichlet", "strategy": "multitask", "strength": 2.0},
            {"type": "dirichlet", "name": "dual", "strategy": {"type": "dmt", "special": "copy"}},
            {"type": "optuna", "seeds": 2},
        ],
        "params": {
            "k": {"low": 0.001, "high": 1, "log": True},
            "replay": {"values": [0, 0.1, 0.5]},
        },
    }
    order = {"type": "sequential", "order": ["copy", "cipher", "mirror"], "replay": 0.2}
    found = planned(plain, search, strategy=order)
    strategies = [m.strategy for m in found.methods]
    assert strategies == [MultiTask(), DMT("copy"), None, None]
    replay = Parameter("replay", 0.2, values=(0.0, 0.1, 0.5))
    k = Parameter("k", 1 / 256, 0.001, 1.0, log=True)
    assert [m.params for m in found.methods] == [(), (k,), (replay,), (replay,)]


def test_a_range_may_be_a_list(plain):
    order = {"type": "dmt", "special": "copy"}
    found = planned(plain, {"params": {"k": [0.0, 1.0]}}, strategy=order)
    assert found.methods[0].params == (Parameter("k", 1 / 256, 0.0, 1.0),)


# ---- what does not fit ----

DUAL = {"type": "DMT", "special": ["copy"]}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("dtm", "strategy: no strategy 'dtm' (did you mean 'dmt'?); known: dmt, "),
        ("grid", "strategy: no strategy 'grid'"),
        ("nowhere:X", "strategy: cannot import 'nowhere:X': ModuleNotFoundError"),
        ("math:pi", "strategy: 'math:pi' is no dataclass with a method stages"),
        ("DMT", "strategy: 'DMT' needs 'special'"),
        ({**DUAL, "q": 1}, "strategy: 'DMT' has no field 'q'; known: general, k, restart, special"),
        ({**DUAL, "k": "a bit"}, "strategy.k: Input should be a valid number, got 'a bit'"),
        ({**DUAL, "k": True}, "strategy.k: Input should be a valid number, got True"),
        ({**DUAL, "k": 2}, "strategy: DMT.k must be between 0 and 1, got 2.0"),
        ({**DUAL, "special": []}, "strategy: DMT.special must name at least one domain, got ()"),
        ({**DUAL, "special": [3]}, "strategy.special.0: Input should be a valid string, got 3"),
        ({**DUAL, "restart": 1}, "strategy.restart: Input should be a valid boolean, got 1"),
        (
            {**DUAL, "special": ["coppy"]},
            "strategy: DMT.special: unknown domain 'coppy' (did you mean 'copy'?); known: copy, "
            "cipher, mirror (for the prior)",
        ),
        (
            {"type": "sequential", "order": ["copy", "mirror"]},
            "strategy: Sequential.order has no place for domain 'cipher': every domain of the "
            "mixture needs one (for the prior)",
        ),
        (
            {"type": "promot", "target": "copy", "carrier": "ring"},
            "strategy.carrier: Input should be 'prompt' or 'lora', got 'ring'",
        ),
        (
            {"type": "promot", "target": "copy", "share": 0.001},
            "strategy: ProMoT: stage 1 (copy) gets 0.32 of the budget of 320 examples, less than "
            "1: no step comes of it; raise mixture.budget, or its share (for the prior)",
        ),
    ],
)
def test_a_strategy_that_does_not_fit_is_refused_by_name(plain, written, words):
    assert refused(plain, strategy=written).startswith(words)


def test_the_same_of_a_searchers_own(plain):
    searchers = ["grid", {"type": "dirichlet", "strategy": {**DUAL, "k": -1}}]
    words = "search.searchers.1.strategy: DMT.k must be between 0 and 1, got -1.0"
    assert refused(plain, search={"searchers": searchers}) == words
    searchers[1] = {"type": "dirichlet", "strategy": {**DUAL, "special": "x"}}
    said = refused(plain, search={"searchers": searchers})
    assert said.startswith("search.searchers.1.strategy: DMT.special: unknown domain 'x'")


def test_baselines_and_smaller_budgets_are_checked_too(plain):
    search = {"baselines": {"own": {"copy": 0.001, "cipher": 0.999}}}
    assert refused(plain, search=search, strategy=DUAL) == (
        "strategy: DMT: stage 1 (copy) gets 0.32 of the budget of 320 examples, less than 1: no "
        "step comes of it; raise mixture.budget, or its share (for baseline 'own')"
    )
    small = {"type": "proxy", "reweighter": "constant", "budget": 1}
    said = refused(plain, search={"searchers": ["grid", small]}, strategy=DUAL)
    assert said.startswith("search.searchers.1.strategy: DMT: stage ")
    assert "of the budget of 1 examples" in said


def test_branches_are_refused_beforehand(plain):
    branching = {"type": "raymix.search.perturb:Perturb", "branch": 0.5}
    assert planned(plain, {"searchers": [branching]}).methods
    assert refused(plain, search={"searchers": [branching]}, strategy=DUAL) == (
        "search.searchers.0: branches need a training of a single stage, and DMT makes 2"
    )


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (
            {"kk": [0, 1]},
            "search.params: 'kk' is no number of a strategy that is searched (DMT); there is k",
        ),
        ({"k": [0, 2]}, "search.params.k: DMT.k must be between 0 and 1, got 2.0"),
        ({"k": {"values": [0.5, 3]}}, "search.params.k: DMT.k must be between 0 and 1, got 3.0"),
        ({"k": [0.5, 0.5]}, "search.params.k: parameter 'k' must have low < high, got 0.5, 0.5"),
        ({"k": {"low": 0, "high": 1, "log": True}}, "search.params.k: parameter 'k' is log: low"),
        ({"k": {"low": 0}}, "search.params.k: must have low and high, or values"),
        ({"k": {"values": []}}, "search.params.k: must have low and high, or values"),
        ({"k": {"values": [1], "low": 0}}, "search.params.k: must have low and high, or values"),
        ({"k": [1]}, "search.params.k: must be [low, high], {low, high} or {values}, got [1]"),
        ({"k": {"lo": 0}}, "unknown key 'search.params.k.lo'; did you mean 'low'?"),
        ({"k": 1}, "search.params.k: "),
    ],
)
def test_parameters_that_mean_nothing(plain, params, words):
    assert refused(plain, search={"params": params}, strategy=DUAL).startswith(words)


def test_parameters_without_a_strategy_that_has_any(plain):
    assert refused(plain, search={"params": {"k": [0, 1]}}) == (
        "search.params: 'k' is no number of a strategy that is searched (MultiTask); there is none"
    )


@pytest.mark.parametrize("written", [{"special": ["copy"]}, {}, ["DMT"], 3])
def test_what_is_no_strategy_at_all(plain, written):
    if written == {}:
        assert strategy(made(plain, strategy=written)) == MultiTask()
        return
    with pytest.raises(ConfigError, match=r"^strategy: "):
        made(plain, strategy=written)


def test_the_line_is_named_and_overrides_work(written):
    with pytest.raises(ConfigError, match=r"override 'strategy\.type=3': strategy\.type: "):
        load(written, ["strategy.type=3"])
    override = "strategy={type: dmt, special: [copy], k: 0.5}"
    assert strategy(load(written, [override])) == DMT(("copy",), k=0.5)


def test_a_prompt_that_does_not_fit_into_the_context(plain):
    words = (
        "strategy: ProMoT puts training.num_virtual_tokens (1000) before rows of up to "
        "training.max_length (32) tokens, more than the context of model 'target' ("
    )
    training = {**plain["training"], "num_virtual_tokens": 1000}
    promot = {"type": "promot", "target": "copy"}
    assert refused(plain, strategy=promot, training=training).startswith(words)
    assert planned(plain, strategy={**promot, "carrier": "lora"}, training=training)
    assert planned(plain, training=training)


# ---- on the command line ----


@pytest.fixture
def dual(plain, tmp_path):
    plain["strategy"] = {"type": "dmt", "special": ["copy", "cipher"], "k": 0.25}
    plain["mixture"] = {"budget": 320, "prior": {"copy": 0.3, "cipher": 0.2, "mirror": 0.5}}
    path = tmp_path / "dual.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def cells(done, *label):
    """What follows the words `label` at the beginning of a row of a table."""
    rows = (line.replace("│", " ").split() for line in done.output.splitlines())
    return [row[len(label) :] for row in rows if row[: len(label)] == list(label)]


def test_stages_are_shown_before_anything_trains(dual):
    for verb in ("check", "preview", "plan"):
        done = invoke(verb, dual)
        assert done.exit_code == 0, done.output
        # a = 320 / 1.125: 142 special rows, a fourth of each again, the other 143 are general.
        assert cells(done, "1", "model", "copy")[0][:3] == ["5", "85", "0.19"]
        assert cells(done, "2", "model", "copy")[0][:4] == ["6", "21", "21", "0.05"]
        assert ["57", "0.23"] in [row[:2] for row in cells(done, "cipher")]
        assert ["14", "14", "0.06"] in [row[:3] for row in cells(done, "cipher")]
        assert ["143", "0.22"] in [row[:2] for row in cells(done, "mirror")]
        assert ["11", "320"] in [row[:2] for row in cells(done, "in", "all")]
    said = " ".join(invoke("check", dual).output.split())
    assert "k=0.25, restart=True) on the prior" in said
    plain = invoke("preview", dual, "strategy=multitask")
    assert "stages" not in plain.output
    assert "320 examples, 10 steps" in plain.output


def test_a_study_trains_the_stages_and_tells_of_them(dual, tmp_path):
    done = invoke("tune", dual)
    assert done.exit_code == 0, done.output
    record = read(tmp_path / "study")
    trained = [t for t in record.history if t.number]
    assert all({p.stage for p in t.result.curve} == {0, 1} for t in trained)
    best = read_best(tmp_path / "study" / FILE)
    assert best.strategy.path == "raymix.strategy.dual_stage:DMT"
    assert len(best.stages) == 2
    for target in ("trl", "hf", "axolotl", "llamafactory"):
        said = invoke("export", tmp_path / "study", "--to", target)
        assert said.exit_code == 0, said.output
        assert "WARNING: found with the strategy DMT, which" in said.output
        assert "the first rows again" in said.output
    # The file's strategy is trained, whatever the experiment says.
    file, model = tmp_path / "study" / FILE, tmp_path / "model"
    done = invoke("train", dual, "--save", model, "--mixture", file, "strategy=multitask")
    assert done.exit_code == 0, done.output
    assert "strategy  DMT(special=('copy', 'cipher')" in done.output


def test_train_uses_the_experiments_strategy(dual, tmp_path):
    done = invoke("train", dual, "--save", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert "trained: 11 steps" in done.output
    done = invoke("train", dual, "--save", tmp_path / "x", "mixture.budget=1")
    assert done.exit_code == 1
    said = done.output.replace("\n", " ")
    assert "error: strategy: DMT: stage 1 (copy, cipher) gets 0.44 of the budget of 1" in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"params": {"k": 0.5}}, "'params' are of a strategy, but there is no 'strategy'"),
        ({"strategy": {"path": "no.where:X"}}, "strategy: cannot import 'no.where:X'"),
        (
            {"strategy": {"path": "raymix.strategy:DMT", "fields": {"special": "copy", "k": 3}}},
            "strategy: DMT.k must be between 0 and 1, got 3.0",
        ),
        ({"strategy": {"name": "DMT"}}, "strategy"),
    ],
)
def test_a_file_with_a_strategy_that_is_none(dual, tmp_path, said, words):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"mixture": {"copy": 0.5, "mirror": 0.5}, **said}))
    done = invoke("train", dual, "--save", tmp_path / "x", "--mixture", file)
    assert done.exit_code == 1
    assert f"error: {file}: " in done.output.replace("\n", "")
    assert words in done.output.replace("\n", "")
    assert not (tmp_path / "x").exists()
