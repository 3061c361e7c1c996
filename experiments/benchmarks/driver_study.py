"""What a study costs by the length of its history file: asks, tells, resuming, the report.

    python experiments/benchmarks/driver_study.py read FOLDER       # one JSON line on that study
    python experiments/benchmarks/driver_study.py report FOLDER

As a script it does so in a process of its own, so that memory can be told.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil
from driver_searchers import in_a_study, toy

from raymix.core.job import Point
from raymix.core.trial import Trial
from raymix.search import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import Record, read
from raymix.study.store import FILE, Store
from raymix.study.study import Study
from raymix.testing.toy import Toy

IDENTITY = {"data": "toy"}
SEARCH = "dirichlet"
_REPEATS = 3
_MIB = 2.0**20

T = TypeVar("T")
Costs = dict[str, dict[int, float]]
"""By what was done, and length of the history."""


def plan_of(problem: Toy, trials: int, others: bool = False, bill: float | None = None) -> Plan:
    """`trials` random mixtures; with `others` every other searcher may ask once beside them."""
    methods = [Method(SEARCH, Dirichlet(), trials)]
    if others:
        methods += [Method(name, searcher, 1) for name, searcher in in_a_study().items()]
    space = problem.space()
    return Plan(space, MultiTask(), Objective(), tuple(methods), confirm=Confirm(0, 0), bill=bill)


def cut(source: Path, folder: Path, length: int) -> Path:
    """A copy of the study in `source` up to the end of its `length`-th search trial."""
    folder.mkdir(parents=True)
    left = length
    searched: set[int] = set()
    with (source / FILE).open() as lines, (folder / FILE).open("w") as copy:
        for line in lines:
            event = json.loads(line)
            if event.get("method") == SEARCH and "proposal" in event:
                searched.add(event["trial"])
            copy.write(line)
            left -= event["event"] == "told" and event["trial"] in searched
            if not left:
                return folder
    raise ValueError(f"the study in {source} has fewer than {length} trials of {SEARCH}")


def studying(source: Path, domains: int, lengths: Sequence[int]) -> tuple[Costs, Costs]:
    """CPU seconds of each step of a study; and of an ask by the searcher that it reaches.

    An ask has everything in it: counting, the view of the history, the proposal, the job, writing.
    """
    steps: Costs = {}
    asks: Costs = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(_REPEATS):
            for length in lengths:
                folder = cut(source, Path(temporary) / f"{number}-{length}", length)
                if not number:
                    _least(steps, length, _appended(folder))
                    _least(steps, length, _billed(folder, toy(domains)))
                _least(asks, length, _once(folder, toy(domains), steps, length))
    return steps, asks


def _least(found: Costs, length: int, more: Mapping[str, float]) -> None:
    for name, seconds in more.items():
        row = found.setdefault(name, {})
        row[length] = min(row.get(length, math.inf), seconds)


def _clocked(what: Callable[[], T], clock: Callable[[], float]) -> tuple[T, float]:
    before = clock()
    found = what()
    return found, clock() - before


def _appended(folder: Path) -> dict[str, float]:
    """Wall seconds of one event written, the least of several; the file is left as it was."""
    path = folder / FILE
    size = path.stat().st_size
    with path.open() as lines:
        told = [json.loads(line) for line in lines][-1]
    store = Store(folder)
    found = {}
    for name, event in (("append, flushed (wall)", "told"), ("append (wall)", "reported")):
        every = [
            _clocked(lambda e=event: store.append(e, told), time.perf_counter) for _ in range(40)
        ]
        found[name] = min(seconds for _, seconds in every)
    store.close()
    with path.open("r+") as file:
        file.truncate(size)
    return found


def _billed(folder: Path, problem: Toy) -> dict[str, float]:
    """An ask of a study whose methods have a bill, which is left as it was."""
    size = (folder / FILE).stat().st_size
    study = Study(folder, plan_of(problem, 10**6, bill=1e6), IDENTITY, resume=True)
    seconds = min(_clocked(study.ask, time.process_time)[1] for _ in range(2 * _REPEATS))
    study.close()
    with (folder / FILE).open("r+") as file:
        file.truncate(size)
    return {"ask, random, with a bill": seconds}


def _once(folder: Path, problem: Toy, steps: Costs, length: int) -> dict[str, float]:
    """Resume the study, let every searcher ask once, then train some of the random ones."""
    plan = plan_of(problem, 10**6, others=True)
    clock = time.process_time
    study, resuming = _clocked(lambda: Study(folder, plan, IDENTITY, resume=True), clock)
    asks: dict[str, float] = {}
    for _ in in_a_study():
        trial, seconds = _clocked(study.ask, clock)
        assert isinstance(trial, Trial)
        asks[trial.method] = seconds
    for _ in range(_REPEATS):
        trial, seconds = _clocked(study.ask, clock)
        assert isinstance(trial, Trial)
        found = {"resume": resuming, "ask, random": seconds, **_trained(study, problem, trial)}
        _least(steps, length, found)
    study.close()
    return asks


def _trained(study: Study, problem: Toy, trial: Trial) -> dict[str, float]:
    """Everything that follows on an ask."""
    clock, points = time.process_time, list[Point]()
    job, launching = _clocked(lambda: study.job(trial), clock)
    _, starting = _clocked(lambda: study.started(trial.number), clock)
    (result,) = problem.run([job], lambda number, point: bool(points.append(point)) or True)
    hearing = [_clocked(lambda p=p: study.reported(trial.number, p), clock)[1] for p in points]
    _, telling = _clocked(lambda: study.tell(trial.number, result), clock)
    return {"job and started": launching + starting, "reported": min(hearing), "tell": telling}


def reporting(source: Path, lengths: Sequence[int]) -> dict[str, Costs]:
    """CPU seconds and MiB of reading and of reporting a study, each in a process of its own."""
    found: dict[str, Costs] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for length in lengths:
            folder = cut(source, Path(temporary) / str(length), length)
            for what in (*("read",) * _REPEATS, "report"):
                for unit, row in _apart(what, folder).items():
                    _least(found.setdefault(unit, {}), length, row)
    return found


def _apart(what: str, folder: Path) -> dict[str, dict[str, float]]:
    made = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), what, str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, dict[str, float]] = json.loads(made.stdout.splitlines()[-1])
    return found


def whole(folder: Path) -> dict[str, dict[str, float]]:
    """CPU seconds of reading a history file, and the most memory (MiB) on the way."""
    _, seconds = _clocked(lambda: read(folder), time.process_time)
    return {"s": {"read the history": seconds}, "mib": {"peak while reading": _peak()}}


def told_of(folder: Path) -> dict[str, dict[str, float]]:
    """The same of the report; and MiB of the record, made line by line as a driver's own is."""
    from rich.console import Console

    from raymix.report.table import report
    from raymix.report.write import write_report

    held, clock = psutil.Process().memory_info, time.process_time
    empty = held().rss
    record = Record()
    with (folder / FILE).open() as lines:
        for line in lines:
            record.apply(json.loads(line))
    alone = held().rss - empty
    with Path("/dev/null").open("w") as nowhere:
        console = Console(file=nowhere, width=120)
        every = [_clocked(lambda: console.print(report(record)), clock)[1] for _ in range(_REPEATS)]
    _, figures = _clocked(lambda: write_report(record, folder), clock)
    return {
        "s": {"report: tables": min(every), "report: figures": figures},
        "mib": {"the record": alone / _MIB, "peak of a report": _peak()},
    }


def _peak() -> float:
    """The most memory that this process has held, in MiB."""
    # Not `ru_maxrss`: a child begins with its parent's.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else math.nan


if __name__ == "__main__":
    print(json.dumps({"read": whole, "report": told_of}[sys.argv[1]](Path(sys.argv[2]))))
