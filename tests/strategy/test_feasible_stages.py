"""A budget that leaves a stage no step is refused before anything trains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from raymix.core.errors import ConfigError
from raymix.core.job import Stage
from raymix.core.mixture import Budget, Mixture, Unit
from raymix.strategy import DMT, MixedSequential, MultiTask, ProMoT, Sequential
from raymix.strategy.check import check
from raymix.testing.toy import Toy

# Rows of 10 tokens and 5 loss tokens.
SPACE = Toy().space(1000, max_epochs=2.0)
MIXTURE = Mixture.of({"math": 0.05, "code": 0.15, "chat": 0.8})
ORDER = Sequential(("math", "code", "chat"))


def refusal(strategy, budget, mixture=MIXTURE, **fields):
    with pytest.raises(ConfigError) as refused:
        check(strategy, replace(SPACE, budget=budget, **fields), mixture)
    return str(refused.value)


@pytest.mark.parametrize(
    ("strategy", "budget", "words"),
    [
        (
            ORDER,
            Budget(5),
            "Sequential: stage 1 (math) gets 0.25 of the budget of 5 examples, less than 1: ",
        ),
        (
            MixedSequential(("math", "code")),
            Budget(2),
            "MixedSequential: stage 1 (math, code) gets 0.4 of the budget of 2 examples, less than",
        ),
        (
            DMT("math"),
            Budget(5),
            "DMT: stage 1 (math) gets 0.25 of the budget of 5 examples, less than 1: ",
        ),
        (
            ProMoT("math", share=0.01),
            Budget(40),
            "ProMoT: stage 1 (math) gets 0.4 of the budget of 40 examples, less than 1: ",
        ),
        (
            ORDER,
            Budget(150, Unit.TOKENS),
            "Sequential: stage 1 (math) gets 7 of the budget of 150 tokens, less than a row (10): ",
        ),
        (
            ORDER,
            Budget(80, Unit.LOSS_TOKENS),
            "Sequential: stage 1 (math) gets 4 of the budget of 80 loss_tokens, less than a row "
            "(5): ",
        ),
    ],
)
def test_a_stage_without_a_step_is_named(strategy, budget, words):
    found = refusal(strategy, budget)
    assert found.startswith(words), found
    assert found.endswith("no step comes of it; raise mixture.budget, or its share")


@pytest.mark.parametrize("strategy", [ORDER, MixedSequential("math"), DMT("math"), ProMoT("math")])
def test_what_can_be_trained_passes_as_it_is(strategy):
    assert check(strategy, SPACE, MIXTURE) == strategy.stages(MIXTURE, SPACE.budget, {})
    # Just enough: a row for the smallest stage.
    small = replace(SPACE, budget=Budget(20))
    assert check(strategy, small, MIXTURE)[0].budget.amount >= 1


def test_a_group_that_a_mixture_leaves_out_is_no_stage():
    without = Mixture.of({"math": 0.0, "code": 0.2, "chat": 0.8})
    assert len(check(ORDER, SPACE, without)) == 2
    assert len(check(DMT("math"), SPACE, without)) == 1
    assert len(check(MultiTask(), replace(SPACE, budget=Budget(1, Unit.TOKENS)), MIXTURE)) == 1


def test_caps_hold_for_all_stages_together():
    # 2 epochs of 1000 rows; a = 4000 / 1.4: 1143 in either stage.
    tight = replace(SPACE, budget=Budget(4000))
    mixture = Mixture.of({"math": 0.4, "code": 0.2, "chat": 0.4})
    check(DMT("math", k=0.2), tight, mixture)
    found = refusal(DMT("math", k=1.0), Budget(4000), mixture)
    assert found == (
        "DMT: its 2 stages draw 2286 examples of 'math', but its epoch cap allows 2000"
    )
    check(DMT("math", k=1.0), replace(tight, replacement=True), mixture)


@dataclass(frozen=True)
class Halves:
    """A strategy of somebody else's."""

    def stages(self, mixture, budget, params):
        early = budget.amount // 20
        return Stage(mixture, Budget(max(1, early))), Stage(mixture, Budget(budget.amount - early))


def test_a_strategy_of_ones_own_is_checked_alike():
    assert len(check(Halves(), SPACE, MIXTURE)) == 2
    in_tokens = replace(SPACE, budget=Budget(100, Unit.TOKENS))
    with pytest.raises(ConfigError, match=r"Halves: stage 1 \(math, code, chat\) gets 5 of"):
        check(Halves(), in_tokens, MIXTURE)
