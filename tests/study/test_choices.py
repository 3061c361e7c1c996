"""What the verdict rests on: choices without controls, fair blocks, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from raymix.core.job import Report, Status, TrainJob, TrainResult
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.report.facts import facts, repeats, rows
from raymix.report.verdict import verdict
from raymix.search.dirichlet import Dirichlet
from raymix.search.fixed import Fixed
from raymix.search.ideal import Ideal
from raymix.strategy.multitask import MultiTask
from raymix.study.confirm import by_group, champion, favourite
from raymix.study.groups import chosen
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan, seeded
from raymix.study.record import read
from raymix.study.serial import run_serial
from raymix.study.store import FILE
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)
METHODS = Confirm(0, 3, "methods")


def plan(*methods: Method, confirm: Confirm = METHODS, toy: Toy = TOY, **fields: object) -> Plan:
    return Plan(toy.space(), MultiTask(), Objective(), methods, confirm=confirm, seed=5, **fields)


def finished(folder: Path, the_plan: Plan, runner: object = TOY, resume: bool = False) -> History:
    study = Study(folder, the_plan, {}, resume=resume)
    try:
        run_serial(study, runner)
        return study.history
    finally:
        study.close()


def own(history: History, method: str) -> list[Trial]:
    return [t for t in history if t.method == method]


def confirms(history: History) -> list[Trial]:
    return [t for t in history if t.role is Role.CONFIRM]


FAR = Mixture.normalised(TOY.names, (18.0, 1.0, 1.0))
GUARD = Objective(constraints=("eval/math/loss <= 0.7",))
RANDOM = seeded(Method("random", Dirichlet(), 4), 3)


# ---- fair blocks, and what is missing ----


def test_a_hard_block_is_not_held_against_the_run_that_it_fell_to():
    def told(group: str, of: int, block: int, score: float) -> Trial:
        note = {"of": of, "block": block, "group": group}
        proposal = Proposal(TOY.space().prior, role=Role.CONFIRM, note=note)
        result = TrainResult(Status.DONE, {})
        return Trial(100 * of + block, "confirm", proposal, block, result, score)

    # Block 1 is 1 harder for all. Run 8 did better in it than run 7 in block 0.
    scores = {"a": ((7, 2.0), (8, 2.5)), "b": ((5, 3.0), (5, 4.0)), "c": ((6, 3.2), (6, 4.2))}
    trials = [
        told(group, of, block, score)
        for group, rows in scores.items()
        for block, (of, score) in enumerate(rows)
    ]
    assert favourite(by_group(History(tuple(trials))), "a") == 8
    # A group that lacks a block is no measure; without any the scores themselves decide.
    assert favourite(by_group(History((*trials[:3], *trials[4:]))), "a") == 8
    assert favourite(by_group(History((*trials[:3], trials[4]))), "a") == 7
    assert favourite(by_group(History(tuple(trials[:2]))), "a") == 7


def test_failed_confirmations_and_baselines_are_said(tmp_path):
    @dataclass
    class Failing:
        def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
            if jobs[0].trial in lost:
                return [TrainResult(Status.FAILED, {}, error="NaN")]
            return TOY.run(jobs, report)

    fixed = (Method("best", Fixed((TOY.optimum(),)), 1), Method("worst", Fixed((FAR,)), 1))
    whole = finished(tmp_path / "whole", plan(*fixed))
    lost = {
        t.number
        for t in confirms(whole)
        if (t.proposal.note["group"], t.proposal.note["block"]) in (("best", 1), ("worst", 0))
    }
    history = finished(tmp_path / "lost", plan(*fixed), Failing())
    known = facts(read(tmp_path / "lost"))
    assert {row.name: row.failed for row in rows(known)} == {
        "uniform": 0, "proportional": 0, "best": 1, "worst": 1
    }  # fmt: skip
    table = repeats(known)
    first = champion(history, known.members)
    assert first in ("uniform", "proportional")
    assert table.missing == ("best, worst had a confirmation that failed",)
    said = verdict(table).sentence
    assert said.startswith(f"The baseline {first} is the best mixture that competed; ")
    assert f"best has lower losses than {first}, but did not compete: a confirmation of" in said
    assert "worst has lower" not in said
    lost = {next(t.number for t in whole if t.method == "proportional")}
    finished(tmp_path / "base", plan(*fixed), Failing())
    table = repeats(facts(read(tmp_path / "base")))
    assert table.missing == ("proportional failed as a baseline",)
    assert {c.baseline for c in verdict(table).comparisons} == {"uniform"}


def test_groups_that_are_not_whole_yet_are_said(tmp_path):
    asked = plan(*RANDOM)
    finished(tmp_path, asked)
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    # The last ask and its result.
    (tmp_path / FILE).write_text("".join(lines[:-3]))
    assert repeats(facts(read(tmp_path))).missing == ("random not confirmed as a whole yet",)


def test_rows_hold_by_how_much_they_break_guards(tmp_path):
    guarded = replace(plan(*RANDOM, Method("best", Fixed((TOY.optimum(),)), 1)), objective=GUARD)
    history = finished(tmp_path, guarded)
    known = facts(read(tmp_path))
    found = {row.name: row.broken for row in rows(known)}
    told = by_group(history)
    for name, broken in found.items():
        assert broken == pytest.approx(np.mean([t.violation for t in told[name].values()]))
    assert min(found.values()) == 0.0 < max(found.values())
    table = repeats(known)
    out = {table.names[row] for row in table.aside}
    assert out == {name for name, broken in found.items() if broken > 0}


# ---- controls ----


def step(number: int, score: float, budget: Budget | None = None, **note: object) -> Trial:
    """A step of IDEAL."""
    note = {"kind": "step", "round": 0, "width": 1.0, "repeat": 0, **note}
    proposal = Proposal(TOY.space().prior, budget, note=note)
    return Trial(number, "m", proposal, 0, TrainResult(Status.DONE, {}), score)


def test_controls_are_not_chosen_and_the_last_step_is_where_the_best_is_not_kept():
    larger, largest = Budget(1100), Budget(1200)
    start = step(1, 2.0, kind="start", width=0.0)
    steps = (step(2, 1.5, larger, round=1), step(3, 1.6, largest, round=2))
    control = step(4, 1.0, largest, kind="control", round=2, width=0.0)
    # As it was written before notes had `keep_best`: sizes differ.
    assert chosen(History((start, *steps, control)), "m").number == 3
    failed = replace(steps[1], result=TrainResult(Status.FAILED, {}), score=math.nan)
    assert chosen(History((start, steps[0], failed, control)), "m").number == 2
    assert chosen(History((control,)), "m") is None
    # At one size the best is, unless the notes say that it is not kept; never a step backwards.
    fixed = (step(2, 1.5, round=1), step(3, 1.6, round=2), step(4, 1.0, round=2, width=-1.0))
    assert chosen(History((start, *fixed)), "m").number == 2
    for keep, number in ((True, 2), (False, 3)):
        noted = tuple(
            replace(t, proposal=replace(t.proposal, note={**t.proposal.note, "keep_best": keep}))
            for t in fixed
        )
        assert chosen(History((start, *noted)), "m").number == number


@pytest.mark.parametrize("mode", ["paper", "fixed"])
def test_what_ideal_chose_is_one_of_its_steps(tmp_path, mode):
    ideal = Ideal(mode, start="uniform", line_search=True)
    history = finished(tmp_path, plan(Method("ideal", ideal, ideal.most)))
    mine = [t for t in own(history, "ideal") if t.role is Role.SEARCH]
    found = chosen(history, "ideal")
    assert found.proposal.note["width"] >= 0
    if mode == "paper":
        assert mine[-1].proposal.note["kind"] == "control"
        assert found.proposal.note["round"] == 2
        others = [t for t in mine if t.proposal.note["round"] == 2 and t.proposal.note["width"] > 0]
        assert found.score == min(t.score for t in others)


def test_at_equal_size_all_have_all_rows(tmp_path):
    @dataclass(frozen=True)
    class Pooled:
        def propose(
            self, space: Space, history: History, rng: np.random.Generator
        ) -> Proposal | Idle:
            return Idle.DONE if history.own else Proposal(space.prior, pools=(500, 900, 900))

    for equal, pools in ((None, None), (False, (500, 900, 900))):
        asked = plan(Method("pooled", Pooled(), 1), confirm=replace(METHODS, equal_size=equal))
        history = finished(tmp_path / str(equal), asked)
        trial = next(t for t in confirms(history) if t.proposal.note["group"] == "pooled")
        assert trial.proposal.pools == pools
        assert trial.mixture == asked.space.prior
