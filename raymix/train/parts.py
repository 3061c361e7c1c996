"""Which parts of a model a job moves, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from raymix.core.job import Prompt, Stage, Trainable, TrainJob
from raymix.train.config import Training


class Part(StrEnum):
    """What may move without the others."""

    WEIGHTS = "weights"
    ADAPTERS = "adapters"
    PROMPT = "prompt"


def moved(stages: Sequence[Stage], training: Training) -> frozenset[Part]:
    """What any of `stages` moves; where there are none, what a stage that says nothing would."""
    parts = set()
    for stage in stages or (None,):
        if stage is not None and stage.prompt is Prompt.TRAIN:
            parts.add(Part.PROMPT)
        kind = Trainable.WEIGHTS if stage is None else stage.trainable
        if kind is Trainable.LORA or (kind is Trainable.WEIGHTS and training.use_peft):
            parts.add(Part.ADAPTERS)
        elif kind is Trainable.WEIGHTS:
            parts.add(Part.WEIGHTS)
    return frozenset(parts)


def built(job: TrainJob, training: Training) -> tuple[bool, bool]:
    """Whether the model of `job` has adapters, and whether it has a soft prompt."""
    stages = (*job.stages, *job.trained)
    adapters = training.use_peft or any(s.trainable is Trainable.LORA for s in stages)
    return adapters, any(s.prompt is not Prompt.OFF for s in stages)


def is_plain(job: TrainJob, training: Training) -> bool:
    """Whether all rows pass through the model alike, and all stages move the same part of it."""
    stages = (*job.stages, *job.trained)
    adapters, prompt = built(job, training)
    some = any(stage.carriers is not None for stage in stages)
    chosen = adapters and some and not training.use_peft
    return not (prompt or chosen or len({moved([stage], training) for stage in stages}) > 1)
