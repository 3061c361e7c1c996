"""What a study costs its driver as it grows: many trials of trainings that cost nothing.

    python experiments/benchmarks/driver_scaling.py [--trials 1000] [--domains 50] [--pools 1]

A trainer that returns a closed form at once is served by a real pool, so all that is timed is Ray,
the study, its history file and the searcher. The history that this leaves is then cut to lengths
that double: at each the study is resumed, every searcher asks in it, and it is reported; and every
searcher that may ask so often proposes from a history of its own (its own notes and measurements in
it). CPU seconds, the least of several, are fitted as a + b n^p over the lengths: `power` is p,
`slope` that of the logarithms in the last doubling, the constant included.

About five minutes; `--trials 200 --domains 10` less than one. Set `OMP_NUM_THREADS=1`, and say what
else runs. Prints tables and, last, one JSON object: `trial_s` (median seconds of a trial, by
stretch of the study), `driver_mib` (memory of the driver at the start and after each stretch),
`driver_kib_per_trial` (its slope over the last three quarters), `history_mib`, and `propose_s`,
`ask_s`, `study_s`, `report_s`, `report_mib` by what was done: `cost` by length, `slope`, `power`
and `words`.
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

import numpy as np
import psutil
from driver_growth import as_json, in_columns
from driver_searchers import proposing, toy
from driver_study import IDENTITY, plan_of, reporting, studying

from raymix.cluster.config import Cluster
from raymix.cluster.tune import tune_study
from raymix.core.job import Point, TrainJob, TrainResult
from raymix.core.trial import Trial
from raymix.study.store import FILE
from raymix.study.study import Study
from raymix.train.config import Setup, Training

HERE = Path(__file__).resolve()
_DOUBLINGS = 3


def lengths_of(trials: int) -> tuple[int, ...]:
    """Lengths that double, up to `trials`."""
    return tuple(trials // 2**i for i in reversed(range(_DOUBLINGS + 1)) if trials // 2**i > 8)


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
    clock = Clock()
    study = Study(folder, plan_of(toy(domains), trials), IDENTITY, listeners=[clock])
    setup = Setup({"target": str(domains)}, Training(), {}, str(folder))
    begun = time.process_time()
    tune_study(study, setup, Cluster(pools=pools), trainer="driver_scaling:Nothing")
    spent = time.process_time() - begun
    study.close()
    # The first trial (the base model) waits for the workers to start.
    seconds = [after - before for before, after in itertools.pairwise(clock.ended)]
    cuts = [round(len(seconds) * part) for part in (0.0, 0.25, 0.5, 1.0)]
    stretches = list(itertools.pairwise(cuts))
    late = clock.memory[cuts[1] :]
    return {
        "trial_s": {b: round(statistics.median(seconds[a:b]), 4) for a, b in stretches},
        "mean_trial_s": {b: round(statistics.mean(seconds[a:b]), 4) for a, b in stretches},
        "driver_mib": {b: round(clock.memory[b]) for b in cuts},
        "driver_kib_per_trial": round(1024 * float(np.polyfit(range(len(late)), late, 1)[0]), 1),
        "driver_cpu_s": round(spent / len(clock.ended), 4),
        "history_mib": round((folder / FILE).stat().st_size / 2**20, 2),
    }


def show(figures: Mapping[str, Any]) -> None:
    """What the pool's study cost."""
    print("trials   s/trial (median)   driver MiB")
    for number, memory in figures["driver_mib"].items():
        pace = figures["trial_s"].get(number)
        print(f"{number:6d}   {'-' if pace is None else f'{pace:.3f}':>16}   {memory:10d}")
    print(
        f"a trial: {figures['driver_cpu_s']:.3f} CPU-s of the driver and "
        f"{figures['driver_kib_per_trial']:.0f} KiB; history {figures['history_mib']:.1f} MiB",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    for name, default in (("trials", 1000), ("domains", 50), ("pools", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args(arguments)
    lengths = lengths_of(asked.trials)
    if len(lengths) < 3:
        parser.error(f"--trials must be at least 36, for lengths to double, got {asked.trials}")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "study"
        figures = on_pools(asked.trials, asked.domains, asked.pools, folder)
        show(figures)
        steps, asks = studying(folder, asked.domains, lengths)
        in_columns("milliseconds of a step of the study", steps, 1e3)
        in_columns("milliseconds of Study.ask among the trials of others", asks, 1e3)
        told = reporting(folder, lengths)
    in_columns("seconds of reading and reporting", told["s"])
    in_columns("MiB of reading and reporting", told["mib"])
    proposals = proposing(asked.domains, lengths)
    in_columns("milliseconds of a proposal by own trials", proposals, 1e3)
    print(
        json.dumps(
            {
                **vars(asked),
                **figures,
                "propose_s": as_json(proposals),
                "ask_s": as_json(asks),
                "study_s": as_json(steps),
                "report_s": as_json(told["s"]),
                "report_mib": as_json(told["mib"]),
            }
        )
    )


if __name__ == "__main__":
    logging.getLogger("ray").setLevel(logging.ERROR)
    main()
