"""Stages worked by hand, laws of all strategies, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymix.core.codec import from_spec, to_spec
from raymix.core.errors import ConfigError
from raymix.core.job import Prompt, Stage, Trainable
from raymix.core.mixture import Budget, Mixture, Unit
from raymix.strategy import DMT, MixedSequential, MultiTask, ProMoT, Prompted, Sequential
from raymix.strategy.tuned import settable, tuned

NAMES = ("math", "code", "chat", "law")
MIXTURE = Mixture.of({"math": 0.3, "code": 0.2, "chat": 0.4, "law": 0.1})


def rows(stage: Stage) -> dict[str, float]:
    """What the stage draws, zeros left out."""
    pairs = zip(stage.mixture.names, stage.mixture.weights, strict=True)
    return {name: share * stage.budget.amount for name, share in pairs if share}


def drawn(
    strategy: object, mixture: Mixture = MIXTURE, amount: int = 1000, **params: float
) -> list[dict[str, float]]:
    stages = strategy.stages(mixture, Budget(amount), params)
    return [pytest.approx(rows(stage), abs=1e-9) for stage in stages]


# ---- worked by hand ----


def test_sequential_draws_the_mixtures_rows_in_the_order():
    strategy = Sequential(("code", ("law", "chat"), "math"))
    assert drawn(strategy) == [{"code": 200}, {"chat": 400, "law": 100}, {"math": 300}]
    stages = strategy.stages(MIXTURE, Budget(1000), {})
    assert [s.restart for s in stages] == [False, True, True]
    assert [s.replay for s in stages] == [(), (), ()]
    assert {s.mixture.names for s in stages} == {NAMES}
    gone_on = Sequential(strategy.order, restart=False).stages(MIXTURE, Budget(1000), {})
    assert [s.restart for s in gone_on] == [False] * 3


def test_sequential_replays_a_share_of_every_later_stage():
    # Stage 2: 500, of which 100 replay code. Stage 3: 300, of which 60 in the ratio 2 : 4 : 1.
    strategy = Sequential(("code", ("law", "chat"), "math"), replay=0.2)
    expected = [
        {"code": 200},
        {"chat": 320, "law": 80, "code": 100},
        {"math": 240, "code": 17, "chat": 34, "law": 9},
    ]
    assert drawn(strategy) == expected
    assert drawn(Sequential(strategy.order), replay=0.2) == expected
    stages = strategy.stages(MIXTURE, Budget(1000), {})
    assert [set(s.replay) for s in stages] == [set(), {"code"}, {"code", "law", "chat"}]


def test_all_of_a_stage_may_be_replay():
    strategy = Sequential(("code", ("law", "chat"), "math"), replay=1.0)
    # What was never drawn is not replayed.
    assert drawn(strategy) == [{"code": 200}, {"code": 500}, {"code": 300}]


def test_mixed_sequential_is_special_then_general():
    assert drawn(MixedSequential(("math", "code"))) == [
        {"math": 300, "code": 200},
        {"chat": 400, "law": 100},
    ]
    assert drawn(MixedSequential("law", ("math", "code", "chat"), replay=0.1))[1] == {
        "math": 270,
        "code": 180,
        "chat": 360,
        "law": 90,
    }


@pytest.mark.parametrize(
    ("k", "first", "second"),
    [
        # a = 1000 / (1 + k / 2)
        (0.0, {"math": 300, "code": 200}, {"chat": 400, "law": 100}),
        # a = 888.9: 444.4 special, 266.67 and 177.78; a fourth of each again; the rest is general.
        (0.25, {"math": 266, "code": 178}, {"math": 67, "code": 45, "chat": 355, "law": 89}),
        # a = 666.7: 200 and 133.3; 333.3 general.
        (1.0, {"math": 200, "code": 133}, {"math": 200, "code": 133, "chat": 267, "law": 67}),
    ],
)
def test_dmt_by_hand(k, first, second):
    strategy = DMT(("math", "code"), k=k)
    assert drawn(strategy) == [first, second]
    assert drawn(DMT(("math", "code")), k=k) == [first, second]
    ahead, after = strategy.stages(MIXTURE, Budget(1000), {})
    assert (ahead.replay, ahead.restart) == ((), False)
    assert (set(after.replay), after.restart) == ({"math", "code"} if k else set(), True)
    assert not DMT("math", restart=False).stages(MIXTURE, Budget(1000), {})[1].restart


def test_dmt_has_the_papers_k():
    assert DMT("math").k == 1 / 256
    first, second = drawn(DMT("math"), amount=100_000)
    # a = 100000 / (1 + .3 / 256) = 99882.9; 29964.9 special; 29965 / 256 = 117.05
    assert first == {"math": 29965}
    assert second == {"math": 117, "code": 19977, "chat": 39953, "law": 9988}


@pytest.mark.parametrize("amount", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("k", [0.0, 0.01, 0.5, 1.0])
def test_dmt_at_the_edges_of_a_search(k, amount):
    general = Mixture.of({"math": 0.0, "code": 0.0, "chat": 0.4, "law": 0.6})
    budget = Budget(amount)
    (only,) = DMT(("math", "code"), k=k).stages(general, budget, {})
    assert only.mixture is general
    special = Mixture.of({"math": 0.7, "code": 0.3, "chat": 0.0, "law": 0.0})
    stages = DMT(("math", "code"), k=k).stages(special, budget, {})
    assert sum(s.budget.amount for s in stages) == amount
    if len(stages) == 1:
        assert stages[0].mixture is special
    else:
        first, again = (s.budget.amount for s in stages)
        assert abs(again - k * first) <= 1
        assert set(stages[1].replay) == set(rows(stages[1])) <= {"math", "code"}


def test_promot_tunes_a_prompt_then_the_model():
    first, second = ProMoT("math", share=0.25).stages(MIXTURE, Budget(1000), {})
    assert rows(first) == {"math": 250}
    assert rows(second) == pytest.approx({"math": 225, "code": 150, "chat": 300, "law": 75})
    assert (first.trainable, first.prompt) == (Trainable.NONE, Prompt.TRAIN)
    assert (second.trainable, second.prompt) == (Trainable.WEIGHTS, Prompt.FROZEN)
    assert first.carriers == second.carriers == ("math",)
    assert (first.restart, second.restart) == (False, True)
    assert (first.replay, second.replay) == ((), ("math",))
    assert drawn(ProMoT("math"), share=0.25)[0] == {"math": 250}
    both = drawn(ProMoT(("math", "law"), share=0.4))
    assert both[0] == {"math": 300, "law": 100}


def test_promots_controls():
    _, second = ProMoT("math", frozen=False).stages(MIXTURE, Budget(1000), {})
    assert (second.trainable, second.prompt) == (Trainable.WEIGHTS, Prompt.TRAIN)
    first, second = ProMoT("math", carrier="lora").stages(MIXTURE, Budget(1000), {})
    assert (first.trainable, first.prompt) == (Trainable.LORA, Prompt.OFF)
    assert (second.trainable, second.prompt) == (Trainable.WEIGHTS, Prompt.OFF)
    assert first.carriers == second.carriers == ("math",)
    (alone,) = Prompted(("math", "code")).stages(MIXTURE, Budget(1000), {})
    assert rows(alone) == pytest.approx({"math": 600, "code": 400})
    assert (alone.trainable, alone.prompt) == (Trainable.NONE, Prompt.TRAIN)
    (joint,) = Prompted("math", weights=True).stages(MIXTURE, Budget(1000), {})
    assert joint.mixture is MIXTURE
    assert (joint.trainable, joint.prompt) == (Trainable.WEIGHTS, Prompt.TRAIN)
    assert alone.carriers == ("math", "code")
    assert joint.carriers == ("math",)


def test_a_mixture_without_the_target():
    without = Mixture.of({"math": 0.0, "code": 0.5, "chat": 0.5, "law": 0.0})
    budget = Budget(10)
    for strategy in (ProMoT("math"), ProMoT("math", carrier="lora"), Prompted("math", True)):
        assert strategy.stages(without, budget, {}) == (Stage(without, budget),)
    (alone,) = Prompted(("math", "law")).stages(without, budget, {})
    assert rows(alone) == {"math": 5, "law": 5}
    assert ProMoT("code").stages(without, Budget(1), {}) == (Stage(without, Budget(1)),)


# ---- laws ----

weights = st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4).filter(lambda w: sum(w) > 0.01)
shares = st.floats(0.0, 1.0)
STAGED = st.one_of(
    shares.map(lambda r: Sequential(("code", ("math", "law"), "chat"), r)),
    shares.map(lambda r: MixedSequential(("math", "code"), replay=r)),
    shares.map(lambda k: DMT(("law", "code"), k=k)),
    shares.map(lambda k: DMT("law", ("chat", "math", "code"), k)),
    st.floats(0.01, 0.99).map(lambda s: ProMoT(("math", "code"), s)),
)


@settings(max_examples=300, deadline=None)
@given(weights, STAGED, st.integers(1, 5000), st.sampled_from(Unit))
def test_stages_are_whole_and_come_to_the_budget(weights, strategy, amount, unit):
    mixture, budget = Mixture.normalised(NAMES, weights), Budget(amount, unit)
    stages = strategy.stages(mixture, budget, {})
    assert sum(stage.budget.amount for stage in stages) == amount
    assert stages == strategy.stages(mixture, budget, {})
    seen: set[str] = set()
    for stage in stages:
        assert stage.budget.unit is unit
        assert stage.mixture.names == NAMES
        own = rows(stage)
        if len(stages) > 1:
            assert all(abs(count - round(count)) < 1e-6 for count in own.values())
        assert set(stage.replay) <= set(own)
        assert set(stage.replay) == set(own) & seen
        seen |= set(own)
    if len(stages) == 1:
        assert stages == (Stage(mixture, budget),)
        assert stages[0].mixture is mixture
        assert stages[0].budget is budget


@settings(max_examples=100, deadline=None)
@given(weights, STAGED, st.integers(1, 3000), st.permutations(NAMES))
def test_the_order_of_the_domains_changes_nothing(weights, strategy, amount, order):
    mixture = Mixture.normalised(NAMES, weights)
    moved = mixture.ordered(tuple(order))
    pairs = zip(
        strategy.stages(mixture, Budget(amount), {}),
        strategy.stages(moved, Budget(amount), {}),
        strict=True,
    )
    for one, other in pairs:
        assert other.mixture.ordered(NAMES) == one.mixture
        assert (other.budget, set(other.replay)) == (one.budget, set(one.replay))


@settings(max_examples=200, deadline=None)
@given(weights, st.floats(0.0, 1.0), st.integers(40, 5000))
def test_dmts_second_stage_has_k_times_the_first(weights, k, amount):
    mixture = Mixture.normalised(NAMES, [w + 0.1 for w in weights])
    first, second = DMT(("math", "code"), k=k).stages(mixture, Budget(amount), {})
    for name in ("math", "code"):
        again = rows(second).get(name, 0.0)
        assert abs(round(again) - k * round(rows(first).get(name, 0.0))) <= 0.5 + 1e-9
    # Special and general are to one another as in the mixture, to within the rounding.
    plain = mixture.as_dict()
    general = sum(rows(second).get(n, 0.0) for n in ("chat", "law"))
    ratio = (plain["math"] + plain["code"]) / (plain["chat"] + plain["law"])
    assert abs(first.budget.amount - ratio * general) <= 3 * (1 + ratio)


@settings(max_examples=100, deadline=None)
@given(weights, st.integers(1, 3000))
def test_dmt_without_k_is_mixed_sequential(weights, amount):
    mixture = Mixture.normalised(NAMES, weights)
    plain = MixedSequential(("math", "code")).stages(mixture, Budget(amount), {})
    assert DMT(("math", "code"), k=0.0).stages(mixture, Budget(amount), {}) == plain


@pytest.mark.parametrize(
    "strategy",
    [
        MultiTask(),
        Sequential(("math", ("code", "chat"), "law"), 0.25),
        MixedSequential(("math", "code"), ("chat", "law")),
        DMT("math", k=0.5),
        ProMoT(("math", "code"), 0.3, frozen=False),
        Prompted("math", True),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_strategy_crosses_processes(strategy):
    assert from_spec(to_spec(strategy)) == strategy
    assert strategy.stages(MIXTURE, Budget(64), {})


# ---- parameters ----


def test_numbers_may_be_set_and_nothing_else():
    assert settable(DMT("math")) == ("k",)
    assert settable(Sequential(("math",))) == ("replay",)
    assert settable(ProMoT("math")) == ("share",)
    assert settable(MultiTask()) == settable(Prompted("math")) == ()
    plain = DMT("math")
    assert tuned(plain, {}) is plain
    assert tuned(plain, {"k": 0.5}) == DMT("math", k=0.5)


BAD: Mapping[str, tuple[object, str]] = {
    "no parameter": (MultiTask(), "MultiTask has no parameter 'k'; it has none"),
    "of another": (
        Sequential(("math", "code", "chat", "law")),
        "Sequential has no parameter 'k'; it has replay",
    ),
    "beyond": (DMT("math"), "DMT.k must be between 0 and 1, got 1.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_parameter_that_does_not_fit_is_named(case):
    strategy, words = BAD[case]
    with pytest.raises(ConfigError) as refused:
        strategy.stages(MIXTURE, Budget(100), {"k": 1.5})
    assert str(refused.value) == words


# ---- bad input ----


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DMT("math", k=-0.1), "DMT.k must be between 0 and 1, got -0.1"),
        (lambda: DMT("math", k=1.01), "DMT.k must be between 0 and 1, got 1.01"),
        (lambda: DMT("math", k=math.nan), "DMT.k must be between 0 and 1, got nan"),
        (lambda: DMT(()), "DMT.special must name at least one domain, got ()"),
        (lambda: DMT(""), "DMT.special must name at least one domain, got ''"),
        (lambda: DMT("math", ()), "DMT.general must name at least one domain, got ()"),
        (lambda: DMT("math", "math"), "DMT: domain 'math' is both special and general"),
        (lambda: DMT(("a", "a")), "DMT.special names domain 'a' twice"),
        (
            lambda: MixedSequential("math", replay=2.0),
            "MixedSequential.replay must be between 0 and 1, got 2.0",
        ),
        (lambda: Sequential(()), "Sequential.order must be a list of domains, got ()"),
        (lambda: Sequential("math"), "Sequential.order must be a list of domains, got 'math'"),
        (
            lambda: Sequential(("math", ())),
            "Sequential.order.1 must name at least one domain, got ()",
        ),
        (lambda: Sequential(("a", ("b", "a"))), "Sequential.order names domain 'a' twice"),
        (lambda: Sequential(("a",), -1.0), "Sequential.replay must be between 0 and 1, got -1.0"),
        (lambda: ProMoT(()), "ProMoT.target must name at least one domain, got ()"),
        (lambda: ProMoT("a", 0.0), "ProMoT.share must be above 0 and below 1, got 0.0"),
        (lambda: ProMoT("a", 1.0), "ProMoT.share must be above 0 and below 1, got 1.0"),
        (lambda: ProMoT("a", carrier="x"), "ProMoT.carrier must be prompt or lora, got 'x'"),
        (
            lambda: ProMoT("a", carrier="lora", frozen=False),
            "ProMoT.frozen must be true with carrier lora: a stage moves the model's weights or "
            "adapters, not both",
        ),
        (lambda: Prompted(()), "Prompted.target must name at least one domain, got ()"),
    ],
)
def test_settings_that_mean_nothing(make, words):
    with pytest.raises(ConfigError) as refused:
        make()
    assert str(refused.value) == words


KNOWN = "known: math, code, chat, law"


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (DMT("maths"), f"DMT.special: unknown domain 'maths' (did you mean 'math'?); {KNOWN}"),
        (DMT("math", "x"), f"DMT.general: unknown domain 'x'; {KNOWN}"),
        (DMT("math", ("chat", "law")), "DMT: domain 'code' is neither special nor general"),
        (
            DMT(NAMES),
            "DMT.special names all domains (math, code, chat, law): none is left to be general",
        ),
        (
            Sequential(("math", "code", "chta", "law")),
            f"Sequential.order: unknown domain 'chta' (did you mean 'chat'?); {KNOWN}",
        ),
        (
            Sequential(("math", "code", "chat")),
            "Sequential.order has no place for domain 'law': every domain of the mixture needs one",
        ),
        (ProMoT("lew"), f"ProMoT.target: unknown domain 'lew' (did you mean 'law'?); {KNOWN}"),
        (Prompted("lew"), f"Prompted.target: unknown domain 'lew' (did you mean 'law'?); {KNOWN}"),
    ],
)
def test_domains_that_do_not_fit(strategy, words):
    with pytest.raises(ConfigError) as refused:
        strategy.stages(MIXTURE, Budget(1000), {})
    assert str(refused.value) == words
