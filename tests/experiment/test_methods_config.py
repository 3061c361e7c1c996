"""Seeds, bills and the confirmation of methods, as they are written; what does not fit is named."""

from __future__ import annotations

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from raymix.cli import app
from raymix.core.errors import ConfigError
from raymix.core.mixture import Domain
from raymix.experiment.build import plan, space
from raymix.experiment.config import Experiment
from raymix.experiment.load import dump, load
from raymix.study.plan import Confirm, trainings
from raymix.study.record import read


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def planned(plain, **search):
    experiment = Experiment.model_validate({**plain, "search": {**plain["search"], **search}})
    assert Experiment.model_validate(dump(experiment)) == experiment
    domains = tuple(Domain(name, 10, 100, 50) for name in experiment.names)
    return plan(experiment, space(experiment, domains))


def test_each_searcher_has_the_searchs_seeds_or_its_own(plain):
    searchers = ["dirichlet", {"type": "optuna", "name": "tpe", "seeds": 1}, "doubled"]
    found = planned(plain, searchers=searchers, seeds=2, num_trials=4)
    assert [(m.name, m.group, m.repeat, m.num_trials) for m in found.methods] == [
        ("dirichlet#0", "dirichlet", 0, 4),
        ("dirichlet#1", "dirichlet", 1, 4),
        ("tpe", "", 0, 4),
        ("doubled#0", "doubled", 0, 1),
        ("doubled#1", "doubled", 1, 1),
    ]
    assert found.bill is None
    assert found.confirm == Confirm(1, 2)


def test_plans_count_what_seeds_bills_and_confirmations_come_to(plain):
    doge = {"type": "proxy", "name": "doge", "reweighter": "DoGE", "budget": 80}
    found = planned(
        plain,
        searchers=["dirichlet", "doubled", doge],
        num_trials=9,
        seeds=3,
        bill=2.5,
        confirm={"of": "methods", "seeds": 4},
    )
    assert trainings(found) == {
        "baselines": 1,
        **{f"dirichlet#{n}": 2 for n in range(3)},
        **{f"doubled#{n}": 1 for n in range(3)},
        **{f"doge#{n}": 2 for n in range(3)},
        "confirmations": (1 + 3) * 4,
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.seeds=0", "search.seeds: Input should be greater than or equal to 1, got 0"),
        ("search.searchers=[{type: grid, seeds: -1}]", "search.searchers.0.seeds: Input should be"),
        ("search.bill=0", "search.bill: must be a number of trainings, at least 1"),
        ("search.bill=-3", "search.bill: must be a number of trainings, at least 1"),
        ("search.bill=0.9", "at least 1 (or none fits), got 0.9"),
        ("search.bill=.inf", "search.bill: must be a number of trainings"),
        ("search.bill=lots", "search.bill"),
        ("search.confirm.of=all", "search.confirm.of: Input should be 'best' or 'methods', got"),
        ("search.confirm.sav=true", "unknown key 'search.confirm.sav'; did you mean 'save'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(written, override, said):
    with pytest.raises(ConfigError) as refused:
        load(written, [override])
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_one_domain_is_trained_on_but_not_searched(plain, tmp_path):
    plain["datasets"] = plain["datasets"][:1]
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(plain))
    words = "datasets: 'copy' is the only domain that can be trained on, so 'dirichlet' has nothing"
    for verb in ("check", "plan", "tune"):
        refused = invoke(verb, path)
        assert refused.exit_code == 1
        assert words in refused.output
    assert not (tmp_path / "study").exists()
    done = invoke("train", path, "--save", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert invoke("preview", path).exit_code == 0
    assert invoke("check", path, "search.searchers=[]").exit_code == 0


def test_a_domain_that_is_only_a_target_is_nothing_to_mix_with(plain):
    plain["mixture"] |= {
        "bounds": {"mirror": [0, 0], "cipher": [0, 0]},
        "prior": {"copy": 1.0},
    }
    with pytest.raises(ConfigError, match="'copy' is the only domain that can be trained on"):
        planned(plain)


def test_methods_are_compared_and_their_models_kept(plain, tmp_path, suite):
    """The whole of it on real trainings: two seeds each, one bill, models kept."""
    doge = {"type": "proxy", "name": "doge", "reweighter": "DoGE", "budget": 160}
    plain["search"] = {
        "searchers": [{"type": "dirichlet", "num_trials": 9}, "doubled", doge],
        "seeds": 2,
        "bill": 2.0,
        "confirm": {"of": "methods", "seeds": 2, "save": True},
    }
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump(plain))
    done = invoke("tune", path)
    assert done.exit_code == 0, done.output
    assert "method" in done.output
    assert "unspent" in done.output
    record = read(tmp_path / "study")
    asked = [t.method for t in record.history]
    assert [asked.count(f"{name}#1") for name in ("dirichlet", "doubled", "doge")] == [2, 1, 2]
    rows = ("uniform", "proportional", "dirichlet", "doubled", "doge")
    folders = sorted(p.name for p in (tmp_path / "study" / "models").iterdir())
    assert folders == sorted(f"{name}-{block}" for name in rows for block in (0, 1))
    saved = tmp_path / "study" / "models" / "doge-1"
    trained, base = map(AutoModelForCausalLM.from_pretrained, (saved, suite.model))
    pairs = zip(trained.parameters(), base.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
