"""Reweighters on two FSDP2 workers: the same signals, decisions and weights as on one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import on_ranks
from scripted import Broken, Scripted, held_out, steered

from raymix.core.job import Status
from raymix.core.signals import Signal
from raymix.train.worker import Worker

pytestmark = pytest.mark.slow

GRAM = frozenset({Signal.GRADIENT_GRAM})
EXCESS = frozenset({Signal.EXCESS_LOSS, Signal.CLIPPED_EXCESS_LOSS, Signal.REFERENCE_LOSS})
PROBES = frozenset({Signal.HIDDEN_SIMILARITY, Signal.PERPLEXITY_RATIO})
VARIANTS = {
    "excess": Scripted(EXCESS, Signal.CLIPPED_EXCESS_LOSS, "loss_weights"),
    "same-step": Scripted(EXCESS, Signal.EXCESS_LOSS, "loss_weights", every=2, same_step=True),
    "gram": Scripted(GRAM, Signal.GRADIENT_GRAM, "gradient_weights", 0.1, same_step=True),
    "target": Scripted(
        GRAM | PROBES,
        Signal.GRADIENT_GRAM,
        "gradient_weights",
        0.1,
        same_step=True,
        targets=("cats",),
    ),
    "probes": Scripted(PROBES, Signal.PERPLEXITY_RATIO, "sampling", 1.0, every=5),
    "moving-reference": Scripted(EXCESS, Signal.REFERENCE_LOSS, "sampling", 0.3, every=3),
}


def _yes(point):
    return True


def _run_all(world, cases):
    return [Worker(setup, world).run(job, _yes) for setup, job in cases]


def _cases(setup_of, job_of, tmp_path, model_folder, batch, name):
    """Each variant's setup, job and the file in which it notes what it hears."""
    made = []
    for variant, scripted in VARIANTS.items():
        setup = setup_of(
            eval_steps=5,
            eval_rows=5,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=2,
            offload_gradients=variant == "target",
        )
        folder = tmp_path / name / variant
        folder.mkdir(parents=True)
        setup = replace(setup, output_dir=str(folder))
        job = job_of(160, reference=model_folder("llama"), weights=(0.5, 0.45, 0.05))
        if scripted.targets:
            job = held_out(job, "cats")
        made.append((setup, steered(job, replace(scripted, path=str(folder / "heard.json")))))
    return made


def _same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        for key, value in left.items():
            np.testing.assert_allclose(right[key], value, atol=1e-5, rtol=1e-4, err_msg=key)


def test_two_workers_hear_and_do_what_one_does(setup_of, job_of, tmp_path, model_folder):
    """Cats are so rare that in most steps one rank, or none, has a row of them."""
    single = _cases(setup_of, job_of, tmp_path, model_folder, 4, "one")
    double = _cases(setup_of, job_of, tmp_path, model_folder, 2, "two")
    one = _run_all(None, single)
    two = on_ranks(2, _run_all, double)
    for v, variant in enumerate(VARIANTS):
        left, right, other = one[v], two[0][v], two[1][v]
        assert left.status is right.status is Status.DONE, (variant, left.error, right.error)
        assert right.metrics == other.metrics
        assert right.mean_mixture == other.mean_mixture
        ours, theirs = (
            json.loads((Path(cases[v][0].output_dir) / "heard.json").read_text())
            for cases in (single, double)
        )
        _same(ours, theirs)
        assert left.mean_mixture.array() == pytest.approx(right.mean_mixture.array(), abs=1e-5)
        assert left.realised == right.realised
        assert left.spent.extra == right.spent.extra
        assert (left.spent.extra > 0) == (variant != "gram")
        for a, b in zip(left.curve, right.curve, strict=True):
            assert a.metrics == pytest.approx(b.metrics, abs=1e-5), variant
        if variant in ("excess", "gram"):
            cats = [told["tokens"][2] for told in ours]
            assert min(cats) == 0 < max(cats)


def _alone(world, setup, job):
    return Worker(setup, world).run(job, _yes)


def test_a_domain_on_one_rank_only(setup_of, job_of, tmp_path):
    """Two items a step, one a domain: each domain's backward passes run on both ranks.

    Its matrices do not divide by two: the shards are uneven.
    """
    setup = setup_of("untied", per_device_train_batch_size=1, warmup_steps=0)
    path = tmp_path / "heard.json"
    scripted = Scripted(
        GRAM, Signal.GRADIENT_GRAM, "gradient_weights", 0.1, same_step=True, path=str(path)
    )
    job = steered(job_of(24, weights=(0.5, 0.5, 0.0)), scripted)
    first, second = on_ranks(2, _alone, setup, job)
    assert first.status is second.status is Status.DONE, first.error
    heard = json.loads(path.read_text())
    alone = replace(
        setup, training=setup.training.model_copy(update={"per_device_train_batch_size": 2})
    )
    single = Worker(alone).run(job, _yes)
    _same(json.loads(path.read_text()), heard)
    assert single.metrics == pytest.approx(first.metrics, abs=1e-5)
    assert all(told["tokens"][0] and told["tokens"][1] for told in heard)


def _stop_at_six(point):
    return point.step < 6


def _stop_and_resume(world, straight, stopped, job):
    whole = Worker(straight, world).run(job, _yes)
    first = Worker(stopped, world).run(job, _stop_at_six)
    second = Worker(stopped, world).run(replace(job, attempt=1), _yes)
    return whole, first, second


@pytest.mark.parametrize("variant", ["same-step", "target", "moving-reference"])
def test_resumed_equals_straight_through_on_two(variant, setup_of, job_of, tmp_path, model_folder):
    setup = setup_of(per_device_train_batch_size=4, eval_steps=3, save_steps=4)
    straight = replace(setup, output_dir=str(tmp_path / "straight"))
    job = job_of(96, reference=model_folder("llama"))
    if VARIANTS[variant].targets:
        job = held_out(job, "cats")
    job = steered(job, VARIANTS[variant])
    for whole, first, second in on_ranks(2, _stop_and_resume, straight, setup, job):
        assert whole.status is second.status is Status.DONE, second.error
        assert first.spent.steps == 6
        assert second.curve == whole.curve
        assert second.mean_mixture == whole.mean_mixture
        left, right = (
            (Path(r.checkpoint) / "model.safetensors").read_bytes() for r in (whole, second)
        )
        assert left == right


def _in_turn(world, setup, jobs):
    worker = Worker(setup, world)
    return [worker.run(job, _yes) for job in jobs]


def test_what_a_reweighter_breaks_is_survived(setup_of, job_of, tmp_path, model_folder):
    words = tmp_path / "words"
    shutil.copytree(model_folder("llama"), words)
    file = words / "tokenizer.json"
    file.write_text(file.read_text().replace('"w9"', '"v9"'))
    excess = Scripted(EXCESS)
    jobs = [
        steered(job_of(80), Broken((float("nan"), 0.5, 0.5), "loss_weights")),
        steered(job_of(80), Broken((), "loss_weights", same_step=True)),
        steered(job_of(80, reference=str(words)), excess),
        steered(job_of(80, reference=str(tmp_path / "none")), excess),
        job_of(80),
    ]
    one, two = on_ranks(2, _in_turn, setup_of(per_device_train_batch_size=4), jobs)
    assert [r.error for r in one] == [r.error for r in two]
    assert [r.status for r in one] == [Status.FAILED] * 4 + [Status.DONE]
    told = ["reweighter Broken: weight of 'ants'", "ZeroDivisionError", "another tokenizer"]
    for result, part in zip(one, told, strict=False):
        assert part in result.error
