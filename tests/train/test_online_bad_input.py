"""Studies with methods that cannot work: each fails by name, and the next trial is trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scripted import Broken

from raymix.core.codec import to_spec
from raymix.core.job import Report, Spec, Status, TrainJob, TrainResult
from raymix.core.mixture import Budget, Space
from raymix.core.trial import History, Idle, Proposal
from raymix.reweight.doge import DoGE
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.train.local import LocalRunner
from raymix.train.worker import Worker


@dataclass(frozen=True)
class Once:
    """Asks for one training with a reweighter, or with none."""

    reweighter: Spec | None = None

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        return Idle.DONE if history.own else Proposal(space.prior, reweighter=self.reweighter)


@dataclass(frozen=True)
class Referring:
    """Trains here, each trial's reweighter against the reference that its number says."""

    inner: LocalRunner
    references: Mapping[int, str]

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        told = [replace(job, reference=self.references.get(job.trial)) for job in jobs]
        return self.inner.run(told, report)


@pytest.fixture
def studied(setup_of, job_of, tmp_path):
    """Trains one trial of each reweighter in turn, then a plain one; their results by name."""

    def run(methods, references: Mapping[str, str] | None = None, setup=None):
        names = list(methods)
        asked = [
            Method(n, Once(r and to_spec(r)), 1) for n, r in [*methods.items(), ("last", None)]
        ]
        job = job_of(64)
        space = replace(job.space, budget=Budget(64))
        plan = Plan(
            space,
            MultiTask(),
            Objective(),
            tuple(asked),
            confirm=Confirm(0, 0),
            standard=False,
            seed=5,
        )
        # Trial 0 is the model before training.
        numbers = {names.index(n) + 1: path for n, path in (references or {}).items()}
        setup = setup or setup_of()
        study = Study(tmp_path / "study", plan, {})
        try:
            run_serial(study, Referring(LocalRunner(setup), numbers))
            trials = {t.method: t for t in study.history}
        finally:
            study.close()
        last = trials.pop("last")
        assert last.result.status is Status.DONE, last.result.error
        # What failed before has left nothing behind.
        alone = Worker(replace(setup, output_dir=str(tmp_path / "alone")))
        job = TrainJob(9, MultiTask().stages(space.prior, space.budget, {}), space, last.seed)
        fresh = alone.run(job, lambda point: True)
        assert fresh.metrics.items() <= last.result.metrics.items()
        return {name: trials[name].result for name in names}

    return run


def assert_failed(results, words):
    for name, result in results.items():
        assert result.status is Status.FAILED, name
        for word in words[name]:
            assert word in result.error, (name, result.error)
        assert "\n" not in result.error


def test_references_that_losses_cannot_be_compared_with(
    studied, setup_of, job_of, keep_points, tmp_path, model_folder
):
    words = tmp_path / "words"
    shutil.copytree(model_folder("llama"), words)
    file = words / "tokenizer.json"
    file.write_text(file.read_text().replace('"w9"', '"v9"'))
    twin = tmp_path / "twin"
    shutil.copytree(model_folder("llama"), twin)
    setup = setup_of()
    elsewhere = replace(setup, models={"target": str(twin)}, output_dir=str(tmp_path / "twins"))
    other_base = Worker(elsewhere).run(job_of(16, keep=True), keep_points).checkpoint
    references = {
        "tokenizer": str(words),
        "twin": other_base,
        "vocabulary": model_folder("untied"),
        "architecture": model_folder("granite"),
        "nowhere": str(tmp_path / "nowhere"),
    }
    results = studied(dict.fromkeys([*references, "none"], DoReMi()), references)
    assert_failed(
        results,
        {
            "tokenizer": [f"{words}", "has another tokenizer than"],
            "twin": [f"were trained from '{twin}'", "one base only"],
            "vocabulary": [model_folder("untied"), "does not fit"],
            "architecture": [model_folder("granite"), "of a granite model, it is a llama model"],
            "nowhere": [f"{tmp_path / 'nowhere'}"],
            "none": ["reweighter DoReMi needs signal 'clipped_excess_loss'", "no reference model"],
        },
    )


def test_a_reference_that_lacks_weights(studied, setup_of, model_folder, tmp_path):
    """Its head is its embedding, the model has one of its own: half of it would be the model's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tied = tmp_path / "tied"
    config = AutoConfig.from_pretrained(model_folder("untied"), tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tied)
    results = studied({"tied": DoReMi()}, {"tied": str(tied)}, setup_of("untied"))
    assert_failed(results, {"tied": [str(tied), "'lm_head.weight' does not fit"]})


def test_targets_that_do_not_exist_or_are_trained_on(studied):
    results = studied(
        {
            "doge": DoGE(target="cat"),
            "mospec": MoS(target="dogs"),
            "trained": DoGE(target="cats"),
            "spec-trained": MoS(target="cats"),
        }
    )
    assert_failed(
        results,
        {
            "doge": ["reweighter DoGE", "'cat'", "did you mean 'cats'"],
            "mospec": ["reweighter MoS", "'dogs'", "known: ants, bees, cats"],
            "trained": ["reweighter DoGE", "'cats'", "upper bound of 0"],
            "spec-trained": ["reweighter MoS", "'cats'", "upper bound of 0"],
        },
    )


def test_weights_that_are_none(studied):
    nan, below = (float("nan"), 0.5, 0.5), (1.5, -0.5, 0.0)
    moves = ("sampling", "loss_weights", "gradient_weights")
    methods = {f"nan-{m}": Broken(nan, m) for m in moves}
    methods |= {f"below-{m}": Broken(below, m) for m in moves}
    methods |= {"breaks": Broken(), "at once": Broken(nan, "loss_weights", same_step=True)}
    words = {name: ["reweighter Broken: weight of 'ants'", "nan"] for name in methods}
    words |= {f"below-{m}": ["reweighter Broken: weight of 'bees'", "-0.5"] for m in moves}
    words["breaks"] = ["reweighter Broken: ZeroDivisionError: of its own"]
    assert_failed(studied(methods), words)
