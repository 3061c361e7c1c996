"""Passes lose nothing and cost little; micro-batches and windows by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tables import write_rows

from raymix.data.batches import Item
from raymix.data.store import open_table
from raymix.train.measure import Micro, Window, loss_tokens, means, micro, passes
from raymix.train.shard import World


def _items(lengths):
    return [Item(0, (row,), length, 1) for row, length in enumerate(lengths)]


def _cost(parts, ranks, overhead):
    return sum(-(-len(p) // ranks) * max(i.tokens for i in p) + overhead for p in parts)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=9),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 200),
)
def test_passes_hold_each_item_once_within_the_limit(lengths, each, ranks, overhead):
    items = _items(lengths)
    parts = passes(items, each * ranks, ranks, overhead)
    assert sorted((i for part in parts for i in part), key=lambda i: i.rows) == items
    assert all(0 < len(part) <= each * ranks for part in parts)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 200))
def test_no_cut_of_the_sorted_items_costs_less(lengths, overhead):
    items = _items(lengths)
    ordered = sorted(items, key=lambda i: i.tokens)
    ours = _cost(passes(items, 8, 1, overhead), 1, overhead)
    for cuts in range(2 ** (len(items) - 1)):
        parts, start = [], 0
        for place in range(1, len(items) + 1):
            if place == len(items) or cuts >> (place - 1) & 1:
                parts.append(ordered[start:place])
                start = place
        assert ours <= _cost(parts, 1, overhead) + overhead


def test_passes_by_hand():
    lengths = [10, 100, 11, 99]
    assert [[i.tokens for i in p] for p in passes(_items(lengths), 4, 1, 20)] == [
        [99, 100],
        [10, 11],
    ]
    assert len(passes(_items(lengths), 4, 1, 1000)) == 1


def test_micro_by_hand(tmp_path):
    rows = [([5, 6, 7, 8], [0, 0, 1, 1]), ([9, 10], [0, 1])]
    tables = [open_table(write_rows(tmp_path / d, d, "train", rows)) for d in ("a", "b")]
    items = [Item(0, (0,), 4, 2), Item(1, (1,), 2, 1)]
    batch = micro(items, tables, np.array([0.5, 2.0], np.float32), torch.device("cpu"), 3)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 0, 0], [9, 10, 0, 0, 0, 0]]
    assert batch.position_ids is None
    assert batch.index.tolist() == [1, 2, 6]
    assert batch.targets.tolist() == [7, 8, 10]
    assert batch.domains.tolist() == [0, 0, 1]
    assert batch.scale.tolist() == [0.5, 0.5, 2.0]
    assert loss_tokens(items, 3).tolist() == [2, 1, 0]


def test_window_by_hand():
    window = Window(3, torch.device("cpu"))
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = Micro(nothing, None, nothing, nothing, torch.tensor([0, 0, 2]), nothing)
    window.add(batch, torch.tensor([1.0, 2.0, 5.0]))
    window.count(np.array([2.0, 0.0, 1.0]))
    sums = window.sums(World())
    assert sums.tolist() == [3.0, 0.0, 5.0]
    assert means(sums, window.tokens) == pytest.approx([1.5, np.nan, 5.0], nan_ok=True)
    other = Window(3, torch.device("cpu"))
    other.restore(window.state(World()), World())
    window.clear()
    assert other.sums(World()).tolist() == [3.0, 0.0, 5.0]
    assert window.sums(World()).tolist() == [0.0, 0.0, 0.0]


def test_a_window_of_two_ranks_goes_on_alone():
    window = Window(2, torch.device("cpu"))
    window.restore({"sums": [[1.0, 2.0], [10.0, 20.0]], "tokens": [5, 6]}, World())
    assert window.sums(World()).tolist() == [11.0, 22.0]
