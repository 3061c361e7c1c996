"""Labels drawn from the model: by row and place alone, in the model's own proportions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from small_jobs import tiny_config
from small_networks import batched, chains, language_model, table

from raymix.influence.batch import Batch, drawn_labels


def one_batch(keys, lengths) -> Batch:
    """A batch of judged tokens alone: `lengths[e]` of each example."""
    owners = np.repeat(np.arange(len(keys)), lengths)
    count = len(owners)
    return Batch(
        input_ids=torch.zeros((1, count), dtype=torch.long),
        position_ids=None,
        index=torch.arange(count),
        targets=torch.zeros(count, dtype=torch.long),
        owner=torch.from_numpy(owners)[None],
        keys=np.asarray(keys, dtype=np.uint64),
        weights=torch.ones(len(keys)),
        domain=0,
        half=0,
    )


def test_frequencies_are_the_models():
    """200,000 draws of one distribution: chi-square, a class of chance 0 never comes."""
    logits = torch.tensor([2.0, 0.5, -1.0, float("-inf"), 0.0, -4.0])
    batch = one_batch(np.arange(20_000), [10] * 20_000)
    drawn = drawn_labels(logits.expand(200_000, -1), batch, 5)
    counts = torch.bincount(drawn, minlength=6).double()
    expected = logits.double().softmax(0) * len(drawn)
    assert counts[3] == 0
    keep = expected > 0
    assert chisquare(counts[keep].numpy(), expected[keep].numpy()).pvalue > 1e-3


def test_uniform_numbers_are_uniform_and_do_not_follow_the_place():
    """Neighbours in place, row and seed are independent."""
    classes = 1000
    batch = one_batch(np.arange(2000), [20] * 2000)
    flat = torch.zeros(1, classes).expand(40_000, -1)
    first = (drawn_labels(flat, batch, 1).numpy() + 0.5) / classes
    second = (drawn_labels(flat, batch, 2).numpy() + 0.5) / classes
    assert kstest(first, "uniform").pvalue > 1e-3
    by_row = first.reshape(2000, 20)
    bound = 4 / np.sqrt(40_000)
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(by_row[:, :-1].ravel(), by_row[:, 1:].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(by_row[:-1].ravel(), by_row[1:].ravel())[0, 1]) < bound


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6, unique=True),
    st.integers(0, 2**31),
    st.data(),
)
def test_a_rows_labels_do_not_depend_on_its_company(keys, seed, data):
    lengths = [data.draw(st.integers(1, 5)) for _ in keys]
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(n, 11, generator=draw) for n in lengths]
    together = drawn_labels(torch.cat(logits), one_batch(keys, lengths), seed)
    order = data.draw(st.permutations(range(len(keys))))
    moved = one_batch([keys[i] for i in order], [lengths[i] for i in order])
    shuffled = drawn_labels(torch.cat([logits[i] for i in order]), moved, seed)
    parts = torch.split(together, lengths)
    assert torch.equal(shuffled, torch.cat([parts[i] for i in order]))
    alone = [
        drawn_labels(part, one_batch([key], [n]), seed)
        for key, n, part in zip(keys, lengths, logits, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def by_row(model, batches, seed) -> dict[int, list[int]]:
    found = {}
    for batch in batches:
        if not batch.examples:
            continue
        with torch.no_grad():
            logits = model.logits(batch.input_ids, batch.position_ids, batch.index)
        labels, owners = drawn_labels(logits, batch, seed), batch.owners
        for number, key in enumerate(batch.keys.tolist()):
            found[key] = labels[owners == number].tolist()
    return found


def test_labels_are_the_same_however_rows_are_batched_padded_and_packed():
    model, tables = language_model(tiny_config("llama"), 2), chains(3, 2, 11, 64)
    one = by_row(model, batched(model, tables, size=1), 9)
    assert len(one) == 22
    assert one == by_row(model, batched(model, tables, size=7), 9)
    assert one == by_row(model, batched(model, tables, size=2, pack=48), 9)
    other = by_row(model, batched(model, tables, size=1), 10)
    same = np.mean([a == b for key in one for a, b in zip(one[key], other[key], strict=True)])
    assert same < 0.2


@pytest.mark.parametrize("ranks", [2, 4])
def test_labels_are_the_same_on_any_rank(ranks):
    model, tables = language_model(tiny_config("llama"), 2), chains(3, 2, 11, 64)
    one = by_row(model, batched(model, tables, size=3), 9)
    several: dict[int, list[int]] = {}
    lengths = set()
    for rank in range(ranks):
        model.world = replace(model.world, rank=rank, size=ranks)
        batches = batched(model, tables, size=3)
        lengths.add(len(batches))
        mine = by_row(model, batches, 9)
        assert not several.keys() & mine.keys()
        several |= mine
    assert several == one
    assert len(lengths) == 1


def test_rows_without_a_judged_token_and_with_all_judged():
    """By hand: the first token is never judged, places count judged tokens."""
    content = [([5, 6, 7, 8], [1, 1, 0, 1]), ([9, 10, 11], [0, 0, 1])]
    network = language_model(tiny_config("llama"), 2)
    (batch, other) = batched(network, [table("a", content)], size=4)
    assert batch.index.tolist() == [0, 2]
    assert batch.targets.tolist() == [6, 8]
    assert other.targets.tolist() == [11]
    assert other.owners.tolist() == [0]
    assert batch.by_token(torch.tensor([3.0])).tolist() == [[3.0] * 4]
