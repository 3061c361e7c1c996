"""Signals against transformers and autograd, on one worker."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scripted import Scripted, held_out, steered
from tiny_tables import DOMAINS
from torch.optim.optimizer import register_optimizer_step_pre_hook

from raymix.core.job import Status
from raymix.core.signals import Signal
from raymix.data.aside import UNTRAINED, Aside
from raymix.data.batches import Batches
from raymix.data.sampler import Sampler
from raymix.data.store import open_table
from raymix.train.probe import ROWS, similarity
from raymix.train.worker import Worker

EXCESS = frozenset({Signal.EXCESS_LOSS, Signal.REFERENCE_LOSS, Signal.CLIPPED_EXCESS_LOSS})


def weights(worker):
    model = worker._models["target", False, False]
    return {n: p.detach().clone() for n, p in model.parameters.items()}


def first_items(setup, job, size=8):
    tables = [open_table(setup.stores[name]["train"]) for name in DOMAINS]
    return Batches(Sampler(tables, job.space, job.stages[0], job.seed), size).next_step(), tables


def token_losses(model, tables, item):
    """Losses of an item's judged tokens as transformers computes them: one row at a time."""
    found = []
    for row in item.rows:
        ids, mask = (torch.from_numpy(a.astype(np.int64)) for a in tables[item.domain].row(row))
        logits = model.module(input_ids=ids[None]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        found.append(losses[mask[1:] > 0])
    return torch.cat(found)


def by_domain(model, tables, items):
    """Judged tokens' losses of each domain [K], in the order of the items."""
    return [
        torch.cat([token_losses(model, tables, i) for i in items if i.domain == d])
        for d in range(len(tables))
    ]


@pytest.mark.parametrize("packing", [False, True])
def test_excess_losses_are_those_of_the_tokens(
    packing, setup_of, job_of, heard, reference, keep_points
):
    setup = setup_of(warmup_steps=0, packing=packing, per_device_train_batch_size=8)
    worker = Worker(setup)
    job = job_of(400 if packing else 8, reference=reference)
    needs = EXCESS | {Signal.DOMAIN_LOSS}
    result, (first, *_) = heard(worker, job, Scripted(needs=needs))
    model = worker._models["target", False, False]
    sampler = Sampler(
        [open_table(setup.stores[n]["train"]) for n in DOMAINS],
        job.space,
        job.stages[0],
        job.seed,
        64 if packing else None,
    )
    items, tables = Batches(sampler, 8).next_step(), [s.table for s in sampler.streams]
    worker.run(job_of(stages=(), start=reference), keep_points)
    with torch.no_grad():
        theirs = by_domain(model, tables, items)
        model.reset(0)
        ours = by_domain(model, tables, items)
    excess = [a - b for a, b in zip(ours, theirs, strict=True)]
    expected = {
        "domain_loss": [x.mean() for x in ours],
        "reference_loss": [x.mean() for x in theirs],
        "excess_loss": [x.mean() for x in excess],
        "clipped_excess_loss": [x.clamp(min=0).mean() for x in excess],
    }
    assert max(float((x < 0).float().mean()) for x in excess) > 0.05
    for name, values in expected.items():
        assert first[name] == pytest.approx([float(v) for v in values], abs=2e-5), name
    assert first["tokens"] == [len(x) for x in ours]
    metrics = result.curve[-1].metrics
    assert {f"reweight/{s}/ants" for s in EXCESS} <= set(metrics)
    assert "reweight/domain_loss/ants" not in metrics


def test_the_reference_may_be_a_model_in_hugging_face_form(setup_of, job_of, heard, model_folder):
    """The base as its own reference: no excess in the first step."""
    setup = setup_of(warmup_steps=0)
    job = job_of(32, reference=model_folder("llama"))
    _, told = heard(Worker(setup), job, Scripted(needs=EXCESS))
    assert told[0]["excess_loss"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert min(abs(np.array(told[3]["excess_loss"]))) > 1e-4


@pytest.mark.parametrize(
    "training", [{}, {"packing": True}, {"use_peft": True, "lora_dropout": 0.2}]
)
def test_listening_changes_nothing(training, setup_of, job_of, keep_points, tmp_path, model_folder):
    """Bit for bit, dropout included: with all that can be heard without taking gradients apart."""
    setup = setup_of(eval_steps=4, per_device_train_batch_size=4, **training)
    needs = frozenset(Signal) - {Signal.GRADIENT_GRAM}
    plain, listening = Worker(setup), Worker(replace(setup, output_dir=str(tmp_path / "2")))
    job = job_of(160, start=None, reference=model_folder("llama"))
    one = plain.run(job, keep_points)
    two = listening.run(steered(job, Scripted(needs=needs, every=3)), keep_points)
    assert two.status is Status.DONE, two.error
    left, right = (next(iter(w._models.values())).parameters for w in (plain, listening))
    assert all(torch.equal(left[n], right[n]) for n in left)
    for ours, theirs in zip(one.curve, two.curve, strict=True):
        told = {k: v for k, v in theirs.metrics.items() if not k.startswith("reweight/")}
        assert ours.metrics == told
    assert one.realised == two.realised


def gradients_by_hand(model, tables, items, count=3):
    """Flat gradient of each domain's mean loss [K][D]; None for an absent one."""
    model.reset(0)
    found = []
    for d in range(count):
        model.module.zero_grad()
        own = [token_losses(model, tables, item) for item in items if item.domain == d]
        if own:
            torch.cat(own).mean().backward()
            found.append(torch.cat([p.grad.flatten().clone() for p in model.parameters.values()]))
        else:
            found.append(None)
    model.module.zero_grad()
    return found


class Spy:
    """Keeps the flat gradients that optimizer steps are taken by."""

    def __init__(self, worker):
        self.worker, self.seen = worker, []

    def __enter__(self):
        def look(optimizer, *_):
            parameters = self.worker._models["target", False, False].parameters.values()
            self.seen.append(torch.cat([p.grad.flatten().clone() for p in parameters]))

        self.handle = register_optimizer_step_pre_hook(look)
        return self.seen

    def __exit__(self, *_):
        self.handle.remove()


CUTS = [(8, 1, False), (2, 4, False), (1, 8, False), (8, 1, True)]


@pytest.mark.parametrize(("batch", "accumulation", "offload"), CUTS)
def test_the_gram_matrix_and_the_weighted_sum_are_those_of_autograd(
    batch, accumulation, offload, setup_of, job_of, heard
):
    setup = setup_of(
        warmup_steps=0,
        max_grad_norm=0,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        offload_gradients=offload,
    )
    worker, job = Worker(setup), job_of(8)
    scripted = Scripted(
        frozenset({Signal.GRADIENT_GRAM}),
        Signal.GRADIENT_GRAM,
        "gradient_weights",
        rate=0.7,
        same_step=True,
    )
    with Spy(worker) as seen:
        result, (first,) = heard(worker, job, scripted)
    items, tables = first_items(setup, job)
    found = torch.stack(gradients_by_hand(worker._models["target", False, False], tables, items))
    gram = (found @ found.T).double().numpy()
    np.testing.assert_allclose(first["gradient_gram"], gram, rtol=1e-4, atol=1e-6)
    alpha = np.exp(0.7 * gram.sum(axis=1))
    alpha /= alpha.sum()
    assert alpha.max() - alpha.min() > 0.01
    expected = (torch.tensor(alpha, dtype=torch.float32)[:, None] * found).sum(dim=0)
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=1e-4)
    assert result.mean_mixture.array() == pytest.approx(alpha, abs=1e-5)
    rows = gram.mean(axis=1)
    told = [result.metrics[f"reweight/gradient_gram/{n}"] for n in DOMAINS]
    assert told == pytest.approx(rows, rel=1e-4)
    assert [result.metrics[f"reweight/weight/{n}"] for n in DOMAINS] == pytest.approx(
        alpha, abs=1e-5
    )


def test_without_weights_the_parts_add_up_to_the_plain_gradient(setup_of, job_of, heard):
    setup = setup_of(warmup_steps=0, max_grad_norm=0)
    worker = Worker(setup)
    with Spy(worker) as seen:
        worker.run(job_of(16), lambda point: True)
        heard(worker, job_of(16), Scripted(frozenset({Signal.GRADIENT_GRAM})))
    torch.testing.assert_close(seen[0], seen[2], atol=1e-7, rtol=1e-5)


def test_absent_domains_are_nan_and_add_nothing(setup_of, job_of, heard):
    """Only ants are drawn: the gradient is ants' weight times theirs."""
    setup = setup_of(warmup_steps=0, max_grad_norm=0)
    worker, job = Worker(setup), job_of(8, weights=(1.0, 0.0, 0.0))
    items, tables = first_items(setup, job)
    needs = frozenset({Signal.GRADIENT_GRAM, Signal.DOMAIN_LOSS, Signal.HIDDEN_SIMILARITY})
    both = []
    for kind in ("gradient_weights", "loss_weights"):
        with Spy(worker) as seen:
            # The first decision is uniform, the state unmoved: a third for each.
            asked = needs if kind == "gradient_weights" else frozenset({Signal.DOMAIN_LOSS})
            _, (first,) = heard(worker, job, Scripted(asked, moves=kind))
        both.append(seen[0])
        if kind == "gradient_weights":
            gram = np.array(first["gradient_gram"])
    expected = gradients_by_hand(worker._models["target", False, False], tables, items)[0]
    for gradient in both:
        torch.testing.assert_close(gradient, expected / 3, atol=1e-6, rtol=1e-4)
    assert np.isfinite(gram).tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert np.isnan(first["domain_loss"]).tolist() == [False, True, True]


@pytest.mark.parametrize("cut", [(8, 1), (2, 4)])
def test_same_step_weights_act_on_the_losses_they_came_from(cut, setup_of, job_of, heard):
    batch, accumulation = cut
    setup = setup_of(
        warmup_steps=0,
        max_grad_norm=0,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    worker, job = Worker(setup), job_of(16)
    scripted = Scripted(
        frozenset({Signal.DOMAIN_LOSS}), Signal.DOMAIN_LOSS, "loss_weights", same_step=True
    )
    with Spy(worker) as seen:
        result, told = heard(worker, job, scripted)
    items, tables = first_items(setup, job)
    model = worker._models["target", False, False]
    found = gradients_by_hand(model, tables, items)
    with torch.no_grad():
        losses = [float(x.mean()) for x in by_domain(model, tables, items)]
    assert told[0]["domain_loss"] == pytest.approx(losses, abs=1e-5)
    alpha = np.exp(losses) / np.exp(losses).sum()
    expected = sum(float(a) * g for a, g in zip(alpha, found, strict=True))
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=1e-4)
    assert len(told) == result.spent.steps == 2


def test_targets_are_measured_and_never_trained_on(setup_of, job_of, heard, keep_points):
    setup = setup_of(warmup_steps=0, max_grad_norm=0)
    worker, job = Worker(setup), held_out(job_of(32), "cats")
    needs = frozenset({Signal.GRADIENT_GRAM, Signal.DOMAIN_LOSS, Signal.HIDDEN_SIMILARITY})
    with Spy(worker) as seen:
        result, told = heard(worker, job, Scripted(needs, targets=("cats",)))
        plain = worker.run(job, keep_points)
    first = told[0]
    gram = np.array(first["gradient_gram"])
    assert np.isfinite(gram).all()
    items, tables = first_items(setup, job)
    model = worker._models["target", False, False]
    stream = Sampler(tables, job.space, job.stages[0], job.seed).streams[2]
    rows = Aside(stream, 2).take(4)  # 8 items a step over two trained domains
    found = gradients_by_hand(model, tables, [*items, *rows])
    expected = (torch.stack(found) @ torch.stack(found).T).numpy()
    np.testing.assert_allclose(gram, expected, rtol=1e-4, atol=1e-6)
    assert first["tokens"][2] == sum(item.loss_tokens for item in rows)
    assert first["domain_loss"][2] > 0
    assert np.isfinite(first["hidden_similarity"]).all()
    # Training does not see them: the same steps (up to how a gradient is summed), the same rows.
    torch.testing.assert_close(seen[0], seen[4], atol=1e-7, rtol=1e-5)
    assert result.realised == plain.realised
    assert result.realised[2].rows == 0
    assert "train/cats/loss" not in result.metrics
    # The next measurement has other rows.
    assert told[1]["tokens"][2] == sum(i.loss_tokens for i in Aside(stream, 2).take(8)[4:])


@pytest.mark.parametrize("packing", [False, True])
def test_probes_are_those_of_transformers(packing, setup_of, job_of, heard):
    """Hidden states are pooled over a row's own tokens; ratios are means over rows."""
    setup = setup_of(warmup_steps=0, packing=packing, per_device_train_batch_size=4)
    worker = Worker(setup)
    job = job_of(16)
    needs = frozenset({Signal.HIDDEN_SIMILARITY, Signal.PERPLEXITY_RATIO})
    # One update, at the end: 16 rows are 4 batches of 4 rows, or 1 of 4 packs of 64 tokens.
    result, told = heard(worker, job, Scripted(needs, every=1 if packing else 4))
    assert len(told) == 1
    after = weights(worker)
    model = worker._models["target", False, False]
    tables = [open_table(setup.stores[name]["train"]) for name in DOMAINS]
    streams = Sampler(tables, job.space, job.stages[0], job.seed).streams
    probes = [Aside(s, d, UNTRAINED).take(ROWS) for d, s in enumerate(streams)]
    means, now, base = [], [], []
    with torch.no_grad():
        for name, p in model.parameters.items():
            p.copy_(after[name])
        for own in probes:
            states = []
            for item in own:
                ids, _ = tables[item.domain].row(item.rows[0])
                out = model.module(
                    input_ids=torch.from_numpy(ids.astype(np.int64))[None],
                    output_hidden_states=True,
                )
                states.append(out.hidden_states[-1][0].mean(dim=0))
            means.append(torch.stack(states).mean(dim=0))
            now.append([float(token_losses(model, tables, item).mean()) for item in own])
        model.reset(0)
        for own in probes:
            base.append([float(token_losses(model, tables, item).mean()) for item in own])
    unit = torch.nn.functional.normalize(torch.stack(means), dim=1)
    np.testing.assert_allclose(told[-1]["hidden_similarity"], unit @ unit.T, atol=1e-5)
    ratios = np.exp(np.array(now) - np.array(base)).mean(axis=1)
    assert told[-1]["perplexity_ratio"] == pytest.approx(ratios, abs=1e-5)
    assert abs(ratios - 1).min() > 1e-4
    assert result.metrics["reweight/perplexity_ratio/bees"] == told[-1]["perplexity_ratio"][1]
    rows = np.mean(told[-1]["hidden_similarity"], axis=1)
    assert result.metrics["reweight/hidden_similarity/bees"] == pytest.approx(rows[1])


def test_the_same_data_is_similar_and_nothing_is_nan():
    states = np.array([[1.0, 2.0], [2.0, 4.0], [-2.0, 1.0], [0.0, 0.0]])
    found = similarity(states)
    np.testing.assert_allclose(found[:3, :3], [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-12)
    assert np.isnan(found[3]).all()


def test_perplexities_are_over_the_weights_that_the_job_starts_from(
    setup_of, job_of, heard, reference
):
    setup = setup_of(learning_rate=1e-12)
    needs = frozenset({Signal.PERPLEXITY_RATIO})
    _, told = heard(Worker(setup), job_of(16, start=reference), Scripted(needs))
    assert told[0]["perplexity_ratio"] == pytest.approx([1, 1, 1], abs=1e-5)


def test_one_domain(setup_of, job_of, heard):
    job = job_of(16)
    space = replace(
        job.space,
        domains=job.space.domains[:1],
        prior=replace(job.space.prior, names=("ants",), weights=(1.0,)),
        lower=(0.0,),
        upper=(1.0,),
        max_epochs=(float("inf"),),
    )
    stage = replace(job.stages[0], mixture=space.prior)
    needs = frozenset({Signal.GRADIENT_GRAM, Signal.HIDDEN_SIMILARITY})
    scripted = Scripted(needs, Signal.GRADIENT_GRAM, "gradient_weights", same_step=True)
    result, told = heard(Worker(setup_of()), replace(job, space=space, stages=(stage,)), scripted)
    assert result.mean_mixture.weights == (1.0,)
    assert told[0]["hidden_similarity"] == [[pytest.approx(1.0)]]
