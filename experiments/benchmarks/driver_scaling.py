"""What a study costs its driver as it grows: many trials of trainings that cost nothing.

    python experiments/benchmarks/driver_scaling.py [--trials 1000] [--domains 50] [--pools 1]

A trainer that returns a closed form at once is served by a real pool, so all that is timed is Ray,
the study, its history file and the searcher. Then each searcher proposes from histories of
10, 100, 300 and 1000 trials; one that reads its own notes has played its history itself, as far as
it comes in a minute. Prints two tables and, last, one JSON object: `trial_s` (median seconds of a
trial, by stretch of the study), `driver_mib` (memory of the driver at the start and after each
stretch), `history_mib`, `resume_s` (reading that history), `propose_s` (CPU seconds, by searcher
and length).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from raymix.cluster.config import Cluster
from raymix.cluster.tune import tune_study
from raymix.core.job import Point, TrainJob, TrainResult
from raymix.core.mixture import Space
from raymix.core.trial import History, Idle, Proposal, Searcher, Trial
from raymix.search import Dirichlet, Grid, Ideal, MosSearch, Optuna
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read
from raymix.study.store import FILE
from raymix.study.study import Study
from raymix.testing.conformance import began, rng, told
from raymix.testing.toy import Toy
from raymix.train.config import Setup, Training

HERE = Path(__file__).resolve()
LENGTHS = (10, 100, 300, 1000)
MINUTE = 60.0
_METHOD = "method"

SEARCHERS: Mapping[str, Searcher] = {
    "dirichlet": Dirichlet(),
    "grid": Grid(parts=2),
    "tpe": Optuna("tpe"),
    "gp": Optuna("gp"),
}
"""These propose from any history."""

PLAYED: Mapping[str, Searcher] = {
    # Of the two modes the one that does not stop at the optimum.
    "ideal": Ideal(mode="paper", rounds=1000),
    "mos": MosSearch(),
}
"""These read what they noted, so they play their histories themselves."""


def toy(domains: int) -> Toy:
    """Domains that help themselves alone."""
    eye = tuple(tuple(6.0 * (i == j) for j in range(domains)) for i in range(domains))
    return Toy(
        names=tuple(f"domain-{i:02d}" for i in range(domains)),
        c=(0.5,) * domains,
        k=(2.0,) * domains,
        t=eye,
        sizes=(1000,) * domains,
        noise=0.02,
        steps=4,
    )


class Nothing:
    """A pool's trainer that trains nothing: four points of a closed form, at once."""

    def __init__(self, setup: Setup, world: Any) -> None:
        self._toy = toy(int(setup.models["target"]))

    def run(self, job: TrainJob, report: Callable[[Point], bool]) -> TrainResult:
        """The closed form."""
        return self._toy.run([job], lambda trial, point: report(point))[0]


@dataclasses.dataclass
class Clock:
    """A listener that notes when each trial ended, and what the driver then held, in MiB."""

    ended: list[float] = dataclasses.field(default_factory=list)
    memory: list[float] = dataclasses.field(default_factory=list)

    def trial_started(self, trial: Trial) -> None:
        """Nothing."""

    def reported(self, trial: Trial, point: Point) -> None:
        """Nothing."""

    def trial_ended(self, trial: Trial) -> None:
        """Note time and memory."""
        self.ended.append(time.monotonic())
        self.memory.append(psutil.Process().memory_info().rss / 2**20)


def on_pools(trials: int, domains: int, pools: int, folder: Path) -> dict[str, Any]:
    """A study of `trials` random mixtures."""
    problem, clock = toy(domains), Clock()
    methods = (Method("dirichlet", Dirichlet(), trials),)
    plan = Plan(problem.space(), MultiTask(), Objective(), methods, confirm=Confirm(0, 0))
    study = Study(folder, plan, {"data": "toy"}, listeners=[clock])
    setup = Setup({"target": str(domains)}, Training(), {}, str(folder))
    begun = time.process_time()
    tune_study(study, setup, Cluster(pools=pools), trainer="driver_scaling:Nothing")
    spent = time.process_time() - begun
    study.close()
    # The first trial (the base model) waits for the workers to start.
    seconds = [after - before for before, after in itertools.pairwise(clock.ended)]
    cuts = [round(len(seconds) * part) for part in (0.0, 0.25, 0.5, 1.0)]
    stretches = list(itertools.pairwise(cuts))
    before = time.monotonic()
    read(folder)
    return {
        "trial_s": {b: round(statistics.median(seconds[a:b]), 4) for a, b in stretches},
        "mean_trial_s": {b: round(statistics.mean(seconds[a:b]), 4) for a, b in stretches},
        "driver_mib": {b: round(clock.memory[b]) for b in cuts},
        "driver_cpu_s": round(spent / len(clock.ended), 4),
        "history_mib": round((folder / FILE).stat().st_size / 2**20, 2),
        "resume_s": round(time.monotonic() - before, 2),
    }


