"""Trains the embedded suite with raymix's own loop, in this process: one point of the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymix.core.errors import TrainingError
from raymix.core.job import Point, Stage, Status, TrainJob, TrainResult
from raymix.core.mixture import Budget, Mixture, Space
from raymix.data.prepare import DatasetSpec, DataSpec, prepare
from raymix.testing.skills import SPLITS
from raymix.testing.suite import RECIPE, SuitePaths
from raymix.train.config import Setup, Training
from raymix.train.local import LocalRunner

MAX_LENGTH = 32  # tokens; the longest row has 10


def training() -> Training:
    """The suite's recipe under the names of the `training:` block."""
    return Training(
        learning_rate=RECIPE.learning_rate,
        per_device_train_batch_size=RECIPE.batch_size,
        per_device_eval_batch_size=256,
        warmup_steps=RECIPE.warmup_steps,
        max_grad_norm=RECIPE.clip_norm,
        max_length=MAX_LENGTH,
        bf16=False,
    )


@dataclass(frozen=True)
class Bench:
    """A suite made ready: its data tokenised, its model loaded once and reset for each training.

    `stores`: the prepared files, by domain and split.
    """

    space: Space
    runner: LocalRunner
    stores: Mapping[str, Mapping[str, str]]

    def train(self, weights: Sequence[float], seed: int) -> TrainResult:
        """One training on the shares `weights` [K]; eval and test are evaluated at its end.

        Raises:
            TrainingError: says why the training failed.
        """
        mixture = Mixture.normalised(self.space.names, weights)
        stage = Stage(mixture, self.space.budget)
        job = TrainJob(trial=0, stages=(stage,), space=self.space, seed=seed, test=True)
        (result,) = self.runner.run([job], _go_on)
        if result.status is not Status.DONE:
            raise TrainingError(f"point {mixture}, seed {seed}: {result.error}")
        return result


def open_bench(suite: SuitePaths, cache: Path) -> Bench:
    """Tokenises the suite, or finds that done in the folder `cache`, and loads its model."""
    specs = tuple(_dataset(suite, name) for name in suite.names)
    spec = DataSpec(
        datasets=specs, tokenizer=str(suite.model), max_length=MAX_LENGTH, cache_dir=str(cache)
    )
    prepared = prepare(spec, quiet=True)
    domains = prepared.domains
    count = len(domains)
    budget = Budget(RECIPE.examples)
    prior = Mixture.normalised(suite.names, [domain.rows for domain in domains])
    no_cap = (float("inf"),) * count
    space = Space(domains, budget, prior, (0.0,) * count, (1.0,) * count, no_cap)
    output = str((cache / "runs").resolve())
    setup = Setup({"target": str(suite.model)}, training(), prepared.stores, output)
    return Bench(space, LocalRunner(setup), prepared.stores)


def _dataset(suite: SuitePaths, name: str) -> DatasetSpec:
    train, held_out, test = (str(suite.data(name, split)) for split in SPLITS)
    return DatasetSpec(domain=name, path=train, eval_path=held_out, test_path=test)


def _go_on(trial: int, point: Point) -> bool:
    return True
