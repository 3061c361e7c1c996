"""Any searcher with any strategy: the study hands both on, keeps them apart, confirms them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from raymix.core.codec import encode, to_spec
from raymix.core.errors import ConfigError, StudyError
from raymix.core.job import Stage
from raymix.core.mixture import Mixture, Parameter
from raymix.core.trial import Idle, Proposal, Role
from raymix.report.best import best_of, dump_best, read_best
from raymix.report.facts import facts
from raymix.reweight.constant import Constant
from raymix.reweight.mos import MoS
from raymix.search import (
    Dirichlet,
    Doubled,
    Fixed,
    Grid,
    Ideal,
    MosSearch,
    Online,
    Optuna,
    Proxy,
)
from raymix.search.perturb import Perturb
from raymix.strategy import DMT, MixedSequential, MultiTask, ProMoT, Prompted, Sequential
from raymix.study.confirm import content
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import equal_histories, read
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy()
SPACE = TOY.space()
ONE = Confirm(1, 1)
DUAL = DMT(("math", "code"), k=0.25)
MIXTURES = (
    Mixture.of({"math": 0.5, "code": 0.2, "chat": 0.3}),
    SPACE.project(SPACE.uniform().array()),
)
SEARCHERS = {
    "dirichlet": Dirichlet(),
    "doubled": Doubled(),
    "fixed": Fixed(MIXTURES),
    "grid": Grid(3),
    "ideal": Ideal(rounds=1),
    "searched": Ideal(rounds=2, line_search=True, widths=(0.5, 1.0)),
    "mos": MosSearch(),
    "online": Online(to_spec(MoS())),
    "optuna": Optuna(startup=3),
    "proxy": Proxy(to_spec(Constant())),
}
STRATEGIES = (
    DUAL,
    MultiTask(),
    Sequential(("chat", "math", "code"), 0.1),
    MixedSequential("chat"),
    ProMoT("math"),
    ProMoT("math", carrier="lora"),
    Prompted("math"),
)


def plan(*methods, strategy=DUAL, confirm=ONE):
    return Plan(TOY.space(), strategy, Objective(), methods, confirm=confirm, seed=5)


class Keeping:
    """The toy; keeps the jobs."""

    def __init__(self):
        self.jobs = {}

    def run(self, jobs, report):
        self.jobs |= {job.trial: job for job in jobs}
        return TOY.run(jobs, report)


def finished(folder, the_plan, resume=False):
    study, runner = Study(folder, the_plan, {}, resume=resume), Keeping()
    try:
        run_serial(study, runner)
        return study.history, runner.jobs
    finally:
        study.close()


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_runs_with_dmt(name, tmp_path):
    history, jobs = finished(tmp_path, plan(Method(name, SEARCHERS[name], 4)))
    own = [t for t in history if t.method == name]
    assert own
    assert all(t.finished for t in own if t.role in (Role.SEARCH, Role.FINAL))
    for trial in history:
        job = jobs[trial.number]
        expected = DUAL.stages(trial.mixture, job.space.budget, {})
        # What is measured on a finished training is told by the stages of that training.
        made = job.trained if trial.role is Role.MEASURE and trial.number else job.stages
        if trial.number:
            plain = tuple(replace(made_of, reweighter=None, pools=None) for made_of in made)
            assert plain == expected
            assert all(s.reweighter == trial.proposal.reweighter for s in made)
    assert any(len(job.stages) == 2 for job in jobs.values())


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("name", ["ideal", "online", "proxy", "grid"])
def test_every_strategy_runs_with_any_searcher(name, strategy, tmp_path):
    method = Method(name, SEARCHERS[name], 3, strategy=strategy)
    history, jobs = finished(tmp_path, plan(method, strategy=MultiTask()))
    own = [t for t in history if t.method == name]
    assert own
    for trial in own:
        made = jobs[trial.number].stages or jobs[trial.number].trained
        plain = tuple(replace(stage, reweighter=None) for stage in made)
        assert plain == strategy.stages(trial.mixture, jobs[trial.number].space.budget, {})
    for trial in history:
        wanted = None if strategy == MultiTask() else to_spec(strategy)
        ours = trial.method == name or (
            trial.role is Role.CONFIRM and trial.proposal.note["of"] in {t.number for t in own}
        )
        assert encode(trial.proposal.strategy) == (encode(wanted) if ours else None)


# ---- parameters ----


@dataclass(frozen=True)
class Doubling:
    """Asks for the optimum with one more doubling of the only parameter each time."""

    def propose(self, space, history, rng):
        (k,) = space.params
        value = k.default * 2 ** len(history.own)
        return Proposal(TOY.optimum(), params={k.name: value}) if value <= k.high else Idle.DONE


K = Parameter("k", 1 / 256, 1 / 256, 1.0, log=True)


def test_a_searcher_may_set_k_beside_the_mixture(tmp_path):
    asked = plan(Method("k", Doubling(), 20, params=(K,)), strategy=DMT("math"))
    history, jobs = finished(tmp_path, asked)
    own = [t for t in history if t.method == "k"]
    # What the strategy has anyway is left out: said or not, it is the same training.
    assert [t.proposal.params for t in own] == [{}, *({"k": 2.0**n} for n in range(-7, 1))]
    for trial in own:
        k = trial.proposal.params.get("k", 1 / 256)
        budget = asked.space.budget
        assert jobs[trial.number].stages == DMT("math", k=k).stages(trial.mixture, budget, {})
    # Confirmations train what was found, and baselines what the strategy has.
    for trial in history:
        if trial.role is Role.CONFIRM:
            source = history.trials[trial.proposal.note["of"]].proposal
            assert (trial.proposal.params, trial.proposal.strategy) == (source.params, None)
    again, _ = finished(tmp_path, asked, resume=True)
    assert equal_histories(history, again)


def test_one_mixture_with_other_parameters_is_another_training():
    prior = TOY.space().prior
    plain = Proposal(prior)
    both = {"k": 0.5, "replay": 0.1}
    turned = dict(reversed(both.items()))
    assert content(Proposal(prior, params=both)) == content(Proposal(prior, params=turned))
    others = (
        Proposal(prior, params={"k": 0.5}),
        Proposal(prior, params={"k": 0.25}),
        Proposal(prior, strategy=to_spec(DUAL)),
        Proposal(prior, strategy=to_spec(DMT("math"))),
    )
    assert len({content(p) for p in (plain, *others)}) == 5


def test_a_parameter_that_the_strategy_lacks_is_not_asked(tmp_path):
    study = Study(tmp_path, plan(Method("k", Doubling(), 2, params=(K,)), strategy=MultiTask()), {})
    with pytest.raises(ConfigError, match="MultiTask has no parameter 'k'; it has none"):
        run_serial(study, TOY)
    assert all(t.method != "k" for t in study.history)
    study.close()


# ---- a strategy of a method's own ----


def test_methods_of_several_strategies_share_a_study(tmp_path):
    orders = {"dmt": DUAL, "mixed": MixedSequential("math"), "plain": None}
    methods = [Method(n, Fixed(MIXTURES), 2, strategy=s) for n, s in orders.items()]
    asked = plan(*methods, strategy=MultiTask(), confirm=Confirm(9, 1))
    history, jobs = finished(tmp_path, asked)
    for name, strategy in orders.items():
        own = [t for t in history if t.method == name]
        # A mixture that a baseline or another method has trained is new in another order.
        assert [t.mixture.ordered(TOY.names) for t in own] == list(MIXTURES)
        for trial in own:
            order = strategy or MultiTask()
            budget = asked.space.budget
            assert jobs[trial.number].stages == order.stages(trial.mixture, budget, {})
    # Uniform without a strategy of its own is the baseline; each other one is confirmed.
    confirmed = {t.proposal.note["of"] for t in history if t.role is Role.CONFIRM}
    assert len(confirmed) == 2 + 5
    assert read(tmp_path).header["orders"].keys() == {"dmt", "mixed"}


def test_a_grid_leaves_out_only_what_was_trained_in_its_order(tmp_path):
    confirm = Confirm(0, 0)
    theirs, _ = finished(tmp_path / "a", plan(Method("grid", Grid(3), 99), confirm=confirm))
    method = Method("grid", Grid(3), 99, strategy=MixedSequential("math"))
    own, _ = finished(tmp_path / "b", plan(method, confirm=confirm))
    asked = [sum(t.method == "grid" for t in history) for history in (theirs, own)]
    # Uniform lies on the grid: a baseline has trained it in the study's order only.
    assert asked == [9, 10]
    keys = {t.mixture.weights for t in own if t.method == "grid"}
    assert len(keys) == 10


def test_a_strategy_that_is_the_studys_needs_no_words(tmp_path):
    method = Method("fixed", Fixed(MIXTURES), 2, strategy=DMT(("math", "code"), k=0.25))
    history, _ = finished(tmp_path, plan(method))
    assert {t.proposal.strategy for t in history} == {None}


def test_a_resumed_method_keeps_its_strategy(tmp_path):
    def asked(strategy, trials=1):
        return plan(Method("fixed", Fixed(MIXTURES), trials, strategy=strategy))

    finished(tmp_path, asked(ProMoT("math")))
    with pytest.raises(StudyError, match="method 'fixed' was asked with another strategy than now"):
        Study(tmp_path, asked(None), {}, resume=True)
    with pytest.raises(StudyError, match="method 'fixed' was asked with another strategy than now"):
        Study(tmp_path, asked(ProMoT("code")), {}, resume=True)
    history, _ = finished(tmp_path, asked(ProMoT("math"), 2), resume=True)
    assert sum(t.method == "fixed" for t in history) == 2


def test_branches_need_a_single_stage(tmp_path):
    method = Method("perturb", Perturb(branch=0.5, repeats=1), 9)
    study = Study(tmp_path, plan(method), {})
    words = r"only trainings of a single stage can have branches .* DMT makes 2"
    with pytest.raises(StudyError, match=words):
        run_serial(study, TOY)
    study.close()


# ---- what is told ----


def test_the_best_file_says_in_which_order_it_was_trained(tmp_path):
    history, jobs = finished(tmp_path, plan(Method("k", Doubling(), 3, params=(K,))))
    best = best_of(facts(read(tmp_path)))
    trial = next(t for t in history if best.trial.endswith(f"{t.number:03d}"))
    assert best.strategy.path == "raymix.strategy.dual_stage:DMT"
    assert best.params == trial.proposal.params
    assert best.stages == jobs[trial.number].stages
    file = tmp_path / "best.yaml"
    file.write_text(dump_best(best))
    assert read_best(file) == best


def test_multi_task_goes_without_saying_unless_the_study_is_another(tmp_path):
    method = Method("fixed", Fixed((TOY.optimum(),)), 1, strategy=MultiTask())
    finished(tmp_path / "plain", plan(method, strategy=MultiTask()))
    best = best_of(facts(read(tmp_path / "plain")))
    assert (best.strategy, best.stages) == (None, ())
    assert "strategy" not in dump_best(best)
    finished(tmp_path / "own", plan(method))
    best = best_of(facts(read(tmp_path / "own")))
    assert best.trial.startswith("fixed")
    assert best.strategy == to_spec(MultiTask())
    (stage,) = best.stages
    assert stage == Stage(best.mixture, best.budget)


def test_the_toy_shows_the_order_in_its_curve(tmp_path):
    history, _ = finished(tmp_path, plan(Method("fixed", Fixed(MIXTURES[:1]), 1)))
    trial = next(t for t in history if t.method == "fixed")
    first, second = DUAL.stages(MIXTURES[0], plan().space.budget, {})
    end = next(p for p in reversed(trial.result.curve) if p.stage == 0)
    assert end.progress == pytest.approx(first.budget.amount / 1000)
    share = first.mixture.array() * first.budget.amount / 1000
    losses = [end.metrics[f"eval/{name}/loss"] for name in TOY.names]
    assert losses == pytest.approx(TOY.losses(share).tolist())
    assert [p.stage for p in trial.result.curve] == sorted(p.stage for p in trial.result.curve)
    whole = share + second.mixture.array() * second.budget.amount / 1000
    last = [trial.result.metrics[f"eval/{name}/loss"] for name in TOY.names]
    assert np.allclose(last, TOY.losses(whole))
