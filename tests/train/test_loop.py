"""The loop's promises, on one worker."""

import dataclasses
import math
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tiny_tables import DOMAINS, write_rows
from torch.optim.optimizer import register_optimizer_step_pre_hook

from raymix.core.codec import to_spec
from raymix.core.job import Budget, Json, Spec, Status
from raymix.core.mixture import Mixture, Space, Unit
from raymix.core.signals import Decision, Signal, Signals
from raymix.data.batches import Batches
from raymix.data.sampler import Sampler
from raymix.data.store import open_table
from raymix.reweight.constant import Constant
from raymix.train.local import LocalRunner
from raymix.train.worker import Worker


def weights(worker):
    (model,) = worker._models.values()
    return torch.cat([p.detach().flatten() for p in model.parameters.values()])


def losses(result, name="train/loss"):
    return np.array([point.metrics[name] for point in result.curve])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
def test_families_learn(family, setup_of, job_of, keep_points):
    worker = Worker(setup_of(family, eval_steps=10))
    base = worker.run(job_of(stages=()), keep_points)
    result = worker.run(job_of(320), keep_points)
    assert result.status is Status.DONE, result.error
    for name in DOMAINS:
        assert result.metrics[f"eval/{name}/loss"] < base.metrics[f"eval/{name}/loss"] - 0.05
    assert [point.step for point in result.curve] == [10, 20, 30, 40]
    assert [point.progress for point in result.curve] == [0.25, 0.5, 0.75, 1.0]
    assert tuple(keep_points.points[1:]) == result.curve
    assert result.spent.rows == 320
    assert math.isclose(sum(d.share for d in result.realised), 1.0)


def test_base_is_evaluated_and_nothing_else(setup_of, job_of, stores, keep_points):
    """Losses are those that transformers gives row by row, in nats per token."""
    worker = Worker(setup_of())
    result = worker.run(job_of(stages=(), test=True), keep_points)
    model = worker._models["target", False, False].module
    for name in DOMAINS:
        for split in ("eval", "test"):
            table, total = open_table(stores[name][split]), 0.0
            for row in range(table.rows):
                ids, mask = (torch.from_numpy(a.astype(np.int64))[None] for a in table.row(row))
                labels = torch.where(mask > 0, ids, -100)
                with torch.no_grad():
                    loss = model(input_ids=ids, labels=labels).loss
                total += float(loss) * int(table.loss_tokens[row])
            mean = total / int(table.loss_tokens.sum())
            assert result.metrics[f"{split}/{name}/loss"] == pytest.approx(mean, abs=1e-5)
    assert len(result.metrics) == 12
    assert (result.spent.steps, result.realised, result.mean_mixture) == (0, (), None)
    assert [(p.step, p.progress) for p in result.curve] == [(0, 1.0)]


def test_eval_rows_are_a_fixed_subset(setup_of, job_of, keep_points):
    few = [
        Worker(setup_of(eval_rows=7)).run(job_of(stages=(), seed=seed), keep_points).metrics
        for seed in (1, 2)
    ]
    every = Worker(setup_of()).run(job_of(stages=()), keep_points).metrics
    assert few[0] == few[1] != every


@pytest.mark.parametrize("dropped", [0, 5])
def test_accumulation_changes_nothing(dropped, setup_of, job_of, keep_points):
    results = []
    for part, steps in ((8, 1), (1, 8), (2, 4)):
        setup = setup_of(
            per_device_train_batch_size=part, gradient_accumulation_steps=steps, eval_steps=1
        )
        results.append(Worker(setup).run(job_of(160 - dropped), keep_points))
    for other in results[1:]:
        np.testing.assert_allclose(losses(results[0]), losses(other), atol=2e-6)
        assert other.metrics["eval/ants/loss"] == pytest.approx(
            results[0].metrics["eval/ants/loss"], abs=2e-6
        )


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("packing", [False, True])
def test_a_constant_reweighter_is_none(unit, packing, setup_of, job_of, keep_points):
    amount = 160 if unit is Unit.EXAMPLES else 1200
    setup = setup_of(eval_steps=4, packing=packing, per_device_train_batch_size=4)
    plain, constant = Worker(setup), Worker(setup)
    one = plain.run(job_of(amount, unit), keep_points)
    stage = {"reweighter": to_spec(Constant(every=1))}
    two = constant.run(job_of(amount, unit, stage=stage), keep_points)
    assert torch.equal(weights(plain), weights(constant))
    assert one.curve == two.curve
    assert one.realised == two.realised
    assert one.mean_mixture == two.mean_mixture


