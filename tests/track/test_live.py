"""The live table on a pretended terminal, and its plain lines where there is none."""

import io
from dataclasses import replace

from rich.console import Console

from raymix.core.job import Point
from raymix.core.trial import Proposal, Trial
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.toy import Toy
from raymix.track.live import LiveTable, clock_time

TOY = Toy()


def run(folder, table, runner=TOY):
    methods = (Method("dirichlet", Dirichlet(), 2),)
    plan = Plan(TOY.space(), MultiTask(), Objective(), methods, confirm=Confirm(0, 0))
    study = Study(folder, plan, {}, listeners=[table])
    with table:
        run_serial(study, runner)
    return study


def test_a_line_for_each_finished_trial_where_there_is_no_terminal(tmp_path):
    out = io.StringIO()
    ticks = iter(range(1000))
    table = LiveTable(5, Console(file=out, width=200), clock=lambda: float(next(ticks)))
    study = run(tmp_path, table)
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("trial 0 of 5 | base |")
    best = study.best()
    assert f"best {best.score:.4f} (trial {best.number})" in lines[-1]
    assert "left" in lines[2]


def test_the_table_shows_running_and_finished_trials(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    table = LiveTable(5, console)
    shown = []

    class Watching:
        def run(self, jobs, report):
            def both(trial, point):
                go_on = report(trial, point)
                show = Console(file=io.StringIO(), width=160)
                show.print(table.table())
                shown.append(show.file.getvalue())
                return go_on

            return TOY.run(jobs, both)

    study = run(tmp_path, table, Watching())
    middle = shown[-3]
    assert "4 of 5 trials" in middle
    assert "running" in middle
    assert "2 (50%)" in middle
    assert " math code chat" in middle
    assert "  .33  .33  .33" in middle
    best = table.best()
    assert best == study.best()
    assert f"best {best.score:.4f} (trial {best.number})" in shown[-1]


def test_time_left_follows_the_pace_after_the_first_trial(tmp_path):
    now = [0.0]

    class Slow:
        def run(self, jobs, report):
            # The first trial waits for the workers.
            now[0] += 100.0 if jobs[0].trial == 0 else 10.0
            return TOY.run(jobs, report)

    table = LiveTable(10, Console(file=io.StringIO()), clock=lambda: now[0])
    assert not table.seconds_left() > 0
    run(tmp_path, table, Slow())
    assert table.seconds_left() == 50.0


def test_a_trial_whose_influence_is_measured_says_so(tmp_path):
    table = LiveTable(5, Console(file=io.StringIO(), width=160))
    shown = []

    class Measuring:
        def run(self, jobs, report):
            results = TOY.run(jobs, report)
            (result,), (job,) = results, jobs
            last = result.curve[-1] if result.curve else Point(0, 1.0, result.metrics)
            report(job.trial, replace(last, metrics={**last.metrics, "influence/progress": 0.4}))
            show = Console(file=io.StringIO(), width=160)
            show.print(table.table())
            shown.append(show.file.getvalue())
            return results

    run(tmp_path, table, Measuring())
    row = next(line for line in shown[-1].splitlines() if "influence 40%" in line)
    assert "4 (100%)" in row
    assert "running" not in shown[-1]


def test_a_trial_of_several_stages_says_which_it_is_in():
    table = LiveTable(5, Console(file=io.StringIO(), width=160))
    for number, fields in enumerate(({}, {}, {"branch": 1}), start=1):
        trial = Trial(number, "dirichlet", Proposal(TOY.space().prior, **fields), 0)
        table.trial_started(trial)
        table.reported(trial, Point(3, 0.6, {}, stage=min(1, number - 1)))
    show = Console(file=io.StringIO(), width=160)
    show.print(table.table())
    shown = [line.split()[-1] for line in show.file.getvalue().splitlines()[-3:]]
    # What branches off another goes on with its second half, which is no stage of a strategy's.
    assert shown == ["running", "2", "running"]
    assert "stage 2" in show.file.getvalue()


def test_clock_time():
    assert [clock_time(s) for s in (0.4, 75, 3700)] == ["0:00", "1:15", "1:01:40"]
