"""The strategies script: what it asks for, and, slowly, what the sources say on the suite."""

import mlflow
import pytest
from scripts import loaded, ran

from raymix.core.codec import from_spec
from raymix.core.errors import ConfigError
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.core.trial import Role
from raymix.experiment.build import plan, prepare, space
from raymix.experiment.config import Experiment
from raymix.report.facts import facts
from raymix.study.confirm import by_group
from raymix.study.record import read

SHARES = {"dmt 1/256", "dmt 1/64", "dmt 1/16", "dmt 1/4", "dmt 1"}


@pytest.fixture(scope="module")
def script():
    return loaded("strategies.py")


def test_groups_are_named_or_refused(script):
    names, weights = ("math", "code", "chat", "noise"), {"noise": 0.0}
    groups = script["grouped"](names, weights, "math, code", None)
    assert (groups.special, groups.general, groups.target) == (("math", "code"), ("chat",), "math")
    assert groups.others == ("code", "chat")
    with pytest.raises(ConfigError, match=r"--special: unknown domain 'maths'.*math"):
        script["grouped"](names, weights, "maths", None)
    with pytest.raises(ConfigError, match=r"--target: unknown domain 'law'"):
        script["grouped"](names, weights, "math", "law")
    for special in ("", "math,code,chat"):
        with pytest.raises(ConfigError, match="--special must name at least one domain"):
            script["grouped"](names, weights, special, None)


def test_every_strategy_is_a_method_of_one_training_under_one_budget(script, describe, tmp_path):
    experiment = Experiment.model_validate(describe(tmp_path))
    prepared = prepare(experiment)
    groups = script["grouped"](experiment.names, {}, experiment.names[0], None)
    asked = script["comparison"](experiment, prepared, groups, 3, True)
    found = plan(asked, space(asked, prepared.domains))
    names = {method.name for method in found.methods}
    assert {"sequential", script["MIXED"], "promot", *SHARES} < names
    assert len(found.methods) == 14
    assert set(found.baselines) == {"multi-task"}
    budget = Budget(experiment.mixture.budget, Unit.EXAMPLES)
    for method in found.methods:
        (mixture,) = method.searcher.mixtures
        stages = method.strategy.stages(Mixture.of(mixture), budget, {})
        assert sum(stage.budget.amount for stage in stages) == budget.amount
        assert method.num_trials == 1


def test_influence_with_a_prompt_is_refused_before_any_training(describe, tmp_path):
    described = describe(tmp_path)
    first = described["datasets"][0]["domain"]
    described["search"] = {
        "searchers": [{"type": "ideal", "strategy": {"type": "ProMoT", "target": first}}]
    }
    experiment = Experiment.model_validate(described)
    sizes = tuple(Domain(name, 400, 4000, 1600) for name in experiment.names)
    with pytest.raises(ConfigError, match=r"search\.searchers\.0.*influence.*ProMoT"):
        plan(experiment, space(experiment, sizes))


def test_influence_with_stages_of_weights_is_allowed(describe, tmp_path):
    described = describe(tmp_path)
    first = described["datasets"][0]["domain"]
    described["search"] = {
        "searchers": [{"type": "ideal", "strategy": {"type": "DMT", "special": first, "k": 0.5}}]
    }
    experiment = Experiment.model_validate(described)
    sizes = tuple(Domain(name, 400, 4000, 1600) for name in experiment.names)
    within = space(experiment, sizes)
    assert isinstance(within, Space)
    assert plan(experiment, within).methods[0].strategy is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")
@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")
def test_sequential_training_forgets_and_replay_reduces_it(tmp_path):
    """On the suite, with each of three seeds; one MLflow parent holds all of it."""
    printed = ran("strategies.py", ["--no-controls", "--folder", "out"], tmp_path)
    assert "What the sources say" in printed.stdout
    known = facts(read(tmp_path / "out" / "study"))
    told = by_group(known.history)

    def ends(name, stage, domain="cipher"):
        """Eval loss of a domain at the end of a stage, with each seed."""
        found = {}
        for block, trial in told[name].items():
            points = [point for point in trial.result.curve if point.stage == stage]
            found[block] = points[-1].metrics[f"eval/{domain}/loss"]
        return found

    assert set(ends("sequential", 0)) == {0, 1, 2}
    before, after = ends("sequential", 0), ends("sequential", 2)
    assert all(after[block] > before[block] + 0.1 for block in before)
    forgetful, kept = ends("mixed-sequential = dmt 0", 1), ends("dmt 1/4", 1)
    assert all(kept[block] < forgetful[block] - 0.1 for block in kept)
    specs = {
        t.method: from_spec(t.proposal.strategy) for t in known.history if t.role is Role.SEARCH
    }
    assert specs["dmt 1/256"].k == 1 / 256
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "raymix")
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs} - {None}
    assert len(parents) == 1
