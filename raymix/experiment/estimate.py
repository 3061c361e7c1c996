"""How much a study will train and about how long it takes; needs no GPU and loads no model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raymix.core.job import Spent, Status
from raymix.data.prepare import Prepared
from raymix.data.store import open_table
from raymix.experiment.build import plan, prepare, space
from raymix.experiment.config import Experiment
from raymix.experiment.model import parameters
from raymix.experiment.preview import preview
from raymix.study.plan import trainings
from raymix.study.record import read
from raymix.study.store import has_study

GPU_RATE = 4e14
"""A guess: 40% of an H100's dense bf16 peak (989 TFLOP/s), in FLOP/s."""
CPU_RATE = 3e10
"""A guess for one core and a small model, in FLOP/s."""


@dataclass(frozen=True)
class Estimate:
    """What a study amounts to.

    `trainings` by what they are for; `tokens` (train) and `eval_tokens` of one training; `seconds`
    for the whole study on `pools` pools, None where the model's size is unknown; `basis` says in
    words what the time rests on.
    """

    trainings: dict[str, int]
    tokens: int
    eval_tokens: int
    parameters: int | None
    pools: int
    seconds: float | None
    basis: str

    @property
    def total(self) -> int:
        """Trainings in all."""
        return sum(self.trainings.values())


def estimate(experiment: Experiment, rate: float | None = None, pools: int = 1) -> Estimate:
    """Count trainings and tokens, and estimate the time.

    Args:
        experiment: what is to be run.
        rate: FLOP/s that one worker reaches; None: what this study's own history shows, or else a
            guess by the kind of device.
        pools: worker groups at once where `cluster.pools` does not say.
    """
    prepared = prepare(experiment, weights=False)
    study = plan(experiment, space(experiment, prepared.domains))
    counts = trainings(study)
    drawn = preview(experiment, prepared)
    tokens = sum(d.tokens for d in drawn.drawn)
    evaluations = 1 + (drawn.steps // (experiment.training.eval_steps or math.inf))
    eval_tokens = int(evaluations * _eval_tokens(experiment, prepared))
    size = parameters(experiment.model_name_or_path)
    flops = None
    if size is not None:
        backward = 8 if experiment.training.gradient_checkpointing else 6
        flops = size * (backward * tokens + 2 * eval_tokens)
    held = experiment.cluster.pools or pools
    rounds = math.ceil(sum(counts.values()) / held)
    each, basis = _each(experiment, flops, rate)
    seconds = None if each is None else rounds * each
    return Estimate(counts, tokens, eval_tokens, size, held, seconds, basis)


def _each(
    experiment: Experiment, flops: float | None, rate: float | None
) -> tuple[float | None, str]:
    """Seconds of one training, and what they rest on."""
    spent = _measured(experiment.study.folder) if rate is None else []
    if spent:
        return float(np.median([s.seconds for s in spent])), (
            f"measured on {len(spent)} trainings of this study"
        )
    if flops is None:
        return None, "the model's size is unknown until it has been downloaded"
    gpu = experiment.cluster.use_gpu is True
    reached = rate or (GPU_RATE if gpu else CPU_RATE * experiment.cluster.cpus_per_worker)
    workers = experiment.cluster.num_workers
    kind = "stated" if rate else ("a guess for an H100" if gpu else "a guess for a CPU")
    return flops / (reached * workers), f"{reached:.2g} FLOP/s a worker ({kind})"


def _measured(folder: str) -> list[Spent]:
    if not has_study(folder):
        return []
    done = [trial.result for trial in read(folder).history]
    return [r.spent for r in done if r and r.status is Status.DONE and r.spent.steps]


def _eval_tokens(experiment: Experiment, prepared: Prepared) -> int:
    """Tokens of one evaluation of all domains."""
    limit = experiment.training.eval_rows
    tables = (open_table(prepared.stores[name]["eval"]) for name in experiment.names)
    return sum(int(t.tokens.mean() * min(t.rows, limit or t.rows)) for t in tables if t.rows)
