"""The description of an experiment: from Python and YAML alike, wrong ones refused by name."""

import json
import re

import pytest

from raymix.core.codec import decode, encode
from raymix.core.errors import ConfigError, MixtureError, RaymixError
from raymix.core.influence import Thresholds
from raymix.core.mixture import Domain, Unit
from raymix.experiment.build import identity, plan, prepare, setup, space
from raymix.experiment.config import Experiment
from raymix.experiment.load import apply, dump, load, to_yaml
from raymix.study.objective import Objective
from raymix.study.plan import baselines
from raymix.train.config import Setup


def test_yaml_and_python_are_the_same_experiment(plain, written):
    assert load(written) == Experiment.model_validate(plain) == Experiment(**plain)


def test_an_experiment_survives_its_own_yaml(plain, tmp_path):
    experiment = Experiment.model_validate(plain)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(experiment))
    assert load(again) == experiment
    assert Experiment.model_validate(dump(experiment)) == experiment


def test_overrides_set_one_key(written):
    experiment = load(
        written, ["search.num_trials=5", "datasets.1.domain=other", "mixture.budget=1.5k"]
    )
    assert experiment.search.num_trials == 5
    assert experiment.names[1] == "other"
    assert experiment.mixture.budget == 1500


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.num_trails=5", "unknown key 'search.num_trails'; did you mean 'num_trials'"),
        ("trainning.learning_rate=1", "unknown key 'trainning'; did you mean 'training'"),
        ("training.learning_rat=1", "did you mean 'learning_rate'"),
        ("training.num_train_epochs=3", "mixture.budget"),
        ("mixture.budget=0", "mixture.budget"),
        ("mixture.budget=-5", "mixture.budget"),
        ("mixture.budget=lots", "got 'lots'"),
        ("mixture.unit=words", "mixture.unit"),
        ("mixture.bounds={cpoy: [0, 1]}", "mixture.bounds: unknown domain 'cpoy'"),
        ("mixture.bounds={copy: [0.6, 0.2]}", "bounds of 'copy'"),
        ("datasets.1.domain=copy", "domain 'copy' is described twice"),
        ("datasets.1.domain=a/b", "domain 'a/b' must be made of letters"),
        ("datasets.1.pth=x", "unknown key 'datasets.1.pth'; did you mean 'path'"),
        ("cluster.num_workers=0", "cluster.num_workers"),
        ("influence.dampng=1", "unknown key 'influence.dampng'; did you mean 'damping'"),
        ("influence.damping=0", "influence.damping"),
        ("influence.fisher=best", "influence.fisher"),
        ("influence.layers=[]", "influence.layers: must be all, low-variance or patterns"),
        ("influence.trust={dampin: .9}", "unknown key 'influence.trust.dampin'; did you mean"),
        ("influence.trust.damping=1.5", "influence.trust.damping: must be between -1 and 1"),
        ("influence.trust.halves=.nan", "influence.trust.halves"),
        ("influence.trust.epochs=-1", "influence.trust.epochs: must be between 0 and inf"),
        ("influence.trust.dot=x", "influence.trust.dot"),
        ("study.seed=-1", "study.seed"),
        (
            "search.objective.keep={cpoy: 0.1}",
            "search.objective.keep: unknown name 'cpoy' (did you mean 'copy'?)",
        ),
        ("search.objective.keep={copy: -1}", "search.objective.keep.copy must be a margin >= 0"),
        ("search.objective.keep={copy: .nan}", "search.objective.keep.copy must be a margin >= 0"),
        ("search.objective.keep={copy: lots}", "got 'lots'"),
        ("search.objective.keep={copy: [1]}", "search.objective.keep.copy"),
        (
            "search.objective.keep={copy: 0.1, cipher: 0, mirror: 1%}",
            "search.objective.keep names every domain: nothing is left to improve",
        ),
        ("search.objective.keep_penalty=-1", "search.objective.keep_penalty"),
        ("search.objective.keep_penalty=.inf", "search.objective.keep_penalty"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(written, override, said):
    with pytest.raises(ConfigError) as refused:
        load(written, [override])
    assert said in str(refused.value)
    assert str(written) in str(refused.value)


def test_a_wrong_key_in_the_file_is_named_with_its_line(written):
    text = written.read_text().replace("num_trials:", "num_trails:")
    written.write_text(text)
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "num_trails" in row)
    with pytest.raises(ConfigError, match=rf"mix\.yaml:{line}: unknown key 'search\.num_trails'"):
        load(written)


