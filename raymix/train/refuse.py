"""What is said before any step about a job that cannot be trained or measured."""

from __future__ import annotations

from raymix.core.codec import from_spec
from raymix.core.errors import TrainingError, nearest
from raymix.core.job import Diagnostic, Prompt, Stage, Trainable, TrainJob
from raymix.core.signals import PROBED, REFERENCED
from raymix.train.config import Training
from raymix.train.parts import Part, built, is_plain, moved


def refuse(job: TrainJob, training: Training) -> None:
    """Say before any step what cannot be trained or measured.

    Raises:
        TrainingError: names the stage (from 1) and what is wrong with it.
    """
    if job.measure and not (job.stages or (job.trained and job.start)):
        raise TrainingError(
            f"diagnostic '{min(job.measure)}' is of a trained model, but this job neither trains "
            "nor starts from a checkpoint"
        )
    for number, stage in enumerate(job.stages, start=1):
        if stage.trainable is Trainable.NONE and stage.prompt is not Prompt.TRAIN:
            raise TrainingError(
                f"stage {number} moves nothing: its trainable is 'none' and its prompt "
                f"'{stage.prompt}'; have it train the prompt, the weights or adapters"
            )
        _refuse_carriers(number, stage, job, training)
    if is_plain(job, training):
        return
    if Diagnostic.INFLUENCE in job.measure:
        raise TrainingError(
            "diagnostic 'influence' is of models that move as a whole: it is not measured where "
            "stages have a soft prompt or carriers, or move different weights"
        )
    _refuse_signals(job)
    _refuse_merge(job, training)


def _refuse_carriers(number: int, stage: Stage, job: TrainJob, training: Training) -> None:
    if stage.carriers is None:
        return
    names = job.space.names
    if not stage.carriers:
        raise TrainingError(f"stage {number} has no carriers: name a domain, or leave them out")
    for name in stage.carriers:
        if name not in names:
            hint = nearest(name, names) or f"; known: {', '.join(names)}"
            raise TrainingError(f"stage {number} has carrier '{name}', which is no domain{hint}")
    shares = stage.mixture.ordered(names).as_dict()
    if training.use_peft and stage.trainable is Trainable.LORA:
        raise TrainingError(
            f"stage {number} has adapters for its carriers alone, but with training.use_peft "
            "adapters are the weights of all rows: set it to false"
        )
    whole = Part.WEIGHTS in moved([stage], training) or (
        training.use_peft and stage.trainable is Trainable.WEIGHTS
    )
    if not (whole or stage.reweighter or any(shares[name] > 0 for name in stage.carriers)):
        raise TrainingError(
            f"stage {number} has nothing to learn from: its mixture draws none of its carriers "
            f"({', '.join(stage.carriers)}), and other rows do not reach what it moves"
        )


def _refuse_signals(job: TrainJob) -> None:
    for number, stage in enumerate(job.stages, start=1):
        if stage.reweighter is None:
            continue
        reweighter = from_spec(stage.reweighter)
        asked = sorted(reweighter.needs & (REFERENCED | PROBED))
        if asked:
            raise TrainingError(
                f"reweighter {type(reweighter).__name__} of stage {number} needs signal "
                f"'{asked[0]}', which is not measured where stages have a soft prompt or carriers, "
                "or move different weights"
            )


def _refuse_merge(job: TrainJob, training: Training) -> None:
    adapters, _ = built(job, training)
    names = set(job.space.names)
    some = [s for s in job.stages if s.carriers is not None and set(s.carriers) != names]
    some = [] if training.use_peft else some
    if job.save is not None and training.merge_lora and adapters and some:
        raise TrainingError(
            "training.merge_lora would put the adapters before the rows of every domain, but they "
            f"are those of {', '.join(some[0].carriers or ())}; set it to false"
        )
