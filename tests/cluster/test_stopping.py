"""ASHA by hand: rungs at 25 and 75 percent of the budget, the best third goes on."""

import math

import pytest

from raymix.cluster.config import EarlyStopping
from raymix.cluster.stopping import Asha
from raymix.core.job import Point, Status, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import Proposal, Role, Trial

# Ray Tune reads Ray Data's settings, which name what newer versions will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data")

SETTINGS = EarlyStopping(scheduler="asha", grace=0.25, reduction_factor=3)
MIXTURE = Mixture(("a", "b"), (0.5, 0.5))


def trial(number, role=Role.SEARCH, curve=()):
    result = TrainResult(Status.DONE, {}, tuple(curve)) if curve else None
    return Trial(number, "search", Proposal(MIXTURE, role=role), 0, result)


def point(progress, loss):
    return Point(int(100 * progress), progress, {"loss": loss})


def score(number, metrics):
    return metrics["loss"], 0.0


def asha(**known):
    return Asha(SETTINGS, score, **known)


def test_the_worse_two_thirds_stop_at_a_rung():
    decide = asha()
    # Alone at the rung: goes on. Worse than the best third of those before: stops.
    assert decide.goes_on(trial(1), point(0.3, 1.0))
    assert not decide.goes_on(trial(2), point(0.3, 2.0))
    assert decide.goes_on(trial(3), point(0.3, 0.5))
    # The cutoff is now the best third of 1.0, 2.0 and 0.5: two thirds of the way from 1.0 to 0.5
    # lies at 0.833 by interpolation.
    assert not decide.goes_on(trial(4), point(0.3, 0.84))
    assert decide.goes_on(trial(5), point(0.3, 0.6))


def test_nothing_stops_before_the_first_rung_or_between_rungs():
    decide = asha()
    assert decide.goes_on(trial(1), point(0.3, 1.0))
    assert decide.goes_on(trial(2), point(0.2, 9.0))
    assert decide.goes_on(trial(1), point(0.5, 9.0))
    assert not decide.goes_on(trial(2), point(0.26, 9.0))


def test_the_end_of_the_budget_is_no_rung():
    decide = asha()
    assert decide.goes_on(trial(1), point(1.0, 1.0))
    assert decide.goes_on(trial(2), point(1.0, 9.0))


def test_a_loss_that_is_no_number_decides_nothing():
    decide = asha()
    assert decide.goes_on(trial(1), point(0.3, 1.0))
    assert decide.goes_on(trial(2), point(0.3, math.nan))


def test_only_search_trials_are_compared_and_stopped():
    decide = asha()
    assert decide.goes_on(trial(1, Role.BASELINE), point(0.3, 1.0))
    assert decide.goes_on(trial(2), point(0.3, 2.0))
    for number, role in enumerate(set(Role) - {Role.SEARCH}, start=3):
        assert decide.goes_on(trial(number, role), point(0.3, 9.0))
    assert not decide.goes_on(trial(20), point(0.3, 3.0))


def test_what_was_stopped_stays_stopped_when_a_worker_dies_meanwhile():
    decide = asha()
    assert decide.goes_on(trial(1), point(0.3, 1.0))
    assert not decide.goes_on(trial(2), point(0.3, 2.0))
    assert not decide.goes_on(trial(2), point(0.3, 2.0))


def test_a_resumed_study_decides_as_the_first_would_have():
    straight = asha()
    losses = {1: 1.0, 2: 0.7, 3: 0.9, 4: 0.6}
    for number, loss in losses.items():
        straight.goes_on(trial(number), point(0.3, loss))
    finished = tuple(trial(n, curve=(point(0.3, loss),)) for n, loss in losses.items())
    # Trial 5 had reported at 30 percent when the driver died, and was about to be stopped.
    resumed = asha(finished=finished, earlier={5: {30: point(0.3, 0.8)}})
    assert not straight.goes_on(trial(5), point(0.3, 0.8))
    # It starts again from a checkpoint before that point, and reports it again.
    assert not resumed.goes_on(trial(5), point(0.3, 0.8))
    # Or from one after a point that had been let pass.
    resumed = asha(finished=finished, earlier={5: {30: point(0.3, 0.5)}})
    assert resumed.goes_on(trial(5), point(0.4, 9.0))
    assert resumed.goes_on(trial(5), point(0.8, 9.0))