def random_history(space: Space, problem: Toy, length: int) -> History:
    """`length` told trials of random mixtures."""
    start = began(space, problem)
    trials = list(start.trials)
    for number in range(length):
        proposal = Dirichlet("uniform", 1.0).propose(space, start, rng(number))
        assert isinstance(proposal, Proposal)
        trials.append(told(Trial(len(trials) + 1, _METHOD, proposal, 0), problem))
    return History(tuple(trials), _METHOD, start.base)


def played(searcher: Searcher, space: Space, problem: Toy, seconds: float) -> list[float]:
    """CPU seconds of each ask of a searcher that plays by itself, for so long at the most."""
    start = began(space, problem)
    trials, times = list(start.trials), []
    end = time.monotonic() + seconds
    while len(times) <= LENGTHS[-1] and time.monotonic() < end:
        history = History(tuple(trials), _METHOD, start.base)
        before = time.process_time()
        answer = searcher.propose(space, history, rng(len(trials)))
        times.append(time.process_time() - before)
        if isinstance(answer, Idle):
            break
        trials.append(told(Trial(len(trials) + 1, _METHOD, answer, 0), problem))
    return times


def timed(searcher: Searcher, space: Space, history: History) -> float:
    """Median CPU seconds of three asks."""
    times = []
    for number in range(3):
        before = time.process_time()
        searcher.propose(space, history, rng(number))
        times.append(time.process_time() - before)
    return statistics.median(times)


def proposing(domains: int) -> dict[str, dict[int, float]]:
    """CPU seconds of a proposal by searcher and length of the history."""
    problem = toy(domains)
    space = problem.space()
    found: dict[str, dict[int, float]] = {}
    histories = {length: random_history(space, problem, length) for length in LENGTHS}
    for name, searcher in SEARCHERS.items():
        found[name] = {n: timed(searcher, space, history) for n, history in histories.items()}
    for name, searcher in PLAYED.items():
        times = played(searcher, space, problem, MINUTE)
        # Single asks differ by what they ask for: the mean over the last tenth of the way.
        reached = [n for n in LENGTHS if n < len(times)]
        found[name] = {n: statistics.mean(times[n - n // 10 : n + 1]) for n in reached}
    return {name: {n: round(s, 4) for n, s in row.items()} for name, row in found.items()}


def show(figures: Mapping[str, Any]) -> None:
    """The two tables."""
    print("trials   s/trial (median)   driver MiB")
    for number, memory in figures["driver_mib"].items():
        pace = figures["trial_s"].get(number)
        print(f"{number:6d}   {'-' if pace is None else f'{pace:.3f}':>16}   {memory:10d}")
    print(
        f"driver: {figures['driver_cpu_s']:.3f} CPU-s per trial; history "
        f"{figures['history_mib']:.1f} MiB, read again in {figures['resume_s']:.1f} s\n"
    )
    print("CPU seconds of a proposal by length of the history")
    print("searcher  ", *(f"{length:>8}" for length in LENGTHS))
    for name, row in figures["propose_s"].items():
        cells = (f"{row[n]:8.4f}" if n in row else f"{'-':>8}" for n in LENGTHS)
        print(f"{name:10}", *cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    for name, default in (("trials", 1000), ("domains", 50), ("pools", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
    with tempfile.TemporaryDirectory() as temporary:
        figures = on_pools(asked.trials, asked.domains, asked.pools, Path(temporary) / "study")
    figures["propose_s"] = proposing(asked.domains)
    show(figures)
    print(json.dumps({**vars(asked), **figures}))


if __name__ == "__main__":
    logging.getLogger("ray").setLevel(logging.ERROR)
    main()
