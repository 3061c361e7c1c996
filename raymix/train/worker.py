"""A worker process: keeps models and tables between jobs, and survives a training that fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate.utils import release_memory
from accelerate.utils.memory import should_reduce_batch_size

from raymix.core.errors import CheckpointError, RaymixError, TrainingError
from raymix.core.job import Status, TrainJob, TrainResult
from raymix.data.store import Table, open_table
from raymix.train.config import Setup
from raymix.train.evaluate import HeldOut
from raymix.train.kit import Kit
from raymix.train.leak import leak_of
from raymix.train.loop import Report, Run
from raymix.train.model import Model
from raymix.train.parts import built
from raymix.train.pretrained import load
from raymix.train.refuse import refuse
from raymix.train.shard import World, together
from raymix.train.tables import table_here

log = logging.getLogger(__name__)

_Kind = tuple[str, bool, bool]
"""A model's name, whether it has adapters, and whether it has a soft prompt."""


class Worker:
    """One process of a group that trains jobs together.

    Models are built once per name and what they have (adapters, a soft prompt) and reset in place,
    tables stay mapped. Every rank of `world`
    makes the same calls.
    """

    def __init__(self, setup: Setup, world: World | None = None) -> None:
        self.setup, self.world = setup, world or World()
        self._models: dict[_Kind, Model] = {}
        self._tables: dict[tuple[str, str], Table] = {}
        self._kits: dict[tuple[object, ...], Kit] = {}
        self._held: dict[tuple[tuple[str, ...], str], HeldOut] = {}

    def run(self, job: TrainJob, report: Report) -> TrainResult:
        """Train `job` and return the same result on every rank.

        `report` is called on rank 0 with each point; False stops the job there. What goes wrong in
        a training gives `Status.FAILED` and leaves the worker usable. Where there are several
        ranks, an error that only one of them has met outside the places where they compare notes
        is raised: the others wait for it in a collective call, and only a restart frees them.
        """
        run: Run | None = None
        try:
            run = Run(job, self._kit(job), report)
            return run.run()
        except Exception as error:
            if self.world.size > 1 and not isinstance(error, RaymixError):
                raise
            # An error of ours says all in its words, and these are in the result.
            if not isinstance(error, RaymixError):
                log.warning("trial %d failed", job.trial, exc_info=error)
            words, outside = _in_words(error, run), isinstance(error, CheckpointError)
        result = (
            run.result(Status.FAILED, words) if run else TrainResult(Status.FAILED, {}, error=words)
        )
        release_memory()
        return replace(result, outside=outside)

    def _kit(self, job: TrainJob) -> Kit:
        """What `job` is run with; jobs of one shape share it.

        `job.test` is heeded where every domain of the job has a test split, for a mean over some of
        them would not compare with eval's. Else there is no test to evaluate and no error.
        """
        refuse(job, self.setup.training)
        kind = (job.model, *built(job, self.setup.training))
        trains = bool(job.stages or job.measure)
        shape = (kind, job.space.names, trains, job.test)
        if shape not in self._kits:
            self._kits[shape] = self._assemble(job, kind)
        return self._kits[shape]

    def _assemble(self, job: TrainJob, kind: _Kind) -> Kit:
        names = job.space.names
        tests = job.test and all("test" in self.setup.stores.get(name, {}) for name in names)
        with together(self.world):
            train = self._open(names, "train") if job.stages or job.measure else ()
            held = self._held_out(names, "eval", self.setup.training.eval_rows)
            test = self._held_out(names, "test", None) if tests else None
            if job.model not in self.setup.models:
                known = ", ".join(self.setup.models)
                raise TrainingError(f"unknown model '{job.model}'; known: {known}")
            leak = leak_of(self.setup, self.setup.models[job.model], names)
        model = self._model(*kind)
        for table in (
            *train,
            *held.tables,
            *(test.tables if test else ()),
            *(leak.tables if leak else ()),
        ):
            _fits(table, model)
        return Kit(self.setup, model, train, held, test, leak)

    def _model(self, name: str, lora: bool, prompt: bool = False) -> Model:
        kind = (name, lora, prompt)
        if kind not in self._models:
            self._models[kind] = load(
                self.setup.models[name],
                self.setup.training,
                self.world,
                lora=lora,
                trust=self.setup.trust_remote_code,
                prompt=prompt,
                tokenizer=self.setup.tokenizer,
            )
        return self._models[kind]

    def _open(self, names: Sequence[str], split: str) -> list[Table]:
        for name in names:
            if (name, split) not in self._tables:
                path = self.setup.stores.get(name, {}).get(split)
                if path is None:
                    raise TrainingError(f"domain '{name}' has no {split} split")
                self._tables[name, split] = open_table(table_here(self.setup, path))
        return [self._tables[name, split] for name in names]

    def _held_out(self, names: tuple[str, ...], split: str, rows: int | None) -> HeldOut:
        if (names, split) not in self._held:
            batch = self.setup.training.per_device_eval_batch_size
            self._held[names, split] = HeldOut(self._open(names, split), rows, batch)
        return self._held[names, split]


def _fits(table: Table, model: Model) -> None:
    """Refuse tokens that the model has no embedding for: a GPU would not survive the look-up."""
    largest = int(table.ids.max(initial=0))
    if largest >= model.vocabulary:
        raise TrainingError(
            f"token {largest} of domain '{table.domain}' ({table.split}) is not in the vocabulary "
            f"of {model.vocabulary} of model '{model.path}': is the tokenizer another model's?"
        )


def _in_words(error: Exception, run: Run | None) -> str:
    step = run.course.step + 1 if run else 0
    if isinstance(error, RaymixError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return (
            f"out of memory at step {step}: lower per_device_train_batch_size (and raise "
            f"gradient_accumulation_steps) or set gradient_checkpointing; {error}"
        )
    return f"{type(error).__name__} at step {step}: {error}"
