"""What decisions do to a training, what is refused, and stopping and going on in between."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted import Broken, Schedule, Scripted, held_out, steered
from tiny_tables import DOMAINS, write_rows

from raymix.core.job import Status
from raymix.core.mixture import Budget, Domain, Unit
from raymix.core.signals import Signal
from raymix.train.worker import Worker

GRAM = frozenset({Signal.GRADIENT_GRAM})
VARIANTS = {
    "excess": (Scripted(frozenset({Signal.EXCESS_LOSS}), Signal.EXCESS_LOSS, "loss_weights"), {}),
    "same-step": (
        Scripted(
            frozenset({Signal.CLIPPED_EXCESS_LOSS}),
            Signal.CLIPPED_EXCESS_LOSS,
            "loss_weights",
            every=2,
            same_step=True,
        ),
        {"lora_dropout": 0.1, "use_peft": True},
    ),
    "gram": (
        Scripted(GRAM, Signal.GRADIENT_GRAM, "gradient_weights", 0.1, same_step=True),
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ),
    "gram-later": (Scripted(GRAM, Signal.GRADIENT_GRAM, "gradient_weights", 0.1, every=3), {}),
    "target": (
        Scripted(
            GRAM, Signal.GRADIENT_GRAM, "gradient_weights", 0.1, same_step=True, targets=("cats",)
        ),
        {"packing": True, "per_device_train_batch_size": 3},
    ),
    "probes": (
        Scripted(
            frozenset({Signal.HIDDEN_SIMILARITY, Signal.PERPLEXITY_RATIO}),
            Signal.PERPLEXITY_RATIO,
            "sampling",
            3.0,
            every=3,
        ),
        {},
    ),
    "moving-reference": (
        Scripted(
            frozenset({Signal.REFERENCE_LOSS}), Signal.REFERENCE_LOSS, "sampling", 0.3, every=2
        ),
        {},
    ),
}


class StopAt:
    """Kills the process's job after so many points, as a dying worker would."""

    def __init__(self, points):
        self.left = points

    def __call__(self, point):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return True