def test_jobs_leave_no_trace(setup_of, job_of, keep_points):
    worker = Worker(setup_of(use_peft=True, lora_dropout=0.1))
    first = worker.run(job_of(seed=1), keep_points)
    worker.run(job_of(seed=2, weights=(0.0, 0.0, 1.0)), keep_points)
    again = worker.run(job_of(seed=1), keep_points)
    assert replace(first, spent=again.spent) == again


@dataclass(frozen=True)
class Probe:
    """Logs what it hears in its state; decides as it is told."""

    every: int = 2
    needs: frozenset[Signal] = frozenset({Signal.DOMAIN_LOSS, Signal.VALIDATION_LOSS})
    same_step: bool = False
    targets: tuple[str, ...] = ()
    first: dict[str, float] | None = None
    loss: dict[str, float] | None = None
    later: dict[str, float] | None = None
    rollback: int | None = None
    path: str = ""

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        first = Mixture.of(self.first) if self.first else None
        loss = Mixture.of(self.loss) if self.loss else None
        return Decision(sampling=first, loss_weights=loss), [["init", steps, seed]]

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        heard = [signals.step, signals.lr, signals.mixture.as_dict(), signals.tokens.tolist()]
        heard += [signals.values[s].tolist() for s in sorted(self.needs)]
        state = [*state, heard]
        if self.path:
            np.save(self.path, np.array([str(state)]))
        later = Mixture.of(self.later) if self.later else None
        return Decision(sampling=later, restore=self.rollback), state


def heard_by(probe, tmp_path, worker, job, report):
    path = tmp_path / "heard.npy"
    spec = to_spec(replace(probe, path=str(path)))
    stages = tuple(replace(stage, reweighter=spec) for stage in job.stages)
    result = worker.run(replace(job, stages=stages), report)
    assert result.status is Status.DONE, result.error
    return result, eval(str(np.load(path)[0]), {"nan": math.nan})


def test_signals_and_decisions(setup_of, job_of, tmp_path, keep_points):
    """A decision of step t acts from t + 1; `init` acts on the first; windows do not overlap."""
    worker = Worker(setup_of(eval_steps=1, warmup_steps=0))
    probe = Probe(
        first={"ants": 1.0, "bees": 0.0, "cats": 0.0},
        later={"ants": 0.0, "bees": 0.5, "cats": 0.5},
    )
    result, heard = heard_by(probe, tmp_path, worker, job_of(32), keep_points)
    assert heard[0] == ["init", 4, 3]
    step, lr, mixture, tokens, domain, validation = heard[1]
    assert (step, mixture) == (2, {"ants": 1.0, "bees": 0.0, "cats": 0.0})
    assert lr == result.curve[1].metrics["train/lr"]
    assert tokens[0] > 0
    assert tokens[1:] == [0, 0]
    seen = [point.metrics["train/ants/loss"] for point in result.curve[:2]]
    assert min(seen) <= domain[0] <= max(seen)
    assert np.isnan(domain[1:]).all()
    assert validation == [result.curve[1].metrics[f"eval/{name}/loss"] for name in DOMAINS]
    assert heard[2][0] == 4
    assert heard[2][3][0] == 0
    shares = [point.metrics["mix/cats/share"] for point in result.curve]
    assert shares == [0.0, 0.5, 0.5, 0.5]
    assert result.mean_mixture.as_dict() == {"ants": 0.5, "bees": 0.25, "cats": 0.25}
    assert result.metrics["mix/ants/realised"] == 0.5
    assert "train/cats/loss" not in result.curve[0].metrics


