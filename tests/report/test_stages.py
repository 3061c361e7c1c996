"""Matrices of losses stage by domain: worked by hand, printed, drawn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console, Group
from staged_studies import (
    BASE,
    NAMES,
    ONE,
    THREE,
    TWO,
    ByHand,
    Carried,
    Ordered,
    Together,
    compared,
    facts_of,
    space,
    trained,
)

from raymix.core.job import Spec, Status
from raymix.core.trial import Proposal
from raymix.report.facts import facts
from raymix.report.stage_figure import stages_figure, write_stages
from raymix.report.stage_tables import stage_tables
from raymix.report.stages import courses, planned, staged
from raymix.report.table import report
from raymix.report.write import write_report
from raymix.search.dirichlet import Dirichlet
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read
from raymix.study.serial import run_serial
from raymix.study.study import Study


def printed(parts: object, width: int = 120) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(Group(*parts) if isinstance(parts, list) else parts)
    return capture.get()


def row(text: str, name: str) -> list[str]:
    """The words of the first line that starts with `name`."""
    return next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()


def finished(folder, strategy):
    methods = (Method("random", Dirichlet(), 2),)
    plan = Plan(space(), strategy, Objective(), methods, confirm=Confirm(1, 3))
    study = Study(folder, plan, {})
    run_serial(study, ByHand())
    study.close()
    return read(folder)


def test_the_matrix_has_the_base_and_the_end_of_every_stage():
    trial = trained(1, THREE, Ordered((("math",), ("code",), ("chat",))))
    known = facts_of([trial])
    found = staged(known, trial)
    np.testing.assert_array_equal(found.losses, [BASE, *THREE])
    np.testing.assert_allclose(found.change[-1], [-1.2, -0.3, -0.4])
    np.testing.assert_allclose(found.forgotten, [0.9, 0.6, 0.0])
    np.testing.assert_allclose(found.progress, [0, 1 / 3, 2 / 3, 1])
    assert (found.numbers, found.whole) == ((0, 1, 2), True)
    (each,) = courses(known)
    np.testing.assert_array_equal(each.shares(), np.eye(3))


def test_domains_keep_the_order_of_the_study():
    """Whatever the order is in which a proposal, and so its stages, have them."""
    trial = trained(1, TWO, Ordered((("chat", "code"), ("math",))))
    mixture = space().prior.ordered(("chat", "math", "code"))
    turned = replace(trial, proposal=replace(trial.proposal, mixture=mixture))
    (each,) = courses(facts_of([turned]))
    np.testing.assert_allclose(each.shares(), [[0, 0.5, 0.5], [1, 0, 0]])
    text = printed(stage_tables(facts_of([turned])))
    assert row(text, "math") == ["math", "3.000", "1.000", "1.300*", "-1.700", "0.300"]
    assert row(text, "chat") == ["chat", "1.000", "1.500*", "0.700", "-0.300", "0.000"]
    assert row(text, "mean") == ["mean", "2.000", "1.233", "1.083", "-0.917", "0.117"]


def test_seeds_are_averaged_with_their_standard_deviation():
    text = printed(stage_tables(compared()))
    # Blocks are 0, .1 and .2 higher: means .1 higher, standard deviation .1.
    line = row(text[text.index("Losses by stage: twice") :], "math")
    told = ["3.000", "1.100", "±.100*", "1.400", "±.100", "-1.600", "±.100", "0.300", "±.000"]
    assert line == ["math", *told]
    assert row(text, "thrice")[1:] == (
        ["Ordered", "3", "1.567", "±.200", "-0.433", "±.200", "0.500", "±.000", "math", "0.900"]
    )
    # A single stage has nothing earlier to forget, and no matrix of its own.
    assert row(text, "multitask")[-2:] == ["–", "–"]
    assert "Losses by stage: multitask" not in text
    assert "Ordered(order=[math+code, chat], replay=0)" in text
    words = " ".join(text.split())
    assert "Stage 1: 50% of the budget on math .667, code .333. Stage 2: 50%" in words
    assert "standard deviation over 3 trainings" in words


def test_every_method_is_there_best_first():
    found = courses(compared())
    assert [each.name for each in found] == ["twice", "multitask", "thrice"]
    assert [len(each.runs) for each in found] == [3, 3, 3]
    alone = next(each for each in found if each.name == "multitask")
    assert not alone.stack("forgotten").any()


def test_a_stopped_training_is_not_shown_as_whole():
    trial = trained(1, THREE, Ordered((("math",), ("code",), ("chat",))), status=Status.STOPPED)
    known = facts_of([trial])
    found = staged(known, trial)
    np.testing.assert_array_equal(found.losses, [BASE, *THREE[:2]])
    assert np.isnan(found.forgotten).all()
    text = printed(stage_tables(known))
    assert "stopped in stage 3" in text
    assert row(text, "math") == ["math", "3.000", "0.900*", "1.600", "–", "–"]
    # A whole one of the same strategy is told instead, whatever its score.
    whole = replace(trained(2, THREE, Ordered((("math",), ("code",), ("chat",)))), score=9.0)
    (each,) = courses(facts_of([trial, whole]))
    assert (each.name, each.whole) == ("search-002", True)


def test_nothing_is_told_where_nothing_got_into_a_second_stage(tmp_path):
    single = facts_of([trained(1, ONE, Together()), trained(2, ONE, None)])
    cut = facts_of([trained(1, TWO, Together(), Proposal(space().prior, turn=0.5, keep=True))])
    early = facts_of([trained(1, TWO[:1], Ordered(), status=Status.STOPPED)])
    for known in (single, cut, early):
        assert stage_tables(known) == []
        assert write_stages(known, tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "spec",
    [
        None,
        Spec("not_there_any_more:Mine"),
        Spec("staged_studies:Ordered", {"unknown": 1}),
        Spec("staged_studies:Ordered", {"order": [["math"], ["code"], ["chat"]]}),
        Spec("staged_studies:Ordered", {"order": [["math"], ["physics"]]}),
    ],
)
def test_an_unknown_strategy_leaves_the_numbers(spec):
    """Gone, changed since, or of another number of stages: nothing is said of what it trained."""
    trial = trained(1, TWO, None)
    trial = replace(trial, proposal=replace(trial.proposal, strategy=spec))
    known = facts_of([trial])
    assert planned(known, trial) == ()
    text = printed(stage_tables(known))
    assert row(text, "math") == ["math", "3.000", "1.000", "1.300", "-1.700", "0.300"]
    assert "Stage 1" not in text
    assert "*" not in text
    stages_figure(courses(known))


def test_the_strategy_of_the_plan_holds_for_trials_without_one():
    known = facts_of([trained(1, TWO, None)], strategy=Spec("staged_studies:Ordered"))
    (each,) = courses(known)
    assert each.shares() is not None
    assert "Stage 2: 50% of the budget on chat 1.000." in " ".join(
        printed(stage_tables(known)).split()
    )


def test_unknown_losses_are_dashes_and_spoil_nothing_else():
    trial = trained(1, [(1.0, math.nan, 1.5), (1.3, 1.25, math.nan)], Ordered())
    trial = replace(trial, score=1.0)
    text = printed(stage_tables(facts_of([trial])))
    assert row(text, "math")[-1] == "0.300"
    assert row(text, "code") == ["code", "2.000", "–*", "1.250", "-0.750", "0.000"]
    assert row(text, "chat") == ["chat", "1.000", "1.500", "–*", "–", "–"]
    assert row(text, "mean")[-1] == "–"
    # The model before training was not looked at where it is not the target.
    proxy = replace(trial, proposal=replace(trial.proposal, model="small"))
    text = printed(stage_tables(facts_of([proxy])))
    assert row(text, "math") == ["math", "–", "1.000*", "1.300", "–", "0.300"]
    stages_figure(courses(facts_of([proxy])))


def test_searched_parameters_are_told_as_a_range():
    known = compared()
    trials = [
        replace(t, proposal=replace(t.proposal, params={"replay": t.seed / 1e4}))
        for t in known.history
    ]
    text = printed(stage_tables(replace(known, history=replace(known.history, trials=trials))))
    assert "Ordered(order=[math+code, chat], replay=0.1 to 0.1)" not in text
    assert "Ordered(order=[math+code, chat], replay=0.1)" in text


def test_trainings_with_other_stages_are_left_out():
    known = compared()
    odd = [t for t in known.history if t.proposal.note and t.proposal.note["group"] == "thrice"][1]
    other = replace(trained(odd.number, ONE, Together(), odd.proposal), seed=odd.seed)
    trials = tuple(other if t is odd else t for t in known.history)
    found = courses(replace(known, history=replace(known.history, trials=trials)))
    each = next(c for c in found if c.name == "thrice")
    assert (len(each.runs), each.left_out) == (2, 1)
    text = printed(stage_tables(replace(known, history=replace(known.history, trials=trials))))
    assert "1 training(s) of it had other stages" in " ".join(text.split())


def swaps(*values: float) -> dict[str, float]:
    return {f"swap/{name}/loss": x for name, x in zip(NAMES, values, strict=True)}


def test_with_and_without_the_prompt():
    more = [swaps(2.9, 2.5, 1.7), swaps(1.9, 1.5, 0.75)]
    trial = trained(1, TWO, Carried(), more=more)
    text = printed(stage_tables(facts_of([trial])))
    assert "the model is frozen; the prompt is trained" in " ".join(text.split())
    table = text[text.index("With and without the prompt") :]
    # The target has it in use, the others do not.
    assert row(table, "math") == ["math", "1.000*", "2.900", "1.300*", "1.900"]
    assert row(table, "code") == ["code", "2.500", "1.200*", "1.500", "1.250*"]
    unknown = printed(stage_tables(facts_of([trained(1, TWO, None, more=more)])))
    table = unknown[unknown.index("With and without prompt or adapters") :]
    assert " ".join(row(table, "domain")) == "domain 1 in use 1 swapped 2 in use 2 swapped"
    assert row(table, "code") == ["code", "1.200*", "2.500", "1.250*", "1.500"]
    assert "With and without" not in printed(stage_tables(facts_of([trained(1, TWO, Carried())])))


def test_accuracies_are_told_off_the_floor():
    right = {"eval/math/accuracy": 0.02, "eval/code/accuracy": 0.3}
    trial = trained(1, TWO, Ordered(), more=[right, {**right, "eval/code/accuracy": 0.125}])
    text = printed(stage_tables(facts_of([trial])))
    table = text[text.index("Exact match by stage") :]
    assert row(table, "code") == ["code", "–", "30.0%", "12.5%"]
    assert "left out: math, chat" in table
    flat = trained(1, TWO, Ordered(), more=[{"eval/math/accuracy": 0.02}] * 2)
    assert "Exact match" not in printed(stage_tables(facts_of([flat])))


def test_a_study_tells_and_draws_its_stages(tmp_path):
    record = finished(tmp_path, Ordered())
    text = printed(report(record))
    assert "Losses by stage: uniform" in text
    assert row(text[text.index("Losses by stage") :], "code")[-1] == "±.000"
    # One strategy is told once, by the best mixture.
    assert text.count("Losses by stage") == 1
    written = {path.name: path for path in write_report(record, tmp_path)}
    width = int.from_bytes(written["stages.png"].read_bytes()[16:20], "big")
    assert 1100 < width < 1300
    (each,) = courses(facts(record))
    np.testing.assert_allclose(each.stack("losses")[:, 1, 0], [1.0, 1.1, 1.2])


def test_a_study_of_single_stages_says_nothing_of_them(tmp_path):
    record = finished(tmp_path, Together())
    text = printed(report(record))
    assert "stage" not in text
    assert "forgotten" not in text
    assert "stages.png" not in [path.name for path in write_report(record, tmp_path)]


def test_the_figure_of_methods_is_written(tmp_path):
    (path,) = write_stages(compared(), tmp_path / "figures")
    assert path.read_bytes()[:4] == b"\x89PNG"
