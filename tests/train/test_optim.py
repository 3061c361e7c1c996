"""The schedule is transformers' where both can be compared; decay and clipping are as usual."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, get_scheduler

from raymix.train.config import Training
from raymix.train.optim import adamw, clip, rate
from raymix.train.shard import World
from raymix.train.worker import Worker


def _transformers(shape, steps, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(shape, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 1, 10, 40, 0.25])
def test_rate_is_transformers_where_steps_are_known(shape, warmup):
    steps = 40
    training = Training(lr_scheduler_type=shape, warmup_steps=warmup)
    ours = [rate(training, step / steps, step, steps) for step in range(steps)]
    count = int(warmup * steps) if warmup < 1 else warmup
    assert ours == pytest.approx(_transformers(shape, steps, count), abs=1e-12)


def test_a_training_follows_the_schedule(setup_of, job_of, keep_points):
    setup = setup_of(eval_steps=1, eval_rows=1, warmup_steps=4, lr_scheduler_type="linear")
    Worker(setup).run(job_of(20 * 8), keep_points)
    rates = [point.metrics["train/lr"] / 3e-3 for point in keep_points.points]
    assert rates == pytest.approx(_transformers("linear", 20, 4), abs=1e-12)


def test_rate_worked_by_hand():
    linear = Training(lr_scheduler_type="linear", warmup_steps=0.2)
    assert rate(linear, 0.1, 7, 99) == pytest.approx(0.5)
    assert rate(linear, 0.6, 8, 99) == pytest.approx(0.5)
    cosine = Training(lr_scheduler_type="cosine", warmup_steps=0)
    assert rate(cosine, 0.25, 8, 99) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "cohere"])
def test_decay_spares_what_transformers_spares(family, model_folder):
    config = AutoConfig.from_pretrained(model_folder(family))
    model = AutoModelForCausalLM.from_config(config)
    named = dict(model.named_parameters())
    optimizer = adamw(named, Training(weight_decay=0.1))
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    names = {name for name, p in named.items() if id(p) in decayed}
    assert names == set(Trainer.get_decay_parameter_names(None, model)) & set(named)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize(("limit", "scale"), [(0.0, 1.0), (2.5, 0.5), (10.0, 1.0)])
def test_clip_by_hand(limit, scale):
    left, right = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    left.grad, right.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    norm = clip([left, right], limit, World())
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(left.grad, torch.tensor([3.0, 0.0]) * scale)
    torch.testing.assert_close(right.grad, torch.tensor([4.0]) * scale)