def test_loss_weights_make_the_weighted_mean_of_domain_means(
    setup_of, job_of, tmp_path, keep_points
):
    """One SGD-like step: the gradient is sum_k w_k grad(mean loss of k), by autograd directly."""
    loss = {"ants": 0.7, "bees": 0.3, "cats": 0.0}
    setup = setup_of(max_grad_norm=0.0, warmup_steps=0)
    worker = Worker(setup)
    gradients = {}

    def spy(optimizer, *_):
        model = worker._models["target", False, False]
        gradients.update({n: p.grad.clone() for n, p in model.parameters.items()})

    handle = register_optimizer_step_pre_hook(spy)
    result, _ = heard_by(Probe(every=1, loss=loss), tmp_path, worker, job_of(8), keep_points)
    handle.remove()
    model = worker._models["target", False, False]
    model.reset(0)
    model.module.train()
    tables = [open_table(setup.stores[name]["train"]) for name in DOMAINS]
    total = 0.0
    job = job_of(8)
    items = Batches(Sampler(tables, job.space, job.stages[0], job.seed), 8).next_step()
    for d, name in enumerate(DOMAINS):
        sums, count = 0.0, 0
        for item in (item for item in items if item.domain == d):
            ids, mask = (
                torch.from_numpy(a.astype(np.int64))[None] for a in tables[d].row(item.rows[0])
            )
            labels = torch.where(mask > 0, ids, -100)
            sums = sums + model.module(input_ids=ids, labels=labels).loss * item.loss_tokens
            count += item.loss_tokens
        assert count
        total = total + loss[name] * sums / count
    total.backward()
    expected = {n: p.grad for n, p in model.parameters.items()}
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-4)
    assert result.mean_mixture.as_dict() == pytest.approx(loss)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (Probe(needs=frozenset({Signal.EXCESS_LOSS})), "names no reference model"),
        (Probe(targets=("dogs",)), "Probe has target 'dogs', which is no domain; known: ants"),
        (Probe(targets=("cots",)), "(did you mean 'cats'?)"),
        (Probe(targets=("cats",)), "target 'cats', which may be trained on"),
        (Probe(every=0), "every must be at least 1"),
        (Probe(rollback=1), "reweighter Probe: it decided on restore, which is not supported"),
    ],
)
def test_what_cannot_be_is_refused(probe, message, setup_of, job_of, keep_points):
    result = Worker(setup_of()).run(job_of(stage={"reweighter": to_spec(probe)}), keep_points)
    assert result.status is Status.FAILED
    assert message in result.error


def test_a_reweighter_that_cannot_be_imported(setup_of, job_of, keep_points):
    job = job_of(stage={"reweighter": Spec("no.such:Thing")})
    result = Worker(setup_of()).run(job, keep_points)
    assert "no.such:Thing" in result.error


@pytest.mark.parametrize("save_steps", [None, 100])
def test_stopped_by_its_report(save_steps, setup_of, job_of):
    worker = Worker(setup_of(eval_steps=3, save_steps=save_steps))
    result = worker.run(job_of(160), lambda point: point.step < 6)
    assert result.status is Status.STOPPED
    assert [point.step for point in result.curve] == [3, 6]
    assert result.metrics == result.curve[-1].metrics
    assert sum(drawn.rows for drawn in result.realised) == result.spent.rows == 48
    assert (result.checkpoint is not None) == (save_steps is not None)


def test_several_stages(setup_of, job_of, keep_points):
    """The model goes on, the schedule spans all stages, what was drawn is added up."""
    second = dataclasses.replace(
        job_of(80, weights=(0.0, 0.5, 0.5)).stages[0], learning_rate=1.5e-3
    )
    job = job_of(stages=(job_of(80, weights=(1.0, 0.0, 0.0)).stages[0], second))
    setup = setup_of(eval_steps=1, eval_rows=1, warmup_steps=0, lr_scheduler_type="linear")
    result = Worker(setup).run(job, keep_points)
    assert result.status is Status.DONE, result.error
    rates = losses(result, "train/lr")
    np.testing.assert_allclose(rates[:10], 3e-3 * (1 - np.arange(10) / 20))
    np.testing.assert_allclose(rates[10:20], 1.5e-3 * (1 - np.arange(10, 20) / 20))
    assert [drawn.rows for drawn in result.realised] == [80, 40, 40]
    assert [drawn.asked for drawn in result.realised] == [0.5, 0.25, 0.25]
    assert losses(result, "mix/ants/share")[[0, -1]].tolist() == [1.0, 0.0]
    assert result.mean_mixture.as_dict() == {"ants": 0.5, "bees": 0.25, "cats": 0.25}


