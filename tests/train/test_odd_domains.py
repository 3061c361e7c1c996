"""Every reweighter with one domain, with one that runs dry, and with two that are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripted import steered
from tiny_tables import DOMAINS

from raymix.core.job import Stage, Status, TrainJob
from raymix.core.mixture import Budget, Mixture
from raymix.data.sampler import Sampler
from raymix.data.store import open_table
from raymix.reweight.doge import DoGE
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.train.worker import Worker

ALL = ("transferability", "difficulty", "trajectory")
METHODS = {
    "doremi": DoReMi(),
    "doremi-own": DoReMi(clip=False, sampling=None, same_step=True),
    "doge": DoGE(mu=0.01),
    "doge-later": DoGE(mu=0.01, sampling=None, same_step=False, every=2),
    "mos": MoS(every=3, rewards=ALL, relax=0.5),
    "mos-pg": MoS("pg", every=3, lr=1e-2, rewards=("difficulty",)),
}
TARGETED = {"doge": DoGE(target="cats"), "mospec": MoS(every=3, target="cats", relax=0.5)}


def only(job: TrainJob, *names: str, upper: tuple[float, ...] | None = None) -> TrainJob:
    """`job` on some of the domains, evenly on those that may be trained on."""
    keep = [job.space.names.index(name) for name in names]
    most = upper or (1.0,) * len(names)
    mixture = Mixture.normalised(names, most)
    space = replace(
        job.space,
        domains=tuple(job.space.domains[i] for i in keep),
        prior=mixture,
        lower=(0.0,) * len(names),
        upper=most,
        max_epochs=tuple(job.space.max_epochs[i] for i in keep),
    )
    stages = tuple(replace(stage, mixture=mixture) for stage in job.stages)
    return replace(job, space=space, stages=stages)


@pytest.mark.parametrize("name", METHODS)
def test_one_domain_has_all_and_trains_as_without(
    name, setup_of, job_of, keep_points, model_folder
):
    job = only(job_of(80, reference=model_folder("llama")), "ants")
    plain = Worker(setup_of(eval_steps=4)).run(job, keep_points)
    result = Worker(setup_of(eval_steps=4)).run(steered(job, METHODS[name]), keep_points)
    assert result.status is Status.DONE, result.error
    assert result.mean_mixture.weights == (1.0,)
    assert result.realised == plain.realised
    for ours, theirs in zip(result.curve, plain.curve, strict=True):
        assert ours.metrics["mix/ants/share"] == 1.0
        assert ours.metrics.get("reweight/weight/ants", 1.0) == 1.0
        for key, value in theirs.metrics.items():
            assert ours.metrics[key] == pytest.approx(value, abs=1e-5), key


@pytest.mark.parametrize("name", TARGETED)
def test_one_domain_towards_a_target(name, setup_of, job_of, keep_points):
    job = only(job_of(80), "ants", "cats", upper=(1.0, 0.0))
    result = Worker(setup_of()).run(steered(job, TARGETED[name]), keep_points)
    assert result.status is Status.DONE, result.error
    assert result.mean_mixture.weights == (1.0, 0.0)
    assert result.realised[1].rows == 0


# ---- a domain that its epoch cap exhausts ----

FIRST, EVEN = (0.3, 0.2, 0.5), (0.5, 0.5, 0.0)


def running_dry(job, method):
    """Stages of 25 steps: the first draws all 100 rows of cats that the cap allows."""
    space = replace(job.space, budget=Budget(400), max_epochs=(np.inf, np.inf, 0.5))
    one, two = (Stage(Mixture(DOMAINS, shares), Budget(200)) for shares in (FIRST, EVEN))
    both = steered(replace(job, space=space, stages=(two,)), method).stages
    return replace(job, space=space, stages=(one, *both))


def in_force(result, key, same_step, first):
    """The numbers `key` of each of the second stage's 25 steps [25, K]."""
    told = [[p.metrics[key.format(n)] for n in DOMAINS] for p in result.curve[25:]]
    return np.array(told if same_step else [first, *told[:-1]])


@pytest.mark.parametrize("name", METHODS)
def test_the_others_go_on_when_a_domain_is_exhausted(
    name, setup_of, job_of, keep_points, model_folder
):
    method, job = METHODS[name], job_of(reference=model_folder("llama"))
    setup = setup_of(eval_steps=1, eval_rows=2)
    result = Worker(setup).run(running_dry(job, method), keep_points)
    assert result.status is Status.DONE, result.error
    assert result.spent.steps == 50
    assert result.realised[2].rows == 100
    assert sum(drawn.rows for drawn in result.realised) == 400
    if isinstance(method, MoS):
        # A stage of several draws its own domains only: what the policy wants of cats goes to them.
        begun, _ = method.init(running_dry(job, method).space, 25, 3)
        shares = in_force(result, "mix/{}/share", False, begun.sampling.weights)
        assert shares[0, 2] > 0.01
        assert shares[1:, 2].max() == 0.0
        shares[:, 2] = 0.0
        shares /= shares.sum(axis=1, keepdims=True)
        wanted = 25 * np.array(FIRST) + shares.sum(axis=0)
        realised = [drawn.share for drawn in result.realised]
        assert realised == pytest.approx(result.mean_mixture.array(), abs=0.01)
    else:
        # Its weight stays and does nothing: the mean has it where it acted, which is nowhere.
        weights = in_force(result, "reweight/weight/{}", method.same_step, (1 / 3,) * 3)
        assert weights[:, 2].min() > 0.05
        wanted = 25 * np.array(FIRST) + weights.sum(axis=0) * [1, 1, 0]
    np.testing.assert_allclose(result.mean_mixture.array(), wanted / wanted.sum(), atol=1e-9)


def test_the_mean_of_what_was_drawn_can_be_drawn(setup_of, job_of, keep_points):
    """A mean that asks for more than the caps leave would be refused as a static mixture."""
    job = running_dry(job_of(), METHODS["mos"])
    mean = Worker(setup_of()).run(job, keep_points).mean_mixture
    static = replace(job, stages=(Stage(mean, Budget(400)),))
    result = Worker(setup_of()).run(static, keep_points)
    assert result.status is Status.DONE, result.error


# ---- two domains with the same data ----


@pytest.mark.parametrize("name", METHODS)
def test_two_domains_of_the_same_data_are_treated_alike(
    name, setup_of, job_of, keep_points, stores, model_folder
):
    """Bees are ants by another name; rows come in other orders, so all is alike up to sampling."""
    twins = {**stores, "bees": stores["ants"]}
    setup = replace(setup_of(per_device_train_batch_size=24), stores=twins)
    job = job_of(40 * 24, weights=(1 / 3,) * 3, reference=model_folder("llama"))
    ants, _, cats = job.space.domains
    bees = replace(ants, name="bees")
    space = replace(job.space, domains=(ants, bees, cats), budget=Budget(40 * 24))
    result = Worker(setup).run(steered(replace(job, space=space), METHODS[name]), keep_points)
    assert result.status is Status.DONE, result.error
    mean = result.mean_mixture.array()
    assert mean[0] == pytest.approx(mean[1], rel=0.1), mean
    tables = [open_table(twins[n]["train"]) for n in DOMAINS]
    orders = [s.order(0) for s in Sampler(tables, space, job.stages[0], 3).streams[:2]]
    assert sorted(orders[0]) == sorted(orders[1])
    seen = [d.unique_rows for d in result.realised]
    assert seen[0] == pytest.approx(seen[1], rel=0.1)