def prepared(variant, setup_of, job_of, tmp_path, model_folder):
    """A setup and a job of two stages with the variant's reweighter in each."""
    scripted, training = VARIANTS[variant]
    setup = setup_of(save_steps=5, eval_steps=4, **training)
    packed = training.get("packing", False)
    unit, amounts = (Unit.TOKENS, (1600, 800)) if packed else (Unit.EXAMPLES, (112, 64))
    (first,) = job_of(amounts[0], unit).stages
    job = job_of(stages=(first, replace(first, budget=Budget(amounts[1], unit))))
    if scripted.targets:
        job = held_out(job, "cats")
    return setup, steered(replace(job, reference=model_folder("llama")), scripted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_straight_through(
    variant, setup_of, job_of, keep_points, tmp_path, model_folder
):
    setup, job = prepared(variant, setup_of, job_of, tmp_path, model_folder)
    whole = replace(setup, output_dir=str(tmp_path / "straight"))
    straight = Worker(whole).run(job, keep_points)
    assert straight.status is Status.DONE, straight.error
    assert straight.spent.steps > 10
    for _stops in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            Worker(setup).run(job, StopAt(2))
    resumed = Worker(setup).run(replace(job, attempt=3), keep_points)
    assert resumed.curve == straight.curve
    assert resumed.realised == straight.realised
    assert resumed.mean_mixture == straight.mean_mixture
    for name in ("model", "optimizer"):
        left, right = (
            (Path(r.checkpoint) / f"{name}.safetensors").read_bytes() for r in (straight, resumed)
        )
        assert left == right
    if VARIANTS[variant][0].moves != "sampling":
        told = [p.metrics["reweight/weight/ants"] for p in straight.curve]
        assert len(set(told)) > 2


def test_a_job_that_only_has_to_report_its_end_tells_the_same(
    setup_of, job_of, keep_points, tmp_path, model_folder
):
    """It died between its last checkpoint and its last report: the mixture in force is known."""
    setup, job = prepared("probes", setup_of, job_of, tmp_path, model_folder)
    straight = Worker(replace(setup, output_dir=str(tmp_path / "s"))).run(job, keep_points)
    last = straight.curve[-1]
    assert "reweight/hidden_similarity/ants" in last.metrics

    def die(point):
        if point.progress == 1.0:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        Worker(setup).run(job, die)
    resumed = Worker(setup).run(replace(job, attempt=1), keep_points)
    assert resumed.curve[-1] == last


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("packing", [False, True])
def test_realised_draws_follow_weights_that_move(unit, packing, setup_of, job_of, keep_points):
    """The realised shares are within 1% of the mean of the mixtures in force."""
    amount = {Unit.EXAMPLES: 800, Unit.TOKENS: 10000, Unit.LOSS_TOKENS: 4000}[unit]
    rng = np.random.default_rng(5)
    mixtures = tuple(
        dict(zip(DOMAINS, rng.dirichlet([1, 1, 1]).tolist(), strict=True)) for _ in range(12)
    )
    setup = setup_of(per_device_train_batch_size=2 if packing else 4, packing=packing)
    job = job_of(amount, unit)
    plain = Worker(setup).run(job, keep_points)
    every = max(1, plain.spent.steps // 13)
    setup = replace(
        setup, training=setup.training.model_copy(update={"eval_steps": 1, "eval_rows": 1})
    )
    job = steered(job, Schedule(mixtures, every))
    result = Worker(setup).run(job, keep_points)
    assert result.status is Status.DONE, result.error
    # Steps are of equal items, not of equal budget: what a step was worth is in its progress.
    progress = np.diff([0.0, *(p.progress for p in result.curve)])
    shares = np.array([[p.metrics[f"mix/{n}/share"] for n in DOMAINS] for p in result.curve])
    first = np.array(job.stages[0].mixture.weights)
    in_force = np.concatenate([[first], shares[:-1]])
    expected = progress @ in_force
    realised = [d.share for d in result.realised]
    assert max(abs(expected - first)) > 0.03
    assert realised == pytest.approx(expected, abs=0.01)


def test_a_domain_that_its_cap_exhausts_in_mid_run(setup_of, job_of, keep_points):
    """Its share goes to the others in proportion; the budget is spent, the cap holds."""
    job = job_of(400, weights=(0.6, 0.2, 0.2))
    space = replace(job.space, budget=Budget(400), max_epochs=(1.0, 1.0, 0.5))
    greedy = Schedule(({"ants": 0.1, "bees": 0.1, "cats": 0.8},), 5)
    result = Worker(setup_of()).run(steered(replace(job, space=space), greedy), keep_points)
    assert result.status is Status.DONE, result.error
    rows = [d.rows for d in result.realised]
    assert rows[2] == 100
    assert result.realised[2].capped
    assert sum(rows) == 400
    # 40 rows were drawn before (24, 8, 8); of the 360 left cats give 92, the others half each.
    assert rows[:2] == [24 + 134, 8 + 134]


def test_a_mixture_that_cannot_fill_the_budget_fails_by_name(setup_of, job_of, keep_points):
    job = job_of(400, weights=(0.5, 0.25, 0.25))
    space = replace(job.space, budget=Budget(400), max_epochs=(1.0, 1.0, 0.52))
    job = replace(job, space=space)
    alone = {"ants": 0.0, "bees": 0.0, "cats": 1.0}
    late = Worker(setup_of()).run(steered(job, Schedule((alone,), 49)), keep_points)
    assert late.status is Status.DONE, late.error
    assert late.spent.rows == 398  # two rows short in the last step: within a hundredth
    result = Worker(setup_of()).run(steered(job, Schedule((alone,), 12)), keep_points)
    assert result.status is Status.FAILED
    assert result.error.startswith("reweighter Schedule: the domains of mixture ")
    # 96 rows are drawn, 24 of them cats: 80 more are allowed where 304 are wanted.
    assert "exhausted by their epoch caps: 224 of 400 examples short" in result.error


@pytest.mark.parametrize("moves", ["sampling", "loss_weights", "gradient_weights"])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((float("nan"), 0.5, 0.5), "reweighter Broken: weight of 'ants' must be a number >= 0"),
        ((1.5, -0.5, 0.0), "reweighter Broken: weight of 'bees' must be a number >= 0, got -0.5"),
        ((), "reweighter Broken: ZeroDivisionError: of its own"),
    ],
)
def test_broken_weights_fail_the_trial_by_name(
    moves, weights, message, setup_of, job_of, keep_points
):
    worker = Worker(setup_of())
    good = worker.run(job_of(16), keep_points)
    for same_step in (False, True):
        broken = Broken(weights, moves, same_step=same_step)
        result = worker.run(steered(job_of(80), broken), keep_points)
        assert result.status is Status.FAILED
        assert message in result.error
        assert result.spent.steps == 2 - same_step
    again = worker.run(job_of(16), keep_points)
    assert replace(again, spent=good.spent) == good