def test_a_stage_goes_on_with_the_rows_that_are_left(setup_of, job_of, keep_points):
    """Three stages of one mixture, schedule and optimizer are one stage of their size."""
    even = (0.5, 0.25, 0.25)
    whole = job_of(144, weights=even)
    parts = tuple(job_of(amount, weights=even).stages[0] for amount in (40, 80, 24))
    one, three = Worker(setup_of(eval_steps=2)), Worker(setup_of(eval_steps=2))
    straight = one.run(whole, keep_points)
    staged = three.run(replace(whole, stages=parts), keep_points)
    assert torch.equal(weights(one), weights(three))
    assert [d.unique_rows for d in staged.realised] == [d.unique_rows for d in straight.realised]
    assert staged.metrics["eval/ants/loss"] == straight.metrics["eval/ants/loss"]


def test_epoch_caps_are_of_the_whole_job(setup_of, job_of, keep_points):
    job = job_of(150, weights=(0.0, 0.0, 1.0))
    space = replace(job.space, budget=Budget(200), max_epochs=(1.0, 1.0, 1.0))
    result = Worker(setup_of()).run(replace(job, space=space, stages=job.stages * 2), keep_points)
    assert "'cats' is asked for 150 examples" in result.error
    assert "100 short" in result.error


def test_every_stage_ends_with_a_point(setup_of, job_of, keep_points):
    job = job_of(stages=tuple(job_of(amount).stages[0] for amount in (40, 80, 24)))
    result = Worker(setup_of()).run(job, keep_points)
    assert [(p.step, p.stage) for p in result.curve] == [(5, 0), (15, 1), (18, 2)]
    assert [p.progress for p in result.curve] == pytest.approx([5 / 18, 15 / 18, 1.0])
    assert all("eval/ants/loss" in p.metrics for p in result.curve)
    often = Worker(setup_of(eval_steps=5)).run(job, keep_points)
    assert [(p.step, p.stage) for p in often.curve] == [(5, 0), (10, 1), (15, 1), (18, 2)]


def test_a_job_can_be_stopped_where_a_stage_ends(setup_of, job_of):
    job = job_of(stages=job_of(40).stages * 2)
    result = Worker(setup_of()).run(job, lambda point: False)
    assert (result.status, result.spent.rows) == (Status.STOPPED, 40)
    assert sum(d.rows for d in result.realised) == 40


def test_a_stage_can_start_optimizer_and_schedule_anew(setup_of, job_of, tmp_path, keep_points):
    """Two such stages are two trainings, the second from where the first ended."""
    setup = setup_of(eval_steps=1, warmup_steps=0.3, lr_scheduler_type="linear")
    (stage,) = job_of(48).stages
    again = replace(stage, replay=DOMAINS, restart=True)
    worker = Worker(setup)
    both = worker.run(job_of(stages=(stage, again)), keep_points)
    ended = weights(worker)
    first = worker.run(job_of(48, trial=2, keep=True), keep_points)
    second = worker.run(job_of(48, trial=3, start=first.checkpoint), keep_points)
    assert torch.equal(weights(worker), ended)
    apart = [*losses(first, "train/lr"), *losses(second, "train/lr")]
    assert losses(both, "train/lr").tolist() == apart
    assert [p.step for p in both.curve] == list(range(1, 13))


def test_a_kept_job_leaves_its_weights(setup_of, job_of, keep_points):
    worker = Worker(setup_of())
    assert worker.run(job_of(16), keep_points).checkpoint is None
    kept = worker.run(job_of(16, trial=2, keep=True), keep_points)
    trained = weights(worker)
    measured = worker.run(job_of(stages=(), trial=3, start=kept.checkpoint), keep_points)
    assert torch.equal(weights(worker), trained)
    assert measured.metrics["eval/ants/loss"] == kept.metrics["eval/ants/loss"]


def test_a_reweighter_counts_the_steps_of_its_stage(setup_of, job_of, tmp_path, keep_points):
    job = job_of(stages=(job_of(24).stages[0], job_of(32).stages[0]))
    _, heard = heard_by(Probe(), tmp_path, Worker(setup_of()), job, keep_points)
    assert heard[0][:2] == ["init", 4]
    assert [entry[0] for entry in heard[1:]] == [2, 4]


