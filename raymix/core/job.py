"""What is sent to the workers, and what comes back. Plain values; JSON by `core.codec`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from raymix.core.mixture import Budget, Mixture, Space

Json = Any
"""Plain JSON: what crosses a process border."""


class Trainable(StrEnum):
    """Which weights a stage moves."""

    WEIGHTS = "weights"
    LORA = "lora"
    NONE = "none"


class Prompt(StrEnum):
    """What a stage does with a soft prompt."""

    OFF = "off"
    TRAIN = "train"
    FROZEN = "frozen"


class Diagnostic(StrEnum):
    """A measurement taken on the trained model at the end of a job."""

    INFLUENCE = "influence"


class Status(StrEnum):
    """How a training ended."""

    DONE = "done"
    STOPPED = "stopped"
    """Stopped early by the scheduler or the user; its last point counts."""
    FAILED = "failed"


@dataclass(frozen=True)
class Spec:
    """An algorithm that crosses a process border: import path plus fields (see `core.codec`)."""

    path: str
    fields: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stretch of training on one mixture.

    `pools` [K] bounds the rows available per domain (a nested, seeded prefix); None: all of them.
    `learning_rate` None: the experiment's own. A stage draws a domain's rows where the stages
    before it stopped, and epoch caps hold for all stages together. Of the domains in `replay` it
    draws the rows that were drawn first, again. `restart`: the optimizer's state and the
    learning-rate schedule start anew with this stage; else they go on.

    `trainable` WEIGHTS are the model's own, or its adapters where the experiment asks for LoRA.
    Adapters act from the first LORA stage on; a stage of WEIGHTS or NONE leaves them as they are.
    `carriers`: domains whose rows have the soft prompt before them and pass through the adapters;
    the others' do neither, in training and in evaluation. None: all domains are carriers. A stage
    whose prompt is OFF has none before any row, whatever stages before it did. Where the experiment
    asks for LoRA (`use_peft`) the adapters are the weights, which all rows pass through, and
    carriers have the prompt only.
    """

    mixture: Mixture
    budget: Budget
    pools: tuple[int, ...] | None = None
    trainable: Trainable = Trainable.WEIGHTS
    prompt: Prompt = Prompt.OFF
    reweighter: Spec | None = None
    learning_rate: float | None = None
    replay: tuple[str, ...] = ()
    restart: bool = False
    carriers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TrainJob:
    """One training, whole: a worker needs nothing else but the study's `Setup`.

    No stages: the model is only evaluated. `test`: the test split is evaluated at the end too
    (verdicts only). `reference`: checkpoint, or folder in Hugging Face form, of the model that
    reweighters compare losses with. `start`: path of a checkpoint whose weights it starts from.
    `keep`: ends with a checkpoint even where the experiment saves none. `save`: folder for the
    trained model in Hugging Face form. `measure`: taken on the model at the end; where nothing is
    trained, `trained` are the stages that made the checkpoint in `start`, whose rows are looked at.
    `turn`: the first stage ends with a checkpoint of its own, which the result's diagnostics name;
    `branch`: such a checkpoint, of a job with the same first stage, which is then not trained
    again.
    """

    trial: int
    stages: tuple[Stage, ...]
    space: Space
    seed: int
    model: str = "target"
    attempt: int = 0
    test: bool = False
    reference: str | None = None
    measure: frozenset[Diagnostic] = frozenset()
    start: str | None = None
    save: str | None = None
    keep: bool = False
    trained: tuple[Stage, ...] = ()
    turn: bool = False
    branch: str | None = None


@dataclass(frozen=True)
class Point:
    """One report from a running training.

    `progress` is the fraction of the job's budget spent, 0 to 1; `stage` the stage that is being
    trained, from 0. Every stage ends with a point. `metrics` are flat: `eval/<domain>/loss`,
    `eval/<domain>/accuracy` (the share of rows that are right to the last token), the same of
    `test`, `train/loss`, `train/lr` (the soft prompt's where nothing else moves),
    `mix/<domain>/share`; of a reweighter `reweight/<signal>/<domain>`, what it was last told (a
    matrix's row means), and `reweight/weight/<domain>`, the loss or gradient weights in force.

    `eval` and `test` are of the model as the stage uses it: carriers with soft prompt and adapters,
    others without. Where there are two ways, the point that ends a stage also has `swap`, of the
    eval split the other way round: carriers without, others with.
    """

    step: int
    progress: float
    metrics: Mapping[str, float]
    stage: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """What of one domain entered optimizer steps. `share` is in the budget's unit.

    `unique_rows` of a stage are those that no earlier stage of its job had drawn.
    """

    domain: str
    asked: float
    share: float
    rows: int
    unique_rows: int
    epochs: float
    tokens: int
    loss_tokens: int
    capped: bool = False


@dataclass(frozen=True)
class Spent:
    """What a training cost. `gpu_seconds` is wall time times the GPUs held (0 on CPU).

    `extra`: tokens that passed through the model beside the optimizer steps' own, counted as tokens
    of a training step. A forward pass alone is a third of one, as is a backward pass to the
    activations alone; one that has the weights' gradients is two thirds. Evaluations do not count.
    The soft prompt's places before training rows do, as tokens of a training step.
    """

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    extra: int = 0


@dataclass(frozen=True)
class TrainResult:
    """What a training found. `metrics` is the last point's; losses in nats per token.

    `outside`: what failed was no fault of the training's (a full disk), so it may be tried again.
    """

    status: Status
    metrics: Mapping[str, float]
    curve: tuple[Point, ...] = ()
    realised: tuple[Drawn, ...] = ()
    mean_mixture: Mixture | None = None
    diagnostics: Mapping[str, Json] = field(default_factory=dict)
    checkpoint: str | None = None
    spent: Spent = Spent()
    error: str = ""
    outside: bool = False


class Report(Protocol):
    """Hears each point of each job while it runs."""

    def __call__(self, trial: int, point: Point) -> bool:
        """False asks the job to stop at this point."""
        ...


class Runner(Protocol):
    """Runs trainings somewhere."""

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        """Run `jobs` (several: a pack, trained together); a failed one has `Status.FAILED`."""
        ...


class Strategy(Protocol):
    """In which order a mixture is trained."""

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        """The stages that spend `budget` on `mixture`."""
        ...
