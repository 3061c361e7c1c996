"""What a trial costs before it trains: the pool against a TorchTrainer nested in each trial.

    python experiments/benchmarks/trial_overhead.py

Seconds from a proposal to the end of the first optimizer step, of the second and later trials, the
reset of the model included. Both sides run in one Ray, one trial at a time, with the same worker,
model and data: the model is ../shared/models/lab-base-1m beside the checkout where it is present,
else the embedded tiny one. Prints every trial and, last, one JSON object: `pool_s` and `nested_s`
(medians), `ratio`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from raymix.cluster.config import Cluster
from raymix.cluster.session import HEAD, connected
from raymix.cluster.tune import tune_study
from raymix.core.codec import decode, encode, from_json, to_json
from raymix.core.job import Json, Point, Stage, TrainJob, TrainResult
from raymix.core.mixture import Space
from raymix.core.trial import History, Idle, Proposal
from raymix.experiment.build import prepare, setup, space
from raymix.experiment.config import Experiment
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.study import Study
from raymix.testing.suite import write_suite
from raymix.train.config import Setup

HERE = Path(__file__).resolve()
LAB = HERE.parents[3] / "shared" / "models" / "lab-base-1m"
POOL_TRIALS, NESTED_TRIALS = 12, 4
NESTED = 1000
"""Numbers of nested trials start here."""

_STEPS = "first-steps.jsonl"


@dataclasses.dataclass(frozen=True)
class Clocked:
    """A searcher that notes when it proposed."""

    times: list[float]

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """A random mixture."""
        answer = Dirichlet().propose(space, history, rng)
        self.times.append(time.time())
        return answer


class Noting:
    """raymix's worker; notes when the first optimizer step of each job was done."""

    def __init__(self, parts: Setup, world: Any) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        from raymix.train.worker import Worker

        self._worker = Worker(parts, world)
        self._file = Path(parts.output_dir) / _STEPS
        self._trial: int | None = None
        register_optimizer_step_post_hook(self._stepped)

    def run(self, job: TrainJob, report: Any) -> TrainResult:
        """Train, as the worker does."""
        self._trial = job.trial
        return self._worker.run(job, report)

    def _stepped(self, *hooked: object) -> None:
        if self._trial is not None:
            with self._file.open("a") as file:
                file.write(json.dumps({"trial": self._trial, "time": time.time()}) + "\n")
            self._trial = None


def describe(folder: Path) -> Experiment:
    suite = write_suite(folder / "suite", 3)
    return Experiment.model_validate(
        {
            "study": {"name": "overhead", "output_dir": str(folder / "study")},
            "model_name_or_path": str(LAB if LAB.is_dir() else suite.model),
            "datasets": [
                {"domain": name, "path": str(suite.data(name, "train"))}
                | {f"{split}_path": str(suite.data(name, split)) for split in ("eval", "test")}
                for name in suite.names
            ],
            "mixture": {"unit": "examples", "budget": 64},
            "training": {"per_device_train_batch_size": 8, "max_length": 64, "eval_rows": 16},
            "cache_dir": str(folder / "cache"),
        }
    )


def on_pool(parts: Setup, within: Space, clocked: Clocked) -> list[int]:
    """A study on one pool; numbers of the trials that `clocked` proposed."""
    methods = (Method("clocked", clocked, POOL_TRIALS),)
    plan = Plan(within, MultiTask(), Objective(), methods, confirm=Confirm(0, 0))
    study = Study(parts.output_dir, plan, {})
    tune_study(study, parts, Cluster(pools=1), trainer="trial_overhead:Noting")
    study.close()
    return [trial.number for trial in study.history if trial.method == "clocked"]


def nested_worker(config: Mapping[str, Json]) -> None:
    """What each trial's own TorchTrainer runs: one job on a new worker."""
    import ray.train.torch
    import torch
    from trial_overhead import Noting as ByPath

    from raymix.train.shard import current

    torch.set_num_threads(1)
    worker = ByPath(decode(Setup, config["setup"]), current(ray.train.torch.get_device()))
    worker.run(from_json(TrainJob, config["job"]), lambda point: isinstance(point, Point))


def nested_trial(config: dict[str, Any]) -> None:
    """A Tune trial with a TorchTrainer inside, as Ray documents it."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        nested_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=config["name"], storage_path=config["storage"]),
    ).fit()
    tune.report({"done": 1})


class Jobs(tune.search.Searcher):
    """Proposes jobs for nested trials."""

    def __init__(self, parts: Setup, within: Space, clocked: Clocked, storage: str) -> None:
        super().__init__(metric="done", mode="max")
        self._common = {"setup": encode(parts), "storage": storage}
        self._within = within
        self._clocked = clocked

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """A whole job, as the pool gets it."""
        number = NESTED + len(self._clocked.times)
        rng = np.random.default_rng(number)
        proposal = self._clocked.propose(self._within, History(), rng)
        assert isinstance(proposal, Proposal)
        stages = (Stage(proposal.mixture, self._within.budget),)
        job = TrainJob(number, stages, self._within, seed=0)
        return {**self._common, "job": to_json(job), "name": f"nested-{number}"}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """A failed trial would have no first step."""
        if error:
            raise RuntimeError("a nested trial failed")

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


def nested(parts: Setup, within: Space, clocked: Clocked, storage: str) -> list[int]:
    """The same trainings, each in its own TorchTrainer; their numbers."""
    jobs = Jobs(parts, within, clocked, storage)
    tune.Tuner(
        tune.with_resources(nested_trial, tune.PlacementGroupFactory([{HEAD: 0.001}])),
        tune_config=tune.TuneConfig(
            search_alg=tune.search.ConcurrencyLimiter(jobs, max_concurrent=1),
            num_samples=NESTED_TRIALS,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(name="nested", storage_path=storage, verbose=0),
    ).fit()
    return [NESTED + i for i in range(NESTED_TRIALS)]


def waited(numbers: list[int], clocked: Clocked, steps: Mapping[int, float]) -> list[float]:
    """Seconds from proposal to first step, the first trial left out."""
    pairs = list(zip(numbers, clocked.times, strict=True))[1:]
    return [steps[number] - proposed for number, proposed in pairs]


def main() -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        experiment = describe(folder)
        prepared = prepare(experiment)
        within, parts = space(experiment, prepared.domains), setup(experiment, prepared)
        pool_clock, nested_clock = Clocked([]), Clocked([])
        with connected(Cluster()):
            pool_numbers = on_pool(parts, within, pool_clock)
            nested_numbers = nested(parts, within, nested_clock, str(folder / "ray"))
        lines = (Path(parts.output_dir) / _STEPS).read_text().splitlines()
        steps = {found["trial"]: found["time"] for found in map(json.loads, lines)}
    pool = waited(pool_numbers, pool_clock, steps)
    beside = waited(nested_numbers, nested_clock, steps)
    print(f"model: {Path(experiment.model_name_or_path).name}, {os.cpu_count()} CPUs")
    print("pool:  ", *(f"{seconds:.3f}" for seconds in pool))
    print("nested:", *(f"{seconds:.2f}" for seconds in beside))
    figures = {"pool_s": statistics.median(pool), "nested_s": statistics.median(beside)}
    figures["ratio"] = figures["nested_s"] / figures["pool_s"]
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    logging.getLogger("ray").setLevel(logging.ERROR)
    main()
