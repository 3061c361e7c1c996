"""Soft prompts: who moves, where they stand, and what they do not touch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from staged import ANTS, Watch, promot, same, stage, staged, values
from transformers import AutoModelForCausalLM

from raymix.core.job import Status
from raymix.core.mixture import Unit
from raymix.data.batches import collate, item_of
from raymix.data.store import open_table
from raymix.train.config import Training
from raymix.train.measure import micro, passes
from raymix.train.model import core
from raymix.train.parts import Part
from raymix.train.pretrained import load
from raymix.train.shard import World
from raymix.train.use import uses
from raymix.train.worker import Worker

KIND = ("target", False, True)


@pytest.fixture
def ran(setup_of):
    """Runs a job; gives the result, the points and the parameters at each point."""

    def run(job, **training):
        worker = Worker(setup_of(**{"num_virtual_tokens": 5, **training}))
        watch = Watch(worker, KIND)
        result = worker.run(job, watch)
        assert result.status is Status.DONE, result.error
        return result, watch, worker._models[KIND]

    return run


@pytest.mark.parametrize("optimized", [{}, {"weight_decay": 0.1, "gradient_checkpointing": True}])
def test_each_stage_of_promot_moves_its_own_part(ran, job_of, optimized):
    result, watch, model = ran(promot(job_of()), eval_steps=3, **optimized)
    model.reset(job_of().seed)
    start = {part: values(model, part) for part in (Part.WEIGHTS, Part.PROMPT)}
    first = [v for p, v in zip(watch.points, watch.values, strict=True) if p.stage == 0]
    second = [v for p, v in zip(watch.points, watch.values, strict=True) if p.stage == 1]
    assert len(first) >= 2
    assert len(second) >= 2
    for found in first:
        assert same(found[Part.WEIGHTS], start[Part.WEIGHTS])
        assert not same(found[Part.PROMPT], start[Part.PROMPT])
    for found in second:
        assert same(found[Part.PROMPT], first[-1][Part.PROMPT])
        assert not same(found[Part.WEIGHTS], start[Part.WEIGHTS])
    losses = [p.metrics["eval/ants/loss"] for p in result.curve if p.stage == 0]
    assert losses[-1] < losses[0]
    bare = {p.metrics["eval/bees/loss"] for p in result.curve if p.stage == 0}
    assert len(bare) == 1  # no slot before its rows, and the model has not moved


@pytest.mark.parametrize("kind", ["joint", "frozen"])
def test_joint_training_and_an_unfrozen_prompt(ran, job_of, kind):
    job = job_of()
    stages = [stage(job, "joint", 32, carriers=("ants",))]
    if kind == "frozen":
        stages = [stage(job, "prompt", 24, ANTS, carriers=("ants",)), *stages]
    _, watch, model = ran(staged(job, *stages))
    before = watch.values[0] if kind == "frozen" else None
    after = watch.values[-1]
    model.reset(job.seed)
    for part in (Part.WEIGHTS, Part.PROMPT):
        start = before[part] if before else values(model, part)
        assert not same(start, after[part])


def test_the_prompt_has_its_own_learning_rate_and_no_decay(ran, job_of):
    """Adam's first step is the learning rate in every number whose gradient is not tiny."""
    job = job_of()
    one = staged(job, stage(job, "joint", 8))
    settings = {"warmup_steps": 0, "lr_scheduler_type": "constant", "adam_epsilon": 1e-30}
    result, watch, model = ran(
        one, prompt_learning_rate=0.25, weight_decay=0.5, max_grad_norm=0, **settings
    )
    assert result.spent.steps == 1
    assert result.metrics["train/lr"] == 3e-3
    model.reset(job.seed)
    moved = watch.values[-1][Part.PROMPT]["soft_prompt.weight"]
    step = (moved - values(model, Part.PROMPT)["soft_prompt.weight"]).abs()
    torch.testing.assert_close(step, torch.full_like(step, 0.25), rtol=1e-5, atol=1e-6)


