"""Jobs whose stages train soft prompts and adapters, made by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from raymix.core.job import Prompt, Stage, Trainable, TrainJob
from raymix.core.mixture import Budget, Mixture
from raymix.train.model import Model
from raymix.train.parts import Part

KINDS = {
    "prompt": {"trainable": Trainable.NONE, "prompt": Prompt.TRAIN},
    "frozen": {"prompt": Prompt.FROZEN},
    "joint": {"prompt": Prompt.TRAIN},
    "weights": {},
    "lora": {"trainable": Trainable.LORA},
    "off": {"prompt": Prompt.OFF},
}
"""What a stage does, by a short name."""

ALL = (0.5, 0.3, 0.2)
ANTS = (1.0, 0.0, 0.0)


def stage(job: TrainJob, kind: str, amount: int, weights=ALL, **fields) -> Stage:
    """A stage of `kind` on the domains of `job`; `fields` change it."""
    budget = Budget(amount, job.stages[0].budget.unit)
    mixture = Mixture(job.space.names, weights)
    found = {**KINDS[kind], **fields}
    found["prompt"] = Prompt(found.get("prompt", Prompt.OFF))
    return Stage(mixture, budget, **found)


def staged(job: TrainJob, *stages: Stage) -> TrainJob:
    """`job` with other stages."""
    return replace(job, stages=stages)


def promot(job: TrainJob, first: int = 48, second: int = 64, **fields) -> TrainJob:
    """The stages of ProMoT for the target "ants"."""
    return staged(
        job,
        stage(job, "prompt", first, ANTS, carriers=("ants",)),
        stage(
            job,
            "frozen",
            second,
            **{"carriers": ("ants",), "replay": ("ants",), "restart": True, **fields},
        ),
    )


def values(model: Model, part: Part) -> dict[str, torch.Tensor]:
    """Copies of all parameters of a part, by name."""
    return {name: p.detach().clone() for name, p in model.named(part).items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert left
    return all(torch.equal(left[name], right[name]) for name in left)


class Watch:
    """Keeps points, and a model's parameters at each of them."""

    def __init__(self, worker, kind: tuple[str, bool, bool]) -> None:
        self.points, self.values = [], []
        self._worker, self._kind = worker, kind

    def __call__(self, point) -> bool:
        model = self._worker._models[self._kind]
        self.points.append(point)
        self.values.append({part: values(model, part) for part in Part if model.named(part)})
        return True
