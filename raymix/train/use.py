"""How the rows of each domain pass through the model: with soft prompt and adapters, or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raymix.core.job import Prompt, Stage, Trainable, TrainJob
from raymix.data.batches import Item, length
from raymix.train.config import Training
from raymix.train.parts import built


@dataclass(frozen=True)
class Use:
    """What of the model the rows of each domain [K] pass through.

    `slots`: places for the soft prompt before each row; None: no soft prompt is in use. `adapted`:
    whether rows pass through the adapters; None: there are none, or none to choose.
    `swapped`: the other way round, where there is another way: carriers without, others with.
    """

    slots: tuple[int, ...] | None = None
    adapted: tuple[bool, ...] | None = None
    swapped: Use | None = None

    def extra(self, items: Sequence[Item]) -> int:
        """Tokens of the soft prompt before all rows of `items`."""
        return sum(length(item, self.slots) - item.tokens for item in items)

    def groups(self, items: Sequence[Item]) -> Iterator[tuple[list[Item], bool | None]]:
        """`items` that may share a pass, and what `Micro.adapted` is for them.

        The same on all ranks where `items` are.
        """
        if self.adapted is None:
            yield list(items), None
            return
        for value in (True, False):
            own = [item for item in items if self.adapted[item.domain] is value]
            if own:
                yield own, value


PLAIN = Use()
"""All rows pass through all that there is, and no soft prompt is before them."""


def uses(job: TrainJob, training: Training) -> tuple[Use, ...]:
    """How rows pass in each stage of `job`, and in its evaluations.

    A soft prompt is before the carriers' rows in the stages that have one. Adapters act from the
    first stage that moves them on, on the carriers' rows. A job without stages is used as the last
    of the stages that made its weights (`trained`), or plainly.
    """
    stages = job.stages or job.trained
    adapters, _ = built(job, training)
    # Adapters that are the weights of the whole training are everybody's.
    chosen = any(stage.carriers is not None for stage in stages) and not training.use_peft
    made, act = [], training.use_peft
    for stage in stages:
        act = act or stage.trainable is Trainable.LORA
        made.append(_use(stage, job.space.names, training, adapters, act))
    if adapters and not chosen and all(all(use.adapted or ()) for use in made):
        # Nothing tells rows or stages apart: the adapters stay as they are.
        made = [_unchosen(use) for use in made]
    if not job.stages:
        made = made[-1:]
    return tuple(made) if made else (PLAIN,)


def _use(stage: Stage, names: Sequence[str], training: Training, adapters: bool, act: bool) -> Use:
    carries = [stage.carriers is None or name in stage.carriers for name in names]
    prompt, tokens = stage.prompt is not Prompt.OFF, training.num_virtual_tokens
    tuned = adapters and act and stage.carriers is not None and not training.use_peft
    adapted = tuple(act and (c or training.use_peft) for c in carries) if adapters else None
    slots = tuple(tokens * c for c in carries) if prompt else None
    other = Use(
        tuple(tokens * (not c) for c in carries) if prompt else None,
        tuple(not c for c in carries) if tuned else adapted,
    )
    return Use(slots, adapted, other if prompt or tuned else None)


def _unchosen(use: Use) -> Use:
    other = use.swapped and Use(use.swapped.slots)
    return Use(use.slots, None, other)