def test_slots_stand_once_before_each_row_of_a_carrier(stores):
    tables = [open_table(stores[name]["train"]) for name in ("ants", "bees")]
    items = [
        item_of(0, (3, 4), tables[0]),
        item_of(1, (0,), tables[1]),
        item_of(0, (1,), tables[0]),
    ]
    batch = collate(items, tables, slots=(4, 0))
    lengths = [[int(tables[i.domain].tokens[row]) for row in i.rows] for i in items]
    (a, b), (c,), (d,) = lengths
    width = a + b + 8
    first, second, last = np.arange(4), np.arange(4) + 4 + a, 2 * width + np.arange(4)
    assert batch.slots.tolist() == [*first, *second, *last]
    ids = [*[0] * 4, *tables[0].row(3)[0], *[0] * 4, *tables[0].row(4)[0]]
    assert batch.input_ids[0].tolist() == ids
    assert batch.position_ids[0].tolist() == [*range(4 + a), *range(4 + b)]
    assert batch.position_ids[1].tolist() == [*range(c), *range(width - c)]
    assert batch.position_ids[2].tolist() == [*range(d + 4), *range(width - d - 4)]
    plain = collate(items, tables)
    judged = [batch.labels.flatten(), plain.labels.flatten()]
    judged = [labels[labels >= 0].tolist() for labels in judged]
    assert judged[0] == judged[1]
    assert (batch.labels.flatten()[batch.slots] == -100).all()
    assert plain.slots.size == 0


def test_passes_pad_by_what_rows_are_with_their_slots(stores):
    tables = [open_table(stores[name]["train"]) for name in ("ants", "bees")]
    items = [item_of(d, (row,), tables[d]) for d in (0, 1) for row in range(6)]
    parts = passes(items, 6, 1, 0, slots=(90, 0))
    assert all(len({item.domain for item in part}) == 1 for part in parts)
    assert {item.domain for item in parts[0]} == {0}


