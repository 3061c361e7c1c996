"""Layers dealt with in groups where memory is short, and what a death leaves behind."""

import pytest
import torch
from small_jobs import tiny_config
from small_networks import batched, chains, fit, language_model

from raymix.core.errors import InfluenceError
from raymix.influence import measure as room
from raymix.influence.layers import choose
from raymix.influence.measure import Plan, measure
from raymix.influence.memory import Shape, factor_bytes, plan_groups


@pytest.fixture(scope="module")
def made():
    torch.set_num_threads(1)
    model = language_model(tiny_config("qwen2"), 5)
    train, held = (batched(model, chains(seed, 3, 9, 64)) for seed in (1, 2))
    fit(model, train, 20)
    return model, choose(model, "all"), train, held


def measured(made, plan, **kwargs):
    model, layers, train, held = made
    return measure(model, layers, train, held, model.world, plan, **kwargs)


def memory_for(made, groups: int) -> int:
    """The most bytes that still cut the layers into so many groups, or more."""
    shapes = [layer.shape for layer in made[1]]
    largest = max(factor_bytes([shape]) for shape in shapes)
    sizes = range(factor_bytes(shapes), largest - 1, -16)
    return next(size for size in sizes if len(plan_groups(shapes, size)) >= groups)


def close(left, right, within):
    for name, matrix in left.scores.matrices.items():
        other = right.scores.matrices[name]
        gap = float((matrix - other).abs().max() / matrix.abs().max())
        assert gap <= within, (name, gap)


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_groups_change_nothing(groups, made):
    one = measured(made, Plan(3, seed=4))
    several = measured(made, Plan(3, seed=4, memory=memory_for(made, groups)))
    assert one.groups == 1
    assert several.groups >= groups
    close(one, several, 1e-6)
    assert [layer.name for layer in one.layers] == [layer.name for layer in several.layers]
    assert one.passes == {
        "eval gradients": 1.0,
        "covariances": 2 / 3,
        "eigenvalues and gradients": 4 / 3,
    }
    more = (several.groups - 1) * 2
    wanted = {**one.passes, "covariances": (2 + more) / 3, "eigenvalues": more / 3}
    assert several.passes == pytest.approx(wanted)


def test_progress_ends_at_one_and_never_falls(made):
    for memory in (2**62, memory_for(made, 3)):
        told = []
        measured(made, Plan(3, memory=memory), progress=told.append)
        assert told == sorted(told)
        assert told[-1] == pytest.approx(1.0)


class Dies:
    """Counts the covariance passes; dies in one of them, as a killed worker would."""

    def __init__(self, at=None):
        self.at, self.calls, self.real = at, 0, room.covariances

    def __call__(self, *args):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.real(*args)


def test_finished_groups_are_recalled_after_a_death(made, tmp_path, monkeypatch):
    plan = Plan(3, seed=4, memory=memory_for(made, 3), shelf=tmp_path / "shelf")
    straight = measured(made, Plan(3, seed=4, memory=plan.memory))
    groups = straight.groups
    dying = Dies(at=3)
    monkeypatch.setattr(room, "covariances", dying)
    with pytest.raises(KeyboardInterrupt):
        measured(made, plan)
    assert len(list(plan.shelf.iterdir())) == 2
    counting = Dies()
    counting.real = dying.real
    monkeypatch.setattr(room, "covariances", counting)
    again = measured(made, plan)
    assert counting.calls == groups - 2
    close(straight, again, 0.0)
    assert again.train.tokens == straight.train.tokens
    third = measured(made, plan)
    assert counting.calls == groups - 2
    # What was recalled is not made again.
    assert third.passes == {"eval gradients": 1.0, "gradients": 1.0}
    close(straight, third, 0.0)


@pytest.mark.parametrize("damage", ["truncated", "empty", "another group's"])
def test_a_damaged_file_is_made_anew(damage, made, tmp_path, monkeypatch):
    plan = Plan(3, seed=4, memory=memory_for(made, 2), shelf=tmp_path / "shelf")
    first = measured(made, plan)
    files = sorted(plan.shelf.iterdir())
    content = files[0].read_bytes()
    new = {"truncated": content[: len(content) // 2], "empty": b""}
    files[0].write_bytes(new.get(damage, files[1].read_bytes()))
    counting = Dies()
    monkeypatch.setattr(room, "covariances", counting)
    close(first, measured(made, plan), 0.0)
    assert counting.calls == 1
    assert files[0].read_bytes() == content


def test_a_shelf_that_cannot_be_written_costs_nothing_else(made, tmp_path):
    (tmp_path / "file").write_text("no folder")
    close(measured(made, Plan(3)), measured(made, Plan(3, shelf=tmp_path / "file" / "x")), 0.0)


def test_groups_by_hand():
    """4 bytes a number: inputs 10^2 shared by a and b, outputs 20^2; 24 * 20^2 of workspace."""
    a, b = (Shape(name, "x", 20, 10) for name in "ab")
    c = Shape("c", "c", 5, 20)
    alone = 4 * (100 + 400 + 200) + 24 * 400
    assert factor_bytes([a]) == alone
    pair = alone + 4 * (400 + 200)
    assert factor_bytes([a, b]) == pair
    assert plan_groups([a, b, c], pair) == [(a, b), (c,)]
    assert plan_groups([a, b, c], 10**9) == [(a, b, c)]
    with pytest.raises(InfluenceError, match=r"layer 'a' takes 0.00 GB .*max_memory_gb"):
        plan_groups([a, b, c], alone - 1)