def test_files_that_cannot_be_read_are_named(tmp_path, written):
    with pytest.raises(ConfigError, match=r"no experiment file .*did you mean .*mix\.yaml"):
        load(tmp_path / "mxi.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("study: [1, 2")
    with pytest.raises(ConfigError, match="line 1"):
        load(broken)
    with pytest.raises(ConfigError, match="key=value"):
        apply({}, "search.num_trials")


def test_warmup_ratio_is_understood_with_a_warning(written):
    with pytest.warns(FutureWarning, match="warmup_steps"):
        experiment = load(written, ["training.warmup_ratio=0.1"])
    assert experiment.training.warmup_steps == 0.1


def test_influence_is_described_and_reaches_the_workers(written, plain):
    settings = ["influence.layers=*.mlp.*", "influence.trust.damping=0.5", "influence.damping=.2"]
    experiment = load(written, settings)
    assert experiment.influence.layers == "*.mlp.*"
    assert experiment.influence.trust == Thresholds(damping=0.5)
    assert Experiment.model_validate(dump(experiment)) == experiment
    prepared = prepare(experiment)
    sent = decode(Setup, encode(setup(experiment, prepared)))
    assert sent.influence == experiment.influence


def test_a_study_depends_on_how_influence_is_measured_but_not_on_how_it_is_judged(written):
    experiment = load(written)
    prepared = prepare(experiment)
    plain = identity(experiment, prepared)
    assert "influence" not in plain, "studies begun before there was influence go on"
    judged = ["influence.trust.dot=.1", "influence.batch_size=2", "influence.max_memory_gb=3"]
    assert identity(load(written, judged), prepared) == plain
    other = identity(load(written, ["influence.damping=1"]), prepared)
    assert other == {**plain, "influence": {"damping": 1.0}}


@pytest.mark.parametrize(
    ("searcher", "said"),
    [
        ("dirichlte", "no searcher 'dirichlte' (did you mean 'dirichlet'?)"),
        ({"type": "dirichlet", "stren": 1}, "'dirichlet' has no field 'stren'; known: centre"),
        ({"type": "optuna", "sampler": "nope"}, "Optuna.sampler must be tpe or gp"),
        ("nowhere:Thing", "cannot import 'nowhere:Thing'"),
    ],
)
def test_an_unknown_searcher_is_refused(plain, searcher, said):
    plain["search"]["searchers"] = [searcher]
    experiment = Experiment.model_validate(plain)
    domains = tuple(Domain(name, 10, 100, 50) for name in experiment.names)
    with pytest.raises(RaymixError, match=re.escape(said)):
        plan(experiment, space(experiment, domains))


def test_the_space_follows_the_description(plain):
    plain["mixture"] = {
        "unit": "tokens",
        "budget": "1k",
        "prior": {"copy": 0.5, "cipher": 0.5},
        "bounds": {"copy": [0.1, 0.7]},
        "max_epochs": {"mirror": 2},
    }
    experiment = Experiment.model_validate(plain)
    domains = tuple(Domain(name, 10, 100, 50) for name in experiment.names)
    found = space(experiment, domains)
    assert found.budget.unit is Unit.TOKENS
    assert found.prior.as_dict() == {"copy": 0.5, "cipher": 0.5, "mirror": 0.0}
    assert (found.lower, found.upper) == ((0.1, 0.0, 0.0), (0.7, 1.0, 1.0))
    assert found.ceiling().tolist() == [0.7, 1.0, 0.2]


@pytest.mark.parametrize("prior", ["proportional", "uniform"])
def test_a_domain_that_is_only_evaluated_has_nothing_of_the_prior(plain, prior):
    plain["mixture"] |= {"prior": prior, "bounds": {"mirror": [0, 0]}}
    plain["search"]["objective"] = {"keep": {"mirror": "1%"}, "keep_penalty": 3}
    experiment = Experiment.model_validate(plain)
    assert Experiment.model_validate(dump(experiment)) == experiment
    sizes = zip(experiment.names, (10, 30, 60), strict=True)
    domains = tuple(Domain(name, rows, 10 * rows, 5 * rows) for name, rows in sizes)
    found = space(experiment, domains)
    shares = {"proportional": (0.25, 0.75, 0.0), "uniform": (0.5, 0.5, 0.0)}
    assert found.prior.weights == shares[prior]
    asked = plan(experiment, found)
    assert asked.objective == Objective(keep={"mirror": "1%"}, keep_penalty=3.0)
    # Both baselines are what they are called, not the nearest that bounds allow.
    for name, proposal in baselines(asked).items():
        assert proposal.mixture.weights == pytest.approx(shares[name])
        assert not proposal.note["projected"]


def test_bounds_that_leave_nothing_to_train_on_are_refused(plain):
    plain["mixture"]["bounds"] = {name: [0, 0] for name in ("copy", "cipher", "mirror")}
    experiment = Experiment.model_validate(plain)
    domains = tuple(Domain(name, 10, 100, 50) for name in experiment.names)
    with pytest.raises(MixtureError, match=r"allow only 0\.0% of the budget"):
        space(experiment, domains)


def test_caps_that_leave_no_mixture_say_how_much_is_missing(plain):
    plain["mixture"] = {"unit": "tokens", "budget": 1000, "max_epochs": 2}
    experiment = Experiment.model_validate(plain)
    domains = tuple(Domain(name, 10, 100, 50) for name in experiment.names)
    with pytest.raises(MixtureError, match="400 tokens short"):
        space(experiment, domains)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        (None, "holds no config.json"),
    ],
)
def test_a_model_that_cannot_be_tuned_is_refused_before_work(plain, tmp_path, change, said):
    model = tmp_path / "model"
    model.mkdir()
    if change is not None:
        (model / "config.json").write_text(json.dumps(change))
    plain["model_name_or_path"] = str(model)
    with pytest.raises(ConfigError, match=said):
        prepare(Experiment.model_validate(plain))
    plain["model_name_or_path"] = str(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no folder"):
        prepare(Experiment.model_validate(plain))
