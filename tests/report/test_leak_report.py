"""Format leak in the report: the table's numbers, and a figure that is drawn where it was asked."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import pytest
from rich.console import Console

from raymix.core.job import Status
from raymix.report.facts import facts
from raymix.report.facts import rows as confirmed_rows
from raymix.report.leak import leak_tables, write_leak
from raymix.report.table import report
from raymix.report.write import write_report
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)
TOLD = {
    "target": "math",
    "format": {"labels": [], "pattern": r"\d+"},
    "instruction": None,
    "max_new_tokens": 16,
    "own": 0.875,
    "domains": {
        "code": {"rows": 32, "bare_rows": 30, "truth": 0.125},
        "chat": {"rows": 31, "bare_rows": 0, "truth": 0.0},
    },
}


@dataclass(frozen=True)
class Leaking:
    """The toy, whose outputs leak in step with `math`'s share and the budget spent."""

    def run(self, jobs, report):
        return [self._leaks(job, result) for job, result in zip(jobs, TOY.run(jobs, report))]  # noqa: B905

    def _leaks(self, job, result):
        share = job.stages[0].mixture.as_dict()["math"] if job.stages else 0.0
        curve = tuple(
            replace(point, metrics={**point.metrics, **metrics(0.1 + 0.8 * share * point.progress)})
            for point in result.curve
        )
        last = metrics(0.1 + 0.8 * share)
        return replace(result, curve=curve, metrics={**result.metrics, **last})


def metrics(leak):
    return {
        "eval/code/format_leak": leak,
        "eval/code/format_leak_bare": leak / 2,
        "eval/chat/format_leak": leak / 4,
    }


def finished(folder, depends, confirm):
    methods = (Method("random", Dirichlet(), 4),)
    plan = Plan(TOY.space(), MultiTask(), Objective(), methods, confirm=confirm)
    own = Study(folder, plan, depends)
    run_serial(own, Leaking())
    own.close()
    return read(folder)


def printed(renderable, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return " ".join(console.file.getvalue().split())


def test_each_confirmed_mixture_has_its_mean_beside_base_and_truth(tmp_path):
    record = finished(tmp_path, {"format_leak": TOLD}, Confirm(2, 3))
    known = facts(record)
    (table,) = leak_tables(known, record)
    text = printed(table)
    assert text in printed(report(record))
    found = confirmed_rows(known)
    assert len(found) > 1
    for place, row in enumerate(found):
        leak = 0.1 + 0.8 * row.source.mixture.as_dict()["math"]
        base = ("code 0.125 0.100 0.050", "chat 0.000 0.025 –") if not place else ("", "")
        for said, (end, bare) in zip(
            base, ((leak, f"{leak / 2:.3f}"), (leak / 4, "–")), strict=True
        ):
            first, *known_of = said.split() or [""]
            truth, before, bare_before = known_of or ("", "", "")
            cells = [first, row.name, truth, before, f"{end:.3f}", bare_before, bare]
            assert " ".join(filter(None, cells)) in text
    assert "code 32 and 30, chat 31 and 0" in text
    assert "0.875 are in its format" in text


def test_the_figure_stands_with_the_others(tmp_path):
    record = finished(tmp_path, {"format_leak": TOLD}, Confirm(0, 0))
    assert "format_leak.png" in {path.name for path in write_report(record, tmp_path)}
    (path,) = write_leak(record, tmp_path / "figures")
    assert path.stat().st_size > 20_000
    assert printed(leak_tables(facts(record), record)[0]).count("random-") == 2


@pytest.mark.parametrize("depends", [{}, {"format_leak": TOLD}])
def test_nothing_is_said_where_nothing_was_measured(tmp_path, depends):
    methods = (Method("random", Dirichlet(), 0),)
    own = Study(tmp_path, Plan(TOY.space(), MultiTask(), Objective(), methods), depends)
    if not depends:
        run_serial(own, TOY)
    own.close()
    record = read(tmp_path)
    assert leak_tables(facts(record), record) == []
    assert write_leak(record, tmp_path / "figures") == ()
    assert all(t.result.status is Status.DONE for t in record.history)
