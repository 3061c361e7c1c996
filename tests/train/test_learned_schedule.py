"""What MoS has learned is in the result of its training, and can be played back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scripted import held_out, steered
from tiny_tables import DOMAINS

from raymix.core.codec import decode, encode, to_spec
from raymix.core.errors import ConfigError
from raymix.core.job import Stage, Status, TrainResult
from raymix.core.mixture import Budget
from raymix.reweight.doge import DoGE
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.reweight.schedule import Schedule, learned
from raymix.search.online import Online
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.train.local import LocalRunner
from raymix.train.worker import Worker

METHODS = {
    "mos": MoS(every=3, rewards=("transferability", "difficulty", "trajectory"), relax=0.5),
    "mospec": MoS(objective="pg", every=3, lr=1e-2, target="cats"),
}


def trained_in_a_study(folder, setup, space, reweighter):
    """The result of the one training of a study, as its history file has it."""
    method = Method("online", Online(to_spec(reweighter)), 1)
    plan = Plan(
        space, MultiTask(), Objective(), (method,), confirm=Confirm(0, 0), standard=False, seed=5
    )
    study = Study(folder, plan, {})
    try:
        run_serial(study, LocalRunner(replace(setup, output_dir=str(folder))))
    finally:
        study.close()
    (trial,) = (t for t in read(folder).trials.values() if t.method == "online")
    assert trial.result.status is Status.DONE, trial.result.error
    return trial.result


def told(result):
    """All that a result says of its training but for the reweighter's own curves."""
    curve = [
        (p.step, {k: v for k, v in p.metrics.items() if not k.startswith("reweight/")})
        for p in result.curve
    ]
    return curve, result.realised, result.mean_mixture


@pytest.mark.parametrize("name", METHODS)
def test_a_schedule_from_the_history_is_replayed_bit_for_bit(name, setup_of, job_of, tmp_path):
    method, job = METHODS[name], job_of(160)
    job = held_out(job, "cats") if method.targets else job
    space = replace(job.space, budget=Budget(160), prior=job.stages[0].mixture)
    setup = setup_of(eval_steps=1, eval_rows=4)
    first = trained_in_a_study(tmp_path / "learns", setup, space, method)
    (entry,) = first.diagnostics["reweighter"]
    assert entry["type"] == "raymix.reweight.mos:MoS"
    schedule = learned(entry)
    assert [step for step, _ in schedule.points] == list(range(0, 19, 3))
    assert len({tuple(shares.values()) for _, shares in schedule.points}) == 7
    again = trained_in_a_study(tmp_path / "replays", setup, space, schedule)
    assert told(again) == told(first)
    if method.targets:
        assert again.realised[2].rows == 0
    # What was replayed has learned nothing: there is nothing to be learned from it.
    with pytest.raises(ConfigError, match=r"no schedule was learned by 'raymix.*:Schedule'"):
        learned(again.diagnostics["reweighter"][0])


def test_its_mean_is_a_static_mixture(setup_of, job_of, keep_points):
    """As a schedule of one point and as a stage's own mixture: the same training."""
    worker, job = Worker(setup_of(eval_steps=4)), job_of(160)
    mean = worker.run(steered(job, METHODS["mos"]), keep_points).mean_mixture
    static = replace(job, stages=(replace(job.stages[0], mixture=mean),))
    plain = worker.run(static, keep_points)
    replayed = worker.run(steered(job, Schedule(((0, mean.as_dict()),))), keep_points)
    assert plain.status is replayed.status is Status.DONE
    assert [p.metrics for p in plain.curve] == [p.metrics for p in replayed.curve]
    for drawn, share in zip(plain.realised, mean.weights, strict=True):
        assert drawn.share == pytest.approx(share, abs=1 / 160)


def test_there_is_an_entry_for_each_stage(setup_of, job_of, keep_points):
    job = job_of()
    one, two, three = (Stage(job.stages[0].mixture, Budget(n)) for n in (48, 40, 48))
    stages = (
        replace(one, reweighter=to_spec(METHODS["mos"])),
        two,
        replace(three, reweighter=to_spec(DoGE())),
    )
    result = Worker(setup_of()).run(replace(job, stages=stages), keep_points)
    first, second, third = result.diagnostics["reweighter"]
    assert [step for step, _ in learned(first).points] == [0, 3, 6]
    assert second is None
    assert third["type"] == "raymix.reweight.doge:DoGE"
    assert third["state"]["domains"] == list(DOMAINS)
    for entry in (second, third):
        with pytest.raises(ConfigError, match="no schedule was learned by"):
            learned(entry)
    # It is plain JSON, and trainings without a reweighter have none of it.
    again = decode(TrainResult, json.loads(json.dumps(encode(result), allow_nan=False)))
    assert again.diagnostics == result.diagnostics
    assert Worker(setup_of()).run(job_of(32), keep_points).diagnostics == {}


def test_a_resumed_training_knows_what_its_first_stage_has_learned(
    setup_of, job_of, keep_points, model_folder
):
    job = job_of(reference=model_folder("llama"))
    stages = tuple(Stage(job.stages[0].mixture, Budget(n)) for n in (64, 96))
    job = steered(replace(job, stages=stages), DoReMi())
    straight = Worker(setup_of()).run(job, keep_points)

    def die(point):
        if point.step == 16:
            raise KeyboardInterrupt
        return True

    setup = setup_of(eval_steps=16, save_steps=5)
    with pytest.raises(KeyboardInterrupt):
        Worker(setup).run(job, die)
    resumed = Worker(setup).run(replace(job, attempt=1), keep_points)
    assert len(straight.diagnostics["reweighter"]) == 2
    assert resumed.diagnostics == straight.diagnostics
