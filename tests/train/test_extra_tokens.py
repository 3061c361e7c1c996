"""What a training puts through the model beside its steps, against counts worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripted import Scripted, held_out, steered
from tiny_tables import DOMAINS

from raymix.core.job import Stage, Status
from raymix.core.mixture import Budget
from raymix.core.signals import Signal
from raymix.data.aside import UNTRAINED, Aside
from raymix.data.batches import foresee
from raymix.data.sampler import Sampler
from raymix.data.store import open_table
from raymix.reweight.doge import DoGE
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.reweight.schedule import Schedule
from raymix.train.worker import Worker


@pytest.fixture
def spent(setup_of, keep_points):
    """What a job with a reweighter spends, on a worker of its own."""

    def run(job, reweighter=None, **training):
        job = job if reweighter is None else steered(job, reweighter)
        result = Worker(setup_of(**training)).run(job, keep_points)
        assert result.status is Status.DONE, result.error
        return result.spent

    return run


def sampler_of(stores, job):
    tables = [open_table(stores[name]["train"]) for name in DOMAINS]
    return Sampler(tables, job.space, job.stages[0], job.seed)


def tokens_of(items):
    return sum(item.tokens for item in items)


def probes(stores, job, updates):
    """Items that so many probes look at."""
    streams = sampler_of(stores, job).streams
    return [i for d, s in enumerate(streams) for i in Aside(s, d, UNTRAINED).take(16 * updates)]


def test_a_plain_training_and_one_that_listens_to_itself_put_nothing_through(spent, job_of):
    assert spent(job_of(160), eval_steps=2).extra == 0
    own = frozenset({Signal.DOMAIN_LOSS, Signal.VALIDATION_LOSS})
    assert spent(job_of(160), Scripted(own)).extra == 0
    assert spent(job_of(160), Schedule(((0, {"ants": 1.0}),))).extra == 0


def test_reference_losses_cost_a_forward_pass_over_the_rows_known_or_not(
    spent, job_of, model_folder, stores
):
    """78 rows of the even mixture: each is drawn once, so all of their tokens pass once.

    The later jobs find the losses of the earlier ones and are charged what they need themselves.
    """
    job = job_of(78, weights=(1 / 3,) * 3, reference=model_folder("llama"))
    first = spent(job, DoReMi())
    assert first.extra == round(first.tokens / 3) > 100
    assert spent(replace(job, trial=2), DoReMi(clip=False)).extra == first.extra
    more = job_of(156, weights=(1 / 3,) * 3, reference=model_folder("llama"), trial=3)
    second = spent(more, DoReMi())
    drawn = foresee(sampler_of(stores, more)).drawn
    assert second.tokens == sum(d.tokens for d in drawn)
    assert second.extra == round(second.tokens / 3)


def test_what_is_known_changes_no_bill(setup_of, job_of, keep_points, tmp_path):
    """A sampler that moves, so that more is foreseen than is drawn; before and after another."""
    both = MoS(every=3, rewards=("transferability", "difficulty"))
    needs = frozenset({Signal.REFERENCE_LOSS})
    moving = Scripted(needs, Signal.REFERENCE_LOSS, "sampling", 0.5)
    job = job_of(320)
    job = replace(job, reference=setup_of().models["target"])
    jobs = [steered(replace(job, trial=n), m) for n, m in enumerate((both, moving, DoReMi()), 1)]
    bills = []
    for order in ((0, 1, 2), (2, 1, 0)):
        setup = replace(setup_of(warmup_steps=0), output_dir=str(tmp_path / f"order-{order[0]}"))
        found = {n: Worker(setup).run(jobs[n], keep_points).spent.extra for n in order}
        bills.append([found[n] for n in range(3)])
    assert bills[0] == bills[1]
    assert min(bills[0]) > 0


def test_rows_that_come_twice_pass_once(spent, job_of, model_folder, stores):
    """600 rows of cats are three epochs of their 200."""
    job = job_of(600, weights=(0.0, 0.0, 1.0), reference=model_folder("llama"))
    found = spent(job, DoReMi(sampling=None))
    table = open_table(stores["cats"]["train"])
    assert found.extra == round(int(table.tokens.sum()) / 3)
    assert found.tokens == 3 * int(table.tokens.sum())


@pytest.mark.parametrize("every", [1, 4])
def test_a_look_before_the_step_costs_a_forward_pass(every, spent, job_of, model_folder):
    job = job_of(160, reference=model_folder("llama"))
    without = spent(job, DoReMi(sampling=None)).extra
    found = spent(replace(job, trial=2), DoReMi(same_step=True, every=every, sampling=None))
    looks = 3 * (found.extra - without) / found.tokens
    if every == 1:
        assert looks == pytest.approx(1, abs=1e-3)
    else:
        assert 0.2 < looks < 0.3  # 5 of 20 steps


def test_gradients_apart_cost_nothing_and_targets_whole_steps(spent, job_of, stores):
    assert spent(job_of(80), DoGE()).extra == 0
    assert spent(job_of(80), DoGE(same_step=False)).extra == 0
    job = held_out(job_of(80), "cats")
    # Ten steps, each with as many rows of cats as it has of ants or of bees on average: 4.
    rows = Aside(sampler_of(stores, job).streams[2], 2).take(4 * 10)
    assert spent(job, DoGE(target="cats")).extra == tokens_of(rows)
    # Asked every fourth step, the target's gradient is taken in two.
    seldom = spent(job, DoGE(target="cats", every=4)).extra
    assert seldom == tokens_of(rows[:8])


def test_probes_cost_a_forward_pass_and_the_base_another(spent, job_of, stores):
    """20 steps, an update after every third: six of them, each on 16 rows a domain."""
    job = job_of(160)
    items = probes(stores, job, 6)
    plain = spent(job, MoS(every=3))
    assert plain.extra == round(tokens_of(items) / 3)
    both = MoS(every=3, rewards=("transferability", "difficulty"))
    found = spent(replace(job, trial=2), both).extra
    # 96 rows of each domain, none of them twice: all that is to come is foreseen at the first.
    assert len({(item.domain, item.rows) for item in items}) == 3 * 96
    assert found == round(2 * tokens_of(items) / 3)
    # Then the base's losses are known, and cost the same.
    assert spent(replace(job, trial=3), both).extra == found


def test_a_resumed_training_has_spent_what_a_whole_one_has(
    setup_of, job_of, keep_points, tmp_path, model_folder
):
    setup = setup_of(save_steps=4)
    base = MoS(every=3, rewards=("difficulty",), relax=0.5)
    methods = (DoReMi(same_step=True), DoGE(target="cats"), MoS(every=3), base)
    for number, method in enumerate(methods, 1):
        job = job_of(160, reference=model_folder("llama"), trial=number)
        job = steered(held_out(job, "cats") if method.targets else job, method)
        whole = replace(setup, output_dir=str(tmp_path / f"straight-{number}"))
        straight = Worker(whole).run(job, keep_points)

        def die(point):
            raise KeyboardInterrupt

        dying = replace(setup, training=setup.training.model_copy(update={"eval_steps": 10}))
        plain = replace(dying, output_dir=str(tmp_path / f"resumed-{number}"))
        with pytest.raises(KeyboardInterrupt):
            Worker(plain).run(job, die)
        resumed = Worker(plain).run(replace(job, attempt=1), keep_points)
        assert resumed.spent.extra == straight.spent.extra > 0
        assert resumed.spent.tokens == straight.spent.tokens


def test_rows_of_an_earlier_delivery_are_not_charged_again(
    setup_of, job_of, keep_points, model_folder
):
    """Nine passes over cats in two stages; what dies at step 60 goes on from step 56, in pass 3."""
    setup = setup_of(save_steps=8, eval_steps=60)
    job = job_of(reference=model_folder("llama"))
    (stage,) = job_of(900, weights=(0.0, 0.0, 1.0)).stages
    job = steered(replace(job, stages=(stage, stage)), DoReMi(sampling=None))
    table = open_table(setup.stores["cats"]["train"])

    def die(point):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Worker(setup).run(job, die)
    resumed = Worker(setup).run(replace(job, attempt=1), keep_points)
    assert resumed.status is Status.DONE, resumed.error
    assert resumed.spent.rows == 1800
    assert resumed.spent.extra == round(int(table.tokens.sum()) / 3)


def test_a_branch_does_not_pay_for_what_its_trunk_has_looked_at(setup_of, job_of, keep_points):
    setup, job = setup_of(), job_of()
    stages = tuple(Stage(job.stages[0].mixture, Budget(n)) for n in (96, 96))
    job = steered(replace(job, stages=stages), MoS(every=4))
    whole = Worker(setup).run(replace(job, trial=1), keep_points)
    trunk = Worker(setup).run(replace(job, trial=2, turn=True), keep_points)
    at = trunk.diagnostics["turn"]
    branch = Worker(setup).run(replace(job, trial=3, branch=at), keep_points)
    assert branch.status is Status.DONE, branch.error
    assert trunk.spent.extra == whole.spent.extra
    # Each stage has 12 steps and three updates, the second on the rows that the first began with.
    assert branch.spent.extra * 2 == pytest.approx(whole.spent.extra, abs=2)
    # What was learned in the shared stage is known all the same.
    assert branch.diagnostics["reweighter"] == whole.diagnostics["reweighter"]
    assert branch.mean_mixture == whole.mean_mixture
    assert np.isclose(sum(branch.mean_mixture.weights), 1.0)