def _loaded(folder, **training):
    settings = Training(num_virtual_tokens=4, max_length=64, **training)
    return load(folder, settings, World(), lora=False, trust=False, prompt=True)


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3", "qwen3", "gpt2"])
def test_rows_of_a_pack_see_only_their_own_prompt(family, model_folder, stores):
    table = open_table(stores["ants"]["train"])
    model = _loaded(model_folder(family), packing=family != "gpt2")
    model.module.eval()
    if family == "gpt2" and not model.isolates():
        pytest.skip("this family does not pack")

    def losses(*items):
        scale = np.ones(1, np.float32)
        return model.losses(micro(items, [table], scale, torch.device("cpu"), slots=(4,)))

    rows = [item_of(0, (row,), table) for row in (5, 6, 7)]
    packed = losses(item_of(0, (5, 6, 7), table))
    alone = torch.cat([losses(row) for row in rows])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    together = losses(*rows)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    # A change of one row reaches no other row of the pack.
    other = losses(item_of(0, (8, 6, 7), table))
    last = sum(row.loss_tokens for row in rows[1:])
    torch.testing.assert_close(other[-last:], packed[-last:], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3", "qwen3", "gpt2"])
def test_losses_are_those_of_pefts_own_forward(family, model_folder, stores):
    folder, table = model_folder(family), open_table(stores["bees"]["train"])
    model = _loaded(folder)
    model.module.double().eval()
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(folder).double(), config).eval()
    weight = model.named(Part.PROMPT)["soft_prompt.weight"]
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(weight)
        for row in range(4):
            item = item_of(0, (row,), table)
            scale = np.ones(1, np.float32)
            batch = micro([item], [table], scale, torch.device("cpu"), slots=(4,))
            ids, mask = table.row(row)
            ids = torch.from_numpy(ids.astype(np.int64))[None]
            logits = theirs.double()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            assert logits.shape[1] == 4 + ids.shape[1]
            chosen = logits[0, 4:-1][torch.from_numpy(mask[1:].astype(bool))]
            expected = torch.nn.functional.cross_entropy(
                chosen.float(), batch.targets, reduction="none"
            )
            torch.testing.assert_close(model.losses(batch), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("init", ["random", "sample_vocab", "text"])
def test_the_start_is_drawn_from_the_seed_as_peft_draws_it(init, model_folder):
    text = {"prompt_tuning_init_text": "w7 w9"} if init == "text" else {}
    model = _loaded(model_folder("llama"), prompt_tuning_init=init, **text)
    state = torch.get_rng_state()
    drawn = []
    for seed in (5, 6, 5):
        model.reset(seed)
        drawn.append(values(model, Part.PROMPT)["soft_prompt.weight"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0], drawn[1]) is (init == "text")
    table = core(model.module).get_input_embeddings().weight
    if init == "random":
        assert 0.7 < float(drawn[0].std()) < 1.3
    else:
        found = (drawn[0][:, None] == table[None]).all(-1).nonzero()
        assert len(found) == 4
        if init == "text":
            assert found[:, 1].tolist() == [7, 9, 7, 9]


def test_a_bare_domain_does_not_depend_on_the_prompt(ran, job_of, setup_of):
    job = job_of(test=True)
    frozen = replace(job, stages=(stage(job, "joint", 32, (0.0, 0.6, 0.4), carriers=("ants",)),))
    one, watch, _ = ran(frozen, prompt_learning_rate=0.5, prompt_tuning_init="random")
    two, _, _ = ran(frozen, prompt_learning_rate=0.01)
    plain = Worker(setup_of()).run(
        staged(job, stage(job, "weights", 32, (0.0, 0.6, 0.4))), lambda point: True
    )
    for split in ("eval", "test"):
        for name in ("bees", "cats"):
            key = f"{split}/{name}/loss"
            assert one.metrics[key] == two.metrics[key]
            assert one.metrics[key] == pytest.approx(plain.metrics[key], abs=1e-5)
    assert one.metrics["eval/ants/loss"] != two.metrics["eval/ants/loss"]
    assert len(watch.points) == 1


def test_the_other_way_round_at_boundaries_and_at_the_end(ran, job_of, setup_of):
    result, _, _ = ran(promot(job_of(test=True)), eval_steps=2)
    swaps = [p for p in result.curve if any(name.startswith("swap/") for name in p.metrics)]
    ends = [[p for p in result.curve if p.stage == s][-1] for s in (0, 1)]
    assert swaps == ends
    for point in ends:
        for name in ("ants", "bees", "cats"):
            assert {f"swap/{name}/loss", f"swap/{name}/accuracy"} <= point.metrics.keys()
            assert point.metrics[f"swap/{name}/loss"] != point.metrics[f"eval/{name}/loss"]
    # At the end of stage 1 the model is the base: bare ants are what the base makes of them.
    base = Worker(setup_of()).run(job_of(stages=()), lambda point: True)
    bare = ends[0].metrics["swap/ants/loss"]
    assert bare == pytest.approx(base.metrics["eval/ants/loss"], abs=1e-6)
    assert not any(name.startswith("swap/") for name in base.metrics)


def test_packed_training_counts_slots_as_extra_tokens(ran, job_of):
    job = job_of(700, unit=Unit.TOKENS)
    whole = staged(job, stage(job, "joint", 700, carriers=("ants", "bees")))
    result, _, _ = ran(whole, packing=True, per_device_train_batch_size=2)
    rows = {drawn.domain: drawn.rows for drawn in result.realised}
    assert result.spent.extra == 5 * (rows["ants"] + rows["bees"])
    assert result.spent.tokens == sum(drawn.tokens for drawn in result.realised)


def test_a_stage_that_leaves_the_prompt_out(ran, job_of, setup_of):
    """It is as if there were none, in training and in evaluation; the prompt stays."""
    job = job_of()
    first, second = stage(job, "prompt", 24), stage(job, "off", 40, restart=True)
    result, watch, _ = ran(staged(job, first, second))
    plain = stage(job, "weights", 24, learning_rate=1e-30)
    bare = Worker(setup_of()).run(staged(job, plain, second), lambda point: True)
    for name in ("train/loss", "eval/ants/loss", "eval/cats/loss"):
        assert result.metrics[name] == pytest.approx(bare.metrics[name], abs=1e-6)
    assert same(watch.values[0][Part.PROMPT], watch.values[-1][Part.PROMPT])
    assert not any(name.startswith("swap/") for name in result.metrics)


def test_use_of_each_stage(job_of):
    job = job_of()
    found = uses(promot(job), Training(num_virtual_tokens=3))
    assert [use.slots for use in found] == [(3, 0, 0)] * 2
    assert [use.swapped.slots for use in found] == [(0, 3, 3)] * 2
    assert [use.adapted for use in found] == [None] * 2
