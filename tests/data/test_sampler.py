"""The mixture contract: shares, order, caps, resume; laws and examples worked by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymix.core.errors import MixtureError
from raymix.core.job import Stage
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.core.simplex import largest_remainder
from raymix.data.batches import Batches, foresee, samplers
from raymix.data.sampler import Draws, Sampler
from raymix.data.stream import Earlier, Stream, earlier, pack_rows

INF = float("inf")


@dataclass(frozen=True)
class Lengths:
    domain: str
    tokens: np.ndarray
    loss_tokens: np.ndarray


def tables(sizes, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    made = []
    for i, size in enumerate(sizes):
        tokens = rng.integers(4, longest, size)
        made.append(Lengths(f"d{i}", tokens, np.maximum(1, tokens // 3)))
    return made


def request(made, weights, amount, unit=Unit.EXAMPLES, caps=None, pools=None, replacement=False):
    domains = tuple(
        Domain(t.domain, len(t.tokens), int(t.tokens.sum()), int(t.loss_tokens.sum())) for t in made
    )
    mixture = Mixture.normalised([t.domain for t in made], weights)
    k = len(made)
    # The space holds only caps and the replacement policy for the sampler: its own check of the
    # caps against the budget is tested with the core.
    space = Space(
        domains, Budget(1), Mixture.normalised(mixture.names, [1.0] * k), (0.0,) * k, (1.0,) * k,
        tuple(caps or [INF] * k), replacement,
    )  # fmt: skip
    return space, Stage(mixture, Budget(amount, unit), pools)


def worth(draws: Draws, made, unit: Unit) -> np.ndarray:
    if unit is Unit.EXAMPLES:
        return np.ones(len(draws.rows))
    column = "tokens" if unit is Unit.TOKENS else "loss_tokens"
    owners = np.repeat(draws.domains, np.diff(draws.starts))
    return np.array([getattr(made[d], column)[r] for d, r in zip(owners, draws.rows, strict=True)])


weights_of = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.floats(0.02, 1.0), min_size=k, max_size=k)
)


@settings(max_examples=60, deadline=None)
@given(weights=weights_of, unit=st.sampled_from(Unit), seed=st.integers(0, 50))
def test_shares_stay_within_one_longest_row_at_every_prefix(weights, unit, seed):
    made = tables([37 + 11 * i for i in range(len(weights))], seed)
    amount = 900 if unit is Unit.EXAMPLES else 20_000
    space, stage = request(made, weights, amount, unit)
    sampler = Sampler(made, space, stage, seed)
    draws = sampler.take(10**6)
    size = worth(draws, made, unit)
    total = np.cumsum(size)
    asked = stage.mixture.array()
    if unit is Unit.EXAMPLES:
        asked = largest_remainder(asked, amount) / amount
    for d, share in enumerate(asked):
        drawn = np.cumsum(size * (draws.domains == d))
        assert np.abs(drawn - share * total).max() <= size.max() + 1e-6
    assert total[-1] == amount if unit is Unit.EXAMPLES else 0 <= total[-1] - amount < size.max()


def test_counts_are_the_largest_remainder_rounding():
    made = tables([50, 50, 50])
    space, stage = request(made, [0.5, 0.3, 0.2], 17)
    draws = Sampler(made, space, stage, 0).take(100)
    # 8.5, 5.1, 3.4: the one left over goes to the largest remainder.
    assert np.bincount(draws.domains).tolist() == [9, 5, 3]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), amount=st.integers(1, 400))
def test_no_row_comes_back_before_its_pass_is_over(seed, amount):
    made = tables([7, 23, 40])
    space, stage = request(made, [3, 2, 1], amount)
    draws = Sampler(made, space, stage, seed).take(amount)
    for d, table in enumerate(made):
        rows = draws.rows[draws.domains == d]
        size = len(table.tokens)
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            assert len(set(block.tolist())) == len(block)


def test_the_order_of_a_domain_does_not_depend_on_the_mixture():
    made = tables([60, 80])
    orders = []
    for weights in ([1, 1], [1, 3]):
        space, stage = request(made, weights, 100)
        draws = Sampler(made, space, stage, 5).take(100)
        orders.append(draws.rows[draws.domains == 1].tolist())
    short, long = sorted(orders, key=len)
    assert long[: len(short)] == short


def test_near_mixtures_have_seen_nearly_the_same_rows_at_every_time():
    made = tables([500, 500, 500])
    seen = []
    for weights in ([0.33, 0.33, 0.34], [0.35, 0.32, 0.33]):
        space, stage = request(made, weights, 1200)
        draws = Sampler(made, space, stage, 1).take(1200)
        seen.append(list(zip(draws.domains, draws.rows, strict=True)))
    for end in range(100, 1201, 100):
        shared = len(set(seen[0][:end]) & set(seen[1][:end])) / end
        # The mixtures are .02 apart in total variation; that share of the rows must differ.
        assert shared >= 1 - 0.02 - 3 / end


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 50),
    cut=st.integers(0, 300),
    unit=st.sampled_from(Unit),
    pack=st.sampled_from([None, 100]),
)
def test_restore_goes_on_bit_for_bit(seed, cut, unit, pack):
    made = tables([19, 31, 47], seed)
    amount = 300 if unit is Unit.EXAMPLES else 7000
    space, stage = request(made, [1, 2, 4], amount, unit)
    moved = Mixture(space.names, (0.6, 0.3, 0.1))

    def second_half(sampler):
        first = sampler.take(40)
        sampler.set_mixture(moved)
        rest = sampler.take(10**6)
        return np.concatenate([first.rows, rest.rows]).tolist(), sampler.state()

    straight = Sampler(made, space, stage, seed, pack)
    straight.take(cut)
    state = json.loads(json.dumps(straight.state()))
    resumed = Sampler(made, space, stage, seed, pack)
    resumed.restore(state)
    assert second_half(resumed) == second_half(straight)


def test_small_takes_equal_one_large_take():
    made = tables([19, 31, 47])
    space, stage = request(made, [1, 2, 4], 5000, Unit.TOKENS)
    whole = Sampler(made, space, stage, 3).take(10**6)
    pieces = Sampler(made, space, stage, 3)
    rows, domains = [], []
    while True:
        part = pieces.take(7)
        if not len(part.domains):
            break
        rows += part.rows.tolist()
        domains += part.domains.tolist()
    assert (rows, domains) == (whole.rows.tolist(), whole.domains.tolist())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 50), first=weights_of.filter(lambda w: len(w) == 3))
def test_after_a_change_of_mixture_the_draws_follow_the_new_one(seed, first):
    made = tables([400, 400, 400], seed)
    space, stage = request(made, first, 60_000, Unit.TOKENS)
    sampler = Sampler(made, space, stage, seed)
    sampler.take(300)
    new = Mixture(space.names, (0.7, 0.2, 0.1))
    sampler.set_mixture(new)
    draws = sampler.take(1000)
    size = worth(draws, made, Unit.TOKENS)
    for d, share in enumerate(new.weights):
        # One row for the draws themselves, one for what the domain was behind or ahead before.
        drawn = size[draws.domains == d].sum()
        assert abs(drawn - share * size.sum()) <= 2 * 60


def test_pools_are_nested_and_keep_the_order():
    made = tables([100, 100])
    orders = {}
    for pool in (30, 60):
        space, stage = request(made, [1, 1], 2 * pool, pools=(pool, pool))
        draws = Sampler(made, space, stage, 0).take(1000)
        orders[pool] = draws.rows[draws.domains == 0].tolist()
    assert len(set(orders[30])) == 30
    assert set(orders[30]) <= set(orders[60])
    assert [row for row in orders[60] if row in set(orders[30])] == orders[30]


def test_an_impossible_request_says_which_domain_is_short_by_how_much():
    made = tables([10, 100])
    space, stage = request(made, [0.5, 0.5], 100, caps=[2, INF])
    with pytest.raises(
        MixtureError, match=r"'d0' is asked for 50 examples .* 10 rows give 20 .* 30 short"
    ):
        Sampler(made, space, stage, 0)


def test_a_domain_that_runs_out_in_mid_run_gives_its_share_to_the_others():
    made = tables([10, 100, 100])
    space, stage = request(made, [0.1, 0.45, 0.45], 200, caps=[2, INF, INF])
    sampler = Sampler(made, space, stage, 0)
    sampler.take(20)
    sampler.set_mixture(Mixture(space.names, (0.8, 0.1, 0.1)))
    sampler.take(1000)
    assert sampler.progress == 1.0
    assert sampler.capped == (True, False, False)
    drawn = sampler.state()["rows"]
    assert drawn[0] == 20
    assert sum(drawn) == 200
    assert abs(drawn[1] - drawn[2]) <= 1


def test_replacement_draws_independently_and_needs_no_cap():
    made = tables([10, 10])
    space, stage = request(made, [0.5, 0.5], 400, caps=[1, 1], replacement=True)
    foreseen = foresee(Sampler(made, space, stage, 0))
    assert [d.rows for d in foreseen.drawn] == [200, 200]
    first = Sampler(made, space, stage, 0).take(20)
    assert len(set(first.rows[first.domains == 0].tolist())) < 10


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=200), capacity=st.integers(50, 120))
def test_packs_hold_every_row_once_and_never_overflow(lengths, capacity):
    packs = pack_rows(lengths, capacity)
    assert sorted(place for pack in packs for place in pack) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in pack) <= capacity for pack in packs)


def test_packs_are_full():
    lengths = np.random.default_rng(0).integers(20, 400, 5000).tolist()
    packs = pack_rows(lengths, 1024)
    assert sum(lengths) / (1024 * len(packs)) > 0.98


@pytest.mark.parametrize("unit", list(Unit))
def test_packing_keeps_the_counts_and_the_domains_apart(unit):
    made = tables([200, 300])
    amount = 350 if unit is Unit.EXAMPLES else 9000
    space, stage = request(made, [2, 1], amount, unit)
    foreseen = foresee(Sampler(made, space, stage, 0, pack=100))
    if unit is Unit.EXAMPLES:
        assert [d.rows for d in foreseen.drawn] == [233, 117]
    assert abs(foreseen.drawn[0].share - 2 / 3) < 100 / amount * 1.1
    assert foreseen.items < sum(d.rows for d in foreseen.drawn)


@pytest.mark.parametrize("pack", [None, 100])
def test_what_is_foreseen_is_what_is_realised(pack):
    made = tables([40, 60, 80])
    space, stage = request(made, [3, 1, 1], 5000, Unit.TOKENS, replacement=pack is not None)
    batches = Batches(Sampler(made, space, stage, 2, pack), 8)
    while batches.next_step():
        pass
    assert batches.realised() == foresee(Sampler(made, space, stage, 2, pack)).drawn


def test_the_order_is_the_same_for_any_number_of_workers():
    made = tables([40, 60])
    space, stage = request(made, [3, 1], 96)
    orders = []
    for workers in (1, 2, 4):
        batches = Batches(Sampler(made, space, stage, 2), 4 * workers)
        rows = []
        while items := batches.next_step():
            rows += [(item.domain, item.rows) for item in items]
        orders.append(rows)
    assert orders[0] == orders[1] == orders[2]


def test_a_share_at_a_cap_of_half_a_row_is_drawn_to_the_last_whole_one():
    # 3 rows, 1.5 epochs: the space allows 4.5 of 9 draws, the rows give 4.
    made = tables([3, 100])
    space, stage = request(made, [0.5, 0.5], 9, caps=[1.5, INF])
    foreseen = foresee(Sampler(made, space, stage, 0))
    assert [d.rows for d in foreseen.drawn] == [4, 5]
    assert [d.capped for d in foreseen.drawn] == [True, False]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 200),
    unit=st.sampled_from(Unit),
    caps=st.lists(st.sampled_from([1.0, 1.3, 1.5, 2.7]), min_size=3, max_size=3),
    fill=st.floats(0.3, 1.0),
    aim=st.tuples(*[st.floats(0.01, 1.0)] * 3),
)
def test_every_mixture_that_a_space_allows_can_be_drawn(seed, unit, caps, fill, aim):
    made = tables([17, 31, 59], seed)
    free, _ = request(made, [1, 1, 1], 1)
    room = sum(c * d.size(unit) for c, d in zip(caps, free.domains, strict=True))
    budget = Budget(int(room * fill), unit)
    space = replace(free, budget=budget, max_epochs=tuple(caps))
    stage = Stage(space.project(np.array(aim) / sum(aim)), budget)
    draws = Sampler(made, space, stage, seed).take(10**6)
    for d, (table, cap) in enumerate(zip(made, caps, strict=True)):
        assert (draws.domains == d).sum() <= cap * len(table.tokens) + 1e-9
    # Caps are whole rows, and those of a part of a pass may be lighter than the mean, by which the
    # space reckons: all that they allow together may be short of the budget.
    columns = {Unit.TOKENS: "tokens", Unit.LOSS_TOKENS: "loss_tokens"}
    allowed = 0
    for d, (table, cap) in enumerate(zip(made, caps, strict=True)):
        count, size = int(cap * len(table.tokens) + 1e-9), len(table.tokens)
        stream = Stream(table, size, seed, unit)
        drawn = np.concatenate([stream.order(number) for number in range(3)])[:count]
        own = count if unit is Unit.EXAMPLES else int(getattr(table, columns[unit])[drawn].sum())
        allowed += own if stage.mixture.weights[d] > 0 else 0
    assert worth(draws, made, unit).sum() >= min(budget.amount, allowed) - 60


@pytest.mark.parametrize("unit", list(Unit))
def test_a_mixture_that_moves_at_every_step_is_followed(unit):
    made = tables([3000, 3000, 3000])
    rng = np.random.default_rng(0)
    base = np.array([0.97, 0.02, 0.01])
    space, stage = request(made, base, 4000 if unit is Unit.EXAMPLES else 100_000, unit)
    batches = Batches(Sampler(made, space, stage, 0), 8)
    while batches.next_step():
        moved = base + rng.uniform(-1e-3, 1e-3, 3)
        batches.set_mixture(Mixture.normalised(space.names, moved))
    np.testing.assert_allclose([d.share for d in batches.realised()], base, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 500), size=st.integers(1, 9), amount=st.integers(10, 44))
def test_no_cap_is_broken_wherever_the_mixture_moves(seed, size, amount):
    made = tables([5, 9, 14], seed)
    caps = [1.0, 2.5, 1.7]
    space, stage = request(made, [0.1, 0.5, 0.4], amount, caps=caps)
    batches = Batches(Sampler(made, space, stage, seed), size)
    rng = np.random.default_rng(seed)
    while batches.next_step():
        aim = rng.random(3) + 1e-3
        batches.set_mixture(Mixture.normalised(space.names, aim))
    rows = [d.rows for d in batches.realised()]
    assert all(r <= int(c * len(t.tokens)) for r, c, t in zip(rows, caps, made, strict=True))
    assert sum(rows) == amount


def test_a_domain_without_loss_is_refused_and_given_nothing():
    made = tables([20, 20])
    silent = Lengths("d0", made[0].tokens, np.zeros(20, dtype=np.int64))
    made = [silent, made[1]]
    space, stage = request(made, [0.5, 0.5], 100, Unit.LOSS_TOKENS)
    with pytest.raises(MixtureError, match="'d0' is asked for 50 loss_tokens"):
        Sampler(made, space, stage, 0)
    sampler = Sampler(made, space, replace(stage, mixture=Mixture(space.names, (0.0, 1.0))), 0)
    sampler.take(2)
    sampler.set_mixture(Mixture(space.names, (0.5, 0.5)))
    draws = sampler.take(10**4)
    assert sampler.progress == 1.0
    assert (draws.domains == 1).all()


def test_an_empty_domain_can_have_no_share_but_does_not_disturb():
    made = tables([0, 20])
    space, stage = request(made, [0, 1], 30)
    assert [d.rows for d in foresee(Sampler(made, space, stage, 0)).drawn] == [0, 30]
    with pytest.raises(MixtureError, match="'d0' is asked for 15 examples"):
        Sampler(made, *request(made, [1, 1], 30), 0)


def test_more_domains_than_can_be_noted_are_refused(monkeypatch):
    monkeypatch.setattr("raymix.data.sampler._MOST", 2)
    made = tables([3, 3, 3])
    with pytest.raises(MixtureError, match="at most 2 domains"):
        Sampler(made, *request(made, [1, 1, 1], 3), 0)


@pytest.mark.parametrize("pack", [None, 100])
@pytest.mark.parametrize("replacement", [False, True])
def test_unique_rows_are_counted_as_drawn(pack, replacement):
    made = tables([40, 70])
    space, stage = request(made, [1, 1], 3000, Unit.TOKENS, replacement=replacement)
    foreseen = foresee(Sampler(made, space, stage, 3, pack))
    draws = Sampler(made, space, stage, 3, pack).take(10**6)
    owners = np.repeat(draws.domains, np.diff(draws.starts))
    for d, drawn in enumerate(foreseen.drawn):
        assert drawn.unique_rows == len(set(draws.rows[owners == d].tolist()))


def staged(made, stages, space, pack=None):
    """Rows by stage and domain, and what was drawn by stage; tables in the order of domains."""
    rows, drawn = [], []
    for sampler in samplers(made, space, stages, 7, pack):
        batches, own = Batches(sampler, 5), [[] for _ in made]
        while items := batches.next_step():
            for item in items:
                own[item.domain] += item.rows
        rows.append(own)
        drawn.append(batches.realised())
    return rows, drawn


@pytest.mark.parametrize("pack", [None, 100])
@pytest.mark.parametrize("replacement", [False, True])
def test_stages_go_on_where_the_earlier_ones_stopped(pack, replacement):
    """Three stages of one mixture draw what one stage of their size draws, domain by domain."""
    made = tables([30, 90])
    space, whole = request(made, [1, 1], 150, replacement=replacement)
    parts = tuple(replace(whole, budget=Budget(n)) for n in (40, 60, 50))
    rows, drawn = staged(made, parts, space, pack)
    ((straight,), (total,)) = staged(made, (whole,), space, pack)
    for d in range(2):
        assert [row for own in rows for row in own[d]] == straight[d]
        assert sum(part[d].unique_rows for part in drawn) == total[d].unique_rows


def test_a_replayed_domain_is_drawn_from_the_start_again():
    """The first of the rows that the first stage drew: DMT's second stage, k = 1/4."""
    made = tables([100, 100])
    space, first = request(made, [1, 0], 40)
    second = Stage(Mixture(space.names, (0.25, 0.75)), Budget(40), replay=("d0",))
    third = replace(second, replay=())
    (one, two, three), drawn = staged(made, (first, second, third), space)
    assert two[0] == one[0][:10]
    assert not set(three[0]) & set(one[0])
    assert three[1] == [*order_of(made[1])[30:60]]
    assert [part[0].unique_rows for part in drawn] == [40, 0, 10]
    assert [part[1].unique_rows for part in drawn] == [0, 30, 30]