def test_a_target_is_given_nothing(setup_of, job_of, keep_points):
    job = held_out(job_of(80), "cats")
    mixture = {"ants": 0.5, "bees": 0.4, "cats": 0.1}
    for moves in ("sampling", "loss_weights"):
        schedule = Schedule((mixture,), targets=("cats",), moves=moves)
        result = Worker(setup_of()).run(steered(job, schedule), keep_points)
        assert "reweighter Schedule: it gives weight to its target 'cats'" in result.error


def test_a_target_without_rows(setup_of, job_of, tmp_path, keep_points):
    setup, job = setup_of(), held_out(job_of(80), "cats")
    path = write_rows(tmp_path / "t", "cats", "train", [([1, 2, 3], [1, 0, 0])])
    stores = {**setup.stores, "cats": {**setup.stores["cats"], "train": path}}
    domains = (*job.space.domains[:2], Domain("cats", 1, 3, 0))
    job = replace(job, space=replace(job.space, domains=domains))
    job = steered(job, Scripted(GRAM, targets=("cats",)))
    result = Worker(replace(setup, stores=stores)).run(job, keep_points)
    assert "target 'cats', which has no train rows" in result.error


def test_divergence_is_named_before_what_it_does_to_the_weights(setup_of, job_of, keep_points):
    for needs in (frozenset({Signal.DOMAIN_LOSS}), GRAM):
        (signal,) = needs
        worker = Worker(setup_of())
        model = worker._model("target", False)
        calls = []

        def poison(module, inputs, output, calls=calls, model=model):
            calls.append(model.module.training)
            return output * float("nan") if sum(calls) > 12 else output

        handle = model.module.lm_head.register_forward_hook(poison)
        scripted = Scripted(needs, signal, "loss_weights")
        result = worker.run(steered(job_of(160), scripted), keep_points)
        handle.remove()
        assert result.status is Status.FAILED
        assert "the gradient of " in result.error
        assert "nan" in result.error
        assert "reweighter" not in result.error


def refused(setup, job, keep_points):
    scripted = Scripted(frozenset({Signal.EXCESS_LOSS}))
    worker = Worker(setup)
    result = worker.run(steered(job, scripted), keep_points)
    assert result.status is Status.FAILED
    # The worker has its own weights back.
    good = Worker(setup).run(job, keep_points)
    assert replace(worker.run(job, keep_points), spent=good.spent) == good
    return result.error


def test_references_that_do_not_fit(setup_of, job_of, keep_points, tmp_path, model_folder):
    setup = setup_of()
    assert "/no/such/model" in refused(setup, job_of(16, reference="/no/such/model"), keep_points)
    # Another vocabulary size, another width of the tokenizer's words, another base.
    other = model_folder("untied")
    assert "does not fit" in refused(setup, job_of(16, reference=other), keep_points)
    words = tmp_path / "words"
    shutil.copytree(model_folder("llama"), words)
    file = words / "tokenizer.json"
    file.write_text(file.read_text().replace('"w9"', '"v9"'))
    told = refused(setup, job_of(16, reference=str(words)), keep_points)
    assert "has another tokenizer than" in told
    twin = tmp_path / "twin"
    shutil.copytree(model_folder("llama"), twin)
    elsewhere = replace(setup, models={"target": str(twin)}, output_dir=str(tmp_path / "o"))
    trained = Worker(elsewhere).run(job_of(16, keep=True), keep_points).checkpoint
    told = refused(setup, job_of(16, reference=trained), keep_points)
    assert f"were trained from '{twin}'" in told


def test_what_cannot_be_asked_together(setup_of, job_of, keep_points, model_folder):
    even = (1 / 3, 1 / 3, 1 / 3)
    result = Worker(setup_of()).run(steered(job_of(80), Broken(even, "both")), keep_points)
    assert "loss_weights and gradient_weights at once" in result.error
    job = held_out(job_of(80, reference=model_folder("llama")), "cats")
    asks = Scripted(GRAM | {Signal.EXCESS_LOSS}, targets=("cats",))
    result = Worker(setup_of()).run(steered(job, asks), keep_points)
    assert "reference losses of targets are not measured" in result.error


def test_the_cost_of_a_reference_is_not_the_budgets(setup_of, job_of, keep_points, model_folder):
    plain = Worker(setup_of()).run(job_of(80), keep_points)
    job = job_of(80, reference=model_folder("llama"))
    scripted = Scripted(frozenset({Signal.EXCESS_LOSS}))
    listening = Worker(setup_of()).run(steered(job, scripted), keep_points)
    assert listening.spent.tokens == plain.spent.tokens
