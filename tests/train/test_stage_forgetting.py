"""Real trainings in two stages: the matrix of losses is what trainings stage by stage find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from rich.console import Console
from tiny_tables import DOMAINS

from raymix.core.forgetting import ended, read
from raymix.core.job import Stage, Status
from raymix.core.mixture import Budget, Mixture, Unit
from raymix.report.facts import facts
from raymix.report.stages import courses
from raymix.report.table import report
from raymix.report.write import write_report
from raymix.search.dirichlet import Dirichlet
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read as read_record
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.train.local import LocalRunner


@dataclass(frozen=True)
class AntsFirst:
    """The first domain alone, then the others; half of the budget each."""

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        half = Budget(budget.amount // 2, budget.unit)
        first, *rest = mixture.names
        shares = mixture.as_dict()
        others = Mixture.normalised(mixture.names, [0.0, *(shares[name] for name in rest)])
        return Stage(Mixture.of({first: 1.0}), half), Stage(others, half, restart=True)


def go_on(trial, point):
    return True


@pytest.mark.parametrize("unit", [Unit.EXAMPLES, Unit.TOKENS])
def test_the_end_of_the_first_stage_is_a_training_of_it_alone(unit, setup_of, job_of):
    amount = 160 if unit is Unit.EXAMPLES else 2400
    runner = LocalRunner(setup_of(eval_steps=7))
    whole = job_of(amount, unit)
    stages = AntsFirst().stages(whole.stages[0].mixture, whole.stages[0].budget, {})
    stages = tuple(replace(s, mixture=s.mixture.ordered(DOMAINS)) for s in stages)
    (both,) = runner.run([replace(whole, stages=stages)], go_on)
    (first,) = runner.run([replace(whole, stages=stages[:1])], go_on)
    assert both.status is first.status is Status.DONE, both.error
    points = [point for point in both.curve if point.stage == 0]
    np.testing.assert_array_equal(read(points[-1].metrics, DOMAINS), read(first.metrics, DOMAINS))
    assert points[-1].step == first.spent.steps
    assert both.curve[-1].stage == 1


def test_a_real_study_tells_what_was_forgotten(setup_of, job_of, tmp_path):
    """Ants answer with the prompt as it is, the others with it shifted: ants are unlearnt."""
    space = job_of(960).space
    methods = (Method("random", Dirichlet(), 0),)
    plan = Plan(space, AntsFirst(), Objective(), methods, confirm=Confirm(0, 2))
    study = Study(tmp_path / "study", plan, {})
    run_serial(study, LocalRunner(setup_of(learning_rate=1e-2)))
    study.close()
    record = read_record(tmp_path / "study")
    known = facts(record)
    (each,) = courses(known)
    assert len(each.runs) == 2
    losses = each.stack("losses")
    for trial, matrix in zip(each.trials, losses, strict=True):
        ends = [read(point.metrics, DOMAINS) for point in ended(trial).values()]
        np.testing.assert_array_equal(matrix, [read(known.base, DOMAINS), *ends])
        np.testing.assert_array_equal(matrix[-1], read(trial.result.metrics, DOMAINS))
    # All have learnt what they were trained on; of the first a part is lost again.
    assert (losses[:, 1, 0] < losses[:, 0, 0] - 0.1).all()
    assert (losses[:, 2, 1] < losses[:, 0, 1] - 0.1).all()
    assert (each.stack("forgotten")[:, 0] > 0).all()
    assert not each.stack("forgotten")[:, 1:].any()
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(report(record))
    assert "AntsFirst" in capture.get()
    assert "stages.png" in [path.name for path in write_report(record, tmp_path / "study")]
