"""Every reweighter on the conformance laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raymix.core.errors import TrainingError
from raymix.core.mixture import Mixture
from raymix.core.signals import named
from raymix.core.simplex import log_softmax, tilted
from raymix.reweight import Constant, DoGE, DoReMi, MoS, Schedule
from raymix.testing.conformance import REWEIGHTER_LAWS, steer, steered, window

REWEIGHTERS = (
    DoReMi(),
    DoReMi(clip=False, sampling=None, every=7, same_step=True),
    DoReMi(eta=1e6, smoothing=0.0, clip=False, sampling="proportional"),
    DoGE(),
    DoGE(target="held", same_step=False),
    DoGE(mu=1e-9, sampling="proportional"),
    MoS(),
    MoS(rewards=("transferability", "difficulty", "trajectory"), every=10, relax=0.5),
    MoS("pg", rewards=("trajectory",), lr=0.05, draws=8),
    MoS(target="held", lr=0.1),
    MoS(target="math", held_out=False, rewards=("difficulty",), tau=float("inf")),
)


@pytest.mark.parametrize("law", REWEIGHTER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("reweighter", REWEIGHTERS, ids=str)
def test_conformance(reweighter, law):
    law(reweighter)


LAWS = [law for law in REWEIGHTER_LAWS if law.__name__ != "decisions_are_allowed"]
"""Constant goes on with whatever is in force; bounds that forbid the user's shares are an error."""

GIVEN = (Constant(), Schedule(((0, {"math": 1.0}), (2, {"math": 1.0}), (3, {"math": 1.0}))))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("reweighter", GIVEN, ids=str)
def test_conformance_of_what_decides_nothing_itself(reweighter, law):
    law(reweighter)


@pytest.mark.parametrize(
    "reweighter", [r for r in REWEIGHTERS if not getattr(r, "draws", 0)], ids=str
)
def test_twins_have_equal_weights(reweighter):
    """Two domains of one size that are alike in all that is measured."""
    space = steered(3, reweighter.targets)
    one, two, three, *targets = space.domains
    space = replace(space, domains=(one, two, replace(two, name=three.name), *targets))
    windows = []
    for step in range(1, 6):
        signals = window(space, step * reweighter.every)
        for value in (signals.tokens, *signals.values.values()):
            value[2] = value[1]
            if value.ndim == 2:
                value[:, 2] = value[:, 1]
        windows.append(signals)
    moved = False
    for decision, _ in steer(reweighter, space, windows):
        for mixture in (decision.sampling, decision.loss_weights, decision.gradient_weights):
            if mixture is not None:
                weights = mixture.array()
                assert weights[1] == pytest.approx(weights[2], rel=1e-9)
                moved = moved or weights[0] != pytest.approx(weights[1], rel=1e-3)
    assert moved


def test_weights_that_are_no_mixture_are_called_by_the_reweighters_name():
    for wrong in ((np.nan, 1.0), (-0.5, 1.5)):
        said = pytest.raises(TrainingError, match=r"reweighter DoReMi: weight of 'a' must be")
        with said, named(DoReMi()):
            Mixture(("a", "b"), wrong)


def test_who_is_absent_keeps_its_weight_and_the_others_share_theirs():
    logs = np.log([0.5, 0.3, 0.2])
    found = np.exp(tilted(logs, np.log([2.0, 99.0, 1.0]), np.array([True, False, True])))
    # Of .7 together, in proportion to .5 * 2 and .2.
    np.testing.assert_allclose(found, [0.7 / 1.2, 0.3, 0.7 * 0.2 / 1.2])
    assert tilted(logs, np.ones(3), np.zeros(3, dtype=bool)) is logs
    np.testing.assert_allclose(
        np.exp(tilted(logs, np.ones(3), np.ones(3, dtype=bool))), np.exp(logs)
    )


def test_nothing_overflows():
    logs = tilted(np.log([0.5, 0.5]), np.array([1e300, 0.0]), np.ones(2, dtype=bool))
    assert logs.tolist() == [0.0, -1e300]
    assert tilted(logs, np.array([0.0, 1e300]), np.ones(2, dtype=bool)) == pytest.approx(
        np.log([0.5, 0.5])
    )
    assert log_softmax(np.array([-1e9, -1e9])) == pytest.approx(np.log([0.5, 0.5]))