def order_of(table):
    return Stream(table, len(table.tokens), 7, Unit.EXAMPLES).order(0).tolist()


def test_epoch_caps_hold_for_all_stages_together():
    made = tables([20, 100])
    space, stage = request(made, [1, 1], 40, caps=[1.5, INF])
    with pytest.raises(MixtureError, match=r"'d0' is asked for 20 .* 10 short"):
        samplers(made, space, (stage, stage), 0)
    half = replace(stage, mixture=Mixture(space.names, (0.25, 0.75)))
    _, drawn = staged(made, (stage, half), space)
    assert [part[0].rows for part in drawn] == [20, 10]


def test_what_was_not_foreseen_of_an_earlier_stage_goes_to_the_others():
    made = tables([20, 100])
    space, stage = request(made, [1, 1], 20, caps=[1.0, INF])
    _, second = samplers(made, space, (stage, stage), 0)
    # The first stage drew 16 rows of the first domain, not 10: 4 are left under its cap.
    second.follow(Earlier((16, 4), (16, 4)))
    draws = second.take(100)
    assert np.bincount(draws.domains).tolist() == [4, 16]
    assert second.capped == (True, False)


def test_where_stages_are_follows_from_what_they_drew():
    made = tables([50, 50])
    space, plain = request(made, [3, 1], 40)
    again = replace(plain, replay=("d0",))
    stages = (plain, again, plain)
    _, drawn = staged(made, stages, space)
    assert earlier(stages, drawn[:2], 2) == Earlier((60, 20), (30, 20))
    assert earlier(stages, drawn, 2) == Earlier((90, 30), (60, 30))


def test_an_unknown_domain_cannot_be_replayed():
    made = tables([5, 5])
    space, stage = request(made, [1, 1], 4)
    with pytest.raises(MixtureError, match=r"unknown domain 'd2' in Stage.replay"):
        Sampler(made, space, replace(stage, replay=("d2",)), 0)
