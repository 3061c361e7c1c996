"""Forecasts in the notes of proposals."""

from __future__ import annotations

import pytest

from raymix.core.codec import decode, encode
from raymix.core.forecast import Forecast, forecast_of, realised
from raymix.core.mixture import Budget, Domain, Mixture, Space
from raymix.core.trial import Proposal

MIXTURE = Mixture.of({"a": 0.5, "b": 0.5})
FORECAST = Forecast(3, {"a": -0.1, "b": 0.02}, {"a": 1.0, "b": 2.0})


def test_a_forecast_comes_back_from_a_note_that_was_written_to_disk():
    proposal = Proposal(MIXTURE, note={"round": 1, "forecast": encode(FORECAST)})
    assert forecast_of(decode(Proposal, encode(proposal))) == FORECAST


@pytest.mark.parametrize("note", [None, "text", [1], {"round": 1}])
def test_other_notes_hold_none(note):
    assert forecast_of(Proposal(MIXTURE, note=note)) is None


def test_realised_is_the_change_of_what_both_have():
    metrics = {"eval/a/loss": 0.75, "eval/c/loss": 9.0, "test/b/loss": 9.0, "influence/a/x": 9.0}
    assert realised(FORECAST, metrics) == {"a": -0.25}


def test_room_is_what_epoch_caps_leave():
    domains = (Domain("a", 10, 100, 50), Domain("b", 0, 0, 0))
    space = Space(domains, Budget(20), Mixture.of({"a": 1, "b": 0}), (0, 0), (1, 1), (3.0, 9.0))
    assert space.room().tolist() == [30.0, 0.0]
    assert space.ceiling().tolist() == [1.0, 0.0]