def test_bf16_and_checkpointing_stay_close(setup_of, job_of, keep_points):
    full, half, saved = (
        Worker(setup_of(eval_steps=5, **settings)).run(job_of(160), keep_points)
        for settings in ({}, {"bf16": True}, {"gradient_checkpointing": True})
    )
    np.testing.assert_allclose(losses(full), losses(half), atol=0.03)
    assert not np.array_equal(losses(full), losses(half))
    np.testing.assert_allclose(losses(full), losses(saved), atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
# torch's compiler warns of what it does itself (non-leaf gradients, deprecated calls).
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_compute_the_same(setup_of, job_of, keep_points):
    plain, compiled = (
        Worker(setup_of(eval_steps=5, torch_compile=compiled)).run(job_of(80), keep_points)
        for compiled in (False, True)
    )
    assert compiled.status is Status.DONE, compiled.error
    np.testing.assert_allclose(losses(plain), losses(compiled), atol=1e-5)


def test_local_runner_runs_jobs_in_turn(setup_of, job_of):
    heard = []

    def report(trial, point):
        heard.append((trial, point.step))
        return True

    jobs = [job_of(16, trial=4), job_of(24, trial=5)]
    results = LocalRunner(setup_of()).run(jobs, report)
    assert [result.status for result in results] == [Status.DONE] * 2
    assert heard == [(4, 2), (5, 3)]


def test_divergence_fails_the_trial_and_names_the_step(setup_of, job_of, keep_points):
    worker = Worker(setup_of(learning_rate=9.0, max_grad_norm=0, warmup_steps=0))
    (model,) = [worker._model("target", False)]
    good = worker.run(job_of(8), keep_points)
    assert good.status is Status.DONE

    def poison(module, inputs, output):
        return output * float("nan") if calls.append(0) or len(calls) == 4 else output

    calls = []
    handle = model.module.lm_head.register_forward_hook(poison)
    result = worker.run(job_of(160), keep_points)
    handle.remove()
    assert result.status is Status.FAILED
    assert "gradient of step 4 is nan" in result.error
    assert (result.spent.steps, result.metrics, result.curve) == (4, {}, ())
    again = worker.run(job_of(8), keep_points)
    assert replace(again, spent=good.spent) == good


def test_out_of_memory_says_what_to_do(setup_of, job_of, keep_points):
    worker = Worker(setup_of())

    def hungry(module, inputs):
        torch.empty(2**60)

    handle = worker._model("target", False).module.model.norm.register_forward_pre_hook(hungry)
    result = worker.run(job_of(), keep_points)
    handle.remove()
    assert result.error.startswith("out of memory at step 1: lower per_device_train_batch_size")
    assert worker.run(job_of(), keep_points).status is Status.DONE


def test_what_ends_a_process_is_not_swallowed(setup_of, job_of):
    worker = Worker(setup_of())
    for error in (KeyboardInterrupt, SystemExit):

        def report(point, error=error):
            raise error

        with pytest.raises(error):
            worker.run(job_of(), report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"target": "/no/such/model"}}, "cannot load model '/no/such/model'"),
        ({"models": {}}, "unknown model 'target'"),
        ({"stores": {}}, "domain 'ants' has no train split"),
    ],
)
def test_what_is_missing_is_named(change, message, setup_of, job_of, keep_points):
    result = Worker(replace(setup_of(), **change)).run(job_of(), keep_points)
    assert result.status is Status.FAILED
    assert message in result.error


def test_a_domain_without_loss_to_evaluate(setup_of, job_of, tmp_path, keep_points):
    setup = setup_of()
    path = write_rows(tmp_path / "t", "bees", "eval", [([1, 2, 3], [1, 0, 0])])
    stores = {**setup.stores, "bees": {**setup.stores["bees"], "eval": path}}
    result = Worker(replace(setup, stores=stores)).run(job_of(), keep_points)
    assert "domain 'bees' has no eval row with loss" in result.error


def test_a_budget_that_caps_forbid(setup_of, job_of, keep_points):
    job = job_of(2000)
    space = replace(job.space, budget=Budget(200), max_epochs=(1.0, 1.0, 1.0))
    result = Worker(setup_of()).run(replace(job, space=space), keep_points)
    assert result.status is Status.FAILED
    assert "ants" in result.error
