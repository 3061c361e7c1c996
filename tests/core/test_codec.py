"""Values to JSON and back; algorithms to specs and back."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raymix.core.codec import (
    decode,
    encode,
    fingerprint,
    from_json,
    from_spec,
    to_json,
    to_spec,
)
from raymix.core.errors import ConfigError, MixtureError
from raymix.core.job import (
    Diagnostic,
    Drawn,
    Point,
    Spec,
    Spent,
    Stage,
    Status,
    TrainJob,
    TrainResult,
)
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.core.signals import Signal
from raymix.core.trial import History, Proposal, Role, Trial
from raymix.reweight.constant import Constant
from raymix.search.dirichlet import Dirichlet
from raymix.search.fixed import Fixed

MIXTURE = Mixture.of({"math": 0.25, "code": 0.75})
SPACE = Space(
    (Domain("math", 1, 2, 3), Domain("code", 4, 5, 6)),
    Budget(7, Unit.LOSS_TOKENS),
    MIXTURE,
    (0.0, 0.1),
    (1.0, 0.9),
    (math.inf, math.inf),
)
RESULT = TrainResult(
    Status.STOPPED,
    {"eval/math/loss": 1.25},
    (Point(3, 0.5, {"train/loss": 2.0}),),
    (Drawn("math", 0.25, 0.26, 10, 8, 1.25, 100, 50, True),),
    MIXTURE,
    {"influence": {"math": [0.1, None]}},
    "somewhere/step-3",
    Spent(3, 10, 100, 50, 1.5, 0.0),
)
PROPOSAL = Proposal(
    MIXTURE,
    Budget(5),
    (3, 4),
    "proxy",
    Spec("some.module:Thing", {"rate": 0.1}),
    frozenset({Diagnostic.INFLUENCE}),
    start=2,
    reference=1,
    role=Role.PROXY,
    params={"k": 0.5},
    note={"round": 1, "parent": None},
)
JOB = TrainJob(4, (Stage(MIXTURE, Budget(5), pools=(1, 2)),), SPACE, 11, measure=PROPOSAL.measure)
TRIAL = Trial(4, "method", PROPOSAL, 11, RESULT, 1.25, 0.5)


@dataclass(frozen=True)
class Loose:
    """An algorithm with fields that only JSON describes."""

    anything: object = None


@pytest.mark.parametrize("value", [SPACE, RESULT, PROPOSAL, JOB, TRIAL, History((TRIAL,), "m")])
def test_round_trip(value):
    line = to_json(value)
    assert "\n" not in line
    assert from_json(type(value), line) == value
    assert decode(type(value), encode(value)) == value


def test_what_json_has_no_word_for_survives():
    result = TrainResult(Status.FAILED, {"a": math.nan, "b": math.inf, "c": -math.inf})
    again = from_json(TrainResult, to_json(result))
    assert math.isnan(again.metrics["a"])
    assert (again.metrics["b"], again.metrics["c"]) == (math.inf, -math.inf)
    # Also where the type is any JSON: a note, or the fields of an algorithm.
    spec = from_json(Spec, to_json(to_spec(Loose({"cap": [math.inf, math.nan]}))))
    assert spec.fields["anything"]["cap"][0] == math.inf
    assert math.isnan(spec.fields["anything"]["cap"][1])


@given(st.floats(allow_nan=False))
def test_floats_are_exact(value):
    point = Point(0, 0.0, {"x": value})
    assert from_json(Point, to_json(point)) == point


@pytest.mark.parametrize("where", ["proposal", "result", "result.spent", "result.curve.0"])
def test_unknown_fields_are_refused_at_any_depth(where):
    plain = json.loads(to_json(TRIAL))
    inner = plain
    for name in where.split("."):
        inner = inner[int(name)] if name.isdigit() else inner[name]
    inner["bogus"] = 1
    with pytest.raises(ValidationError, match="bogus"):
        decode(Trial, plain)


def test_values_are_checked_on_the_way_in():
    with pytest.raises(MixtureError, match=r"weights must sum to 1, got 1\.4"):
        decode(Mixture, {"names": ["a", "b"], "weights": [0.5, 0.9]})


def test_fingerprint_changes_with_every_part_and_not_with_order():
    first = fingerprint({"a": 1, "b": [1, 2]}, "x")
    assert len(first) == 16
    assert fingerprint({"b": [1, 2], "a": 1}, "x") == first
    assert fingerprint({"b": (1, 2), "a": 1}, "x") == first
    others = {fingerprint({"a": 1, "b": [2, 1]}, "x"), fingerprint({"a": 1, "b": [1, 2]}, "y")}
    assert len({first, *others}) == 3


def test_algorithms_cross_as_path_and_fields():
    for algorithm in (Dirichlet("prior", 0.5), Fixed((MIXTURE,))):
        spec = from_json(Spec, to_json(to_spec(algorithm)))
        assert from_spec(spec) == algorithm
    assert to_spec(Dirichlet()).path == "raymix.search.dirichlet:Dirichlet"


def test_algorithms_that_cannot_cross_are_refused():
    @dataclass(frozen=True)
    class Inner:
        pass

    with pytest.raises(ConfigError, match="must be a dataclass at the top level"):
        to_spec(Inner())
    with pytest.raises(ConfigError, match="must be a dataclass"):
        to_spec(object())
    for path in ("no.such.module:Thing", "raymix.search.dirichlet:Nothing"):
        with pytest.raises(ConfigError, match=f"cannot import '{path}'"):
            from_spec(Spec(path))
    with pytest.raises(ValidationError, match="strenght"):
        from_spec(Spec("raymix.search.dirichlet:Dirichlet", {"strenght": 2}))


_SETS = """
from raymix.core.codec import to_json, to_spec
from raymix.core.signals import Signal
from raymix.reweight.constant import Constant
print(to_json(to_spec(Constant(needs=frozenset(Signal)))))
"""


def test_sets_are_written_in_one_order_by_every_process():
    lines = {
        subprocess.run(
            [sys.executable, "-c", _SETS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    (line,) = lines
    assert from_spec(from_json(Spec, line)) == Constant(needs=frozenset(Signal))
