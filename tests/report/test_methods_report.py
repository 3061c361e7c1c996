"""Methods held against each other: hand-made curves, a whole study on a toy, the figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from raymix.core.job import Point, Status, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import Proposal, Role, Trial
from raymix.report.compared import path, write_comparison
from raymix.report.facts import Facts, facts, repeats
from raymix.report.methods import Arm, accuracies, arms, methods_report, reached, words
from raymix.report.table import report
from raymix.report.verdict import verdict
from raymix.search.dirichlet import Dirichlet
from raymix.search.doubled import Doubled
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan, seeded
from raymix.study.record import Record, read
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)


def finished(folder: Path) -> Record:
    methods = (
        *seeded(Method("random", Dirichlet(), 9), 3),
        *seeded(Method("doubled", Doubled(), 1), 3),
    )
    plan = Plan(
        TOY.space(),
        MultiTask(),
        Objective(),
        methods,
        baselines={"skewed": Mixture.normalised(TOY.names, (8.0, 1.0, 1.0))},
        confirm=Confirm(0, 3, "methods"),
        bill=4.0,
    )
    study = Study(folder, plan, {})
    run_serial(study, TOY)
    study.close()
    return read(folder)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return finished(tmp_path_factory.mktemp("methods"))


@pytest.fixture(scope="module")
def known(record: Record) -> Facts:
    return facts(record)


def printed(renderable: object) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_arms_hold_what_each_method_came_to_and_what_it_spent(known):
    found = {arm.name: arm for arm in arms(known)}
    assert found.keys() == {"random", "doubled", "uniform", "proportional", "skewed"}
    assert found["random"].units == (4.0, 4.0, 4.0)
    assert found["random"].asked == 4.0
    # Its own training, and the proportional one that it looked at.
    assert found["doubled"].units == (2.0, 2.0, 2.0)
    assert found["skewed"].units == ()
    scores = [np.mean([t.score for t in arm.trials]) for arm in arms(known)]
    assert scores == sorted(scores)
    for arm in found.values():
        assert [t.proposal.note["block"] for t in arm.trials] == [0, 1, 2]
        mean = np.mean([t.mixture.array() for t in arm.trials], axis=0)
        assert arm.mixture.array() == pytest.approx(mean)


def test_under_a_bill_a_method_starts_from_nothing_but_what_it_pays_for(tmp_path):
    seen: dict[str, set[str]] = {}

    class Looking(Dirichlet):
        def propose(self, space, history, rng):
            seen.setdefault(history.method, set()).update(
                t.method for t in history if t.role is Role.BASELINE
            )
            return super().propose(space, history, rng)

    class Paying(Looking):
        pays_for = ("proportional",)

    for bill in (None, 2.0):
        methods = (Method(f"free {bill}", Looking(), 2), Method(f"paying {bill}", Paying(), 2))
        plan = Plan(TOY.space(), MultiTask(), Objective(), methods, confirm=Confirm(0), bill=bill)
        study = Study(tmp_path / str(bill), plan, {})
        run_serial(study, TOY)
        study.close()
    assert seen["free None"] == seen["paying None"] == {"uniform", "proportional"}
    assert seen["free 2.0"] == set()
    assert seen["paying 2.0"] == {"proportional"}


def confirmation(block: int, losses: list[tuple[float, float]], goal: float) -> Trial:
    """A verdict training that had `losses` (progress, loss of every domain)."""

    def metrics(loss: float) -> dict[str, float]:
        return {f"eval/{name}/loss": loss for name in TOY.names}

    curve = tuple(Point(i, at, metrics(loss)) for i, (at, loss) in enumerate(losses, start=1))
    result = TrainResult(Status.DONE, metrics(goal), curve)
    note = {"of": 1, "block": block}
    proposal = Proposal(TOY.space().prior, role=Role.CONFIRM, note=note)
    return Trial(9, "confirm", proposal, 0, result, goal)


def test_reached_is_read_off_the_curve_between_two_evaluations(known):
    target = Arm(
        "proportional",
        (confirmation(0, [(0.5, 2.0), (1.0, 1.0)], 1.0), confirmation(1, [(1.0, 0.5)], 0.5)),
    )
    other = Arm(
        "other",
        (
            confirmation(0, [(0.25, 2.0), (0.75, 0.0), (1.0, 0.0)], 0.0),
            confirmation(1, [(0.5, 2.0), (1.0, 0.6)], 0.6),
            confirmation(2, [(1.0, 0.1)], 0.1),
        ),
    )
    # 2 to 0 between .25 and .75: 1 is half-way. The second never gets to .5; the third has no pair.
    assert reached(known, other, target) == (pytest.approx(0.5), math.inf)
    assert reached(known, target, target) == (1.0, 1.0)


def test_accuracies_are_read_by_split():
    metrics = {"eval/a/accuracy": 0.5, "test/a/accuracy": 0.25, "eval/a/loss": 1.0}
    assert accuracies(metrics, "eval") == {"a": 0.5}
    assert accuracies(metrics, "test") == {"a": 0.25}


def test_every_verdict_is_said_once(known):
    found, said = arms(known), verdict(repeats(known))
    told = words(known, found, said)
    against = [c for c in said.comparisons if c.baseline == "proportional"]
    listed = " ".join(told[1:4])
    for c in against:
        assert f"{c.name} ({c.difference:+.3f})" in listed
    assert "Of 4 units each, unspent: doubled 2.00." in told
    text = printed(methods_report(known, optimum=0.0))
    assert "units of 4" in text
    assert "gap" in text
    assert all(name in text for name in (*TOY.names, "skewed", "random"))


def test_the_report_of_such_a_study_ends_with_it(record):
    text = printed(report(record))
    assert "Methods, each trained again at equal size" in text
    assert text.rstrip().endswith("of the tokens.") or "unspent: doubled" in text.splitlines()[-1]


def test_a_path_starts_at_the_first_mixture_and_ends_at_the_choice(known):
    steps = list(path(known, "random#1"))
    spent = [at for at, _ in steps]
    assert spent == sorted(spent)
    assert (spent[0], spent[-1]) == (0.0, 4.0)
    own = [t for t in known.history if t.method == "random#1"]
    assert steps[0][1] == own[0].mixture
    assert steps[-1][1] == min(own, key=lambda t: t.score).mixture


def test_the_figures_are_written(known, tmp_path):
    written = write_comparison(known, tmp_path)
    assert [p.name for p in written] == ["methods.png", "trajectories.png", "cost.png"]
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in written)
