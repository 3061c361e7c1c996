"""How a reweighter is written inside a searcher's settings."""

from __future__ import annotations

import re

import pytest
import yaml

from raymix.core.codec import decode, encode, from_spec, to_spec
from raymix.core.errors import ConfigError
from raymix.core.job import Spec
from raymix.core.mixture import Domain
from raymix.data.prepare import prepare as prepare_data
from raymix.experiment.build import data_spec, identity, plan, setup, space
from raymix.experiment.config import Experiment
from raymix.experiment.load import dump, load
from raymix.reweight import DoGE, DoReMi, MoS, Schedule
from raymix.search import MosSearch, Online, Proxy
from raymix.train.config import Setup


def planned(plain, *searchers, **fields):
    plain["search"]["searchers"] = list(searchers)
    experiment = Experiment.model_validate({**plain, **fields})
    domains = tuple(Domain(name, 10, 100, 50) for name in experiment.names)
    return plan(experiment, space(experiment, domains)).methods


def test_a_reweighter_is_its_name_or_a_block(plain):
    written = yaml.safe_load("""
        - {type: Proxy, name: doremi, reweighter: {type: DoReMi, eta: 0.5, clip: false}, rounds: 2}
        - {type: proxy, name: doge, reweighter: doge, budget: 100}
        - type: online
          name: mos
          seeds: 2
          reweighter:
            type: MoS
            settings: {rewards: [difficulty, trajectory], tau: .inf}
        - {type: online, name: replay, reweighter: {type: Schedule, points: [[0, {copy: 1.0}]]}}
        - {type: mos_search, draws: 8}
    """)
    doremi, doge, mos, again, replay, policy = planned(plain, *written)
    assert doremi.searcher == Proxy(to_spec(DoReMi(eta=0.5, clip=False)), rounds=2)
    assert doge.searcher == Proxy(to_spec(DoGE()), budget=100)
    made = MoS(rewards=("difficulty", "trajectory"), tau=float("inf"))
    assert mos.searcher == again.searcher == Online(to_spec(made))
    assert [(m.name, m.group, m.repeat) for m in (mos, again)] == [
        ("mos#0", "mos", 0),
        ("mos#1", "mos", 1),
    ]
    assert from_spec(mos.searcher.reweighter) == made
    assert from_spec(replay.searcher.reweighter) == Schedule(((0, {"copy": 1.0}),))
    assert policy.searcher == MosSearch(draws=8)
    # They end by themselves, so they ask for no more than they can use.
    assert [m.num_trials for m in (doremi, doge, mos, policy)] == [5, 2, 1, 2]


def test_a_class_of_ones_own_and_a_spec_are_understood(plain):
    path = "raymix.reweight.doge:DoGE"
    spec = Spec(path, {"mu": 0.5})
    for number, written in enumerate(
        ({"type": path, "mu": 0.5}, spec, encode(spec), {"path": path, "fields": {"mu": 0.5}})
    ):
        (method,) = planned(plain, {"type": "proxy", "name": str(number), "reweighter": written})
        assert from_spec(method.searcher.reweighter) == DoGE(mu=0.5)


@pytest.mark.parametrize(
    ("searcher", "said"),
    [
        (
            {"type": "proxy", "reweighter": "doremy"},
            "no reweighter 'doremy' (did you mean 'doremi'?); known: constant, doge, doremi, mos",
        ),
        (
            {"type": "proxy", "reweighter": {"type": "DoReMi", "etta": 1}},
            "'DoReMi' has no field 'etta'; known: clip, eta, every",
        ),
        (
            {"type": "proxy", "reweighter": {"type": "DoReMi", "eta": -1}},
            "proxy.reweighter: DoReMi.eta must be a number above 0, got -1.0",
        ),
        (
            {"type": "proxy", "reweighter": {"type": "DoReMi", "eta": "much"}},
            "proxy.reweighter: DoReMi.eta: Input should be a valid number",
        ),
        ({"type": "proxy", "reweighter": {"eta": 1.0}}, "proxy.reweighter needs a 'type'"),
        ({"type": "proxy", "reweighter": 3}, "proxy.reweighter must be a name or {type: ..}"),
        ({"type": "proxy"}, "'proxy': Proxy.__init__() missing"),
        (
            {"type": "proxy", "reweighter": "raymix.search.grid:Grid"},
            "'raymix.search.grid:Grid' is no dataclass with a method update",
        ),
        (
            {"type": "DoReMi", "eta": 1.0},
            "'DoReMi' is a reweighter: it works inside a training. Write {type: Proxy, reweighter: "
            "DoReMi}",
        ),
        ({"type": "online", "reweighter": "doremi"}, "DoReMi needs the losses of a reference"),
        (
            {"type": "proxy", "reweighter": {"type": "doge", "target": "mirrr"}},
            "DoGE.target: no domain 'mirrr' (did you mean 'mirror'?)",
        ),
        (
            {"type": "proxy", "reweighter": {"type": "doge", "target": "mirror"}},
            "give it an upper bound of 0 (mixture.bounds: {mirror: [0, 0]})",
        ),
        (
            {"type": "proxy", "reweighter": "doge", "model": "small"},
            "Proxy.model 'small' is no model; known (from proxies): target",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_work(plain, searcher, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        planned(plain, searcher)


def test_a_target_is_bounded_to_nothing(plain):
    plain["mixture"]["bounds"] = {"mirror": [0, 0]}
    plain["mixture"]["prior"] = {"copy": 0.5, "cipher": 0.5}
    reweighter = {"type": "DoGE", "target": "mirror"}
    (method,) = planned(plain, {"type": "proxy", "reweighter": reweighter})
    assert from_spec(method.searcher.reweighter).targets == ("mirror",)


def test_an_experiment_with_reweighters_is_written_and_read_again(plain, tmp_path):
    searcher = {"type": "proxy", "reweighter": {"type": "DoReMi", "eta": 0.5}, "model": "small"}
    plain["search"]["searchers"] = [searcher]
    plain["proxies"] = {"small": plain["model_name_or_path"]}
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump(plain))
    experiment = load(path)
    assert Experiment.model_validate(dump(experiment)) == experiment
    (method,) = planned(plain, *plain["search"]["searchers"])
    assert method.searcher.model == "small"
    override = load(path, ["search.searchers.0.reweighter.eta=0.25"])
    assert override.search.searchers[0].settings["reweighter"]["eta"] == 0.25


def test_proxies_reach_the_workers_and_count(plain):
    experiment = Experiment.model_validate(plain)
    prepared = prepare_data(data_spec(experiment))
    assert "proxies" not in identity(experiment, prepared), "studies begun before go on"
    path = plain["model_name_or_path"]
    more = Experiment.model_validate({**plain, "proxies": {"small": path}})
    sent = decode(Setup, encode(setup(more, prepared)))
    assert sent.models == {"target": path, "small": path}
    assert identity(more, prepared)["proxies"] == {"small": path}


def test_a_proxy_that_cannot_be_is_refused(plain, tmp_path):
    with pytest.raises(ConfigError, match="proxies: 'target' is model_name_or_path"):
        Experiment.model_validate({**plain, "proxies": {"target": "x"}})
    gone = Experiment.model_validate({**plain, "proxies": {"small": str(tmp_path / "gone")}})
    with pytest.raises(ConfigError, match=r"proxies\.small: no folder"):
        data_spec(gone)
