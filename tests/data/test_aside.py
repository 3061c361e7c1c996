"""Rows drawn beside the sampler: in their own order, from the same pool; the look ahead is true."""

from dataclasses import dataclass

import numpy as np
import pytest

from raymix.core.job import Stage
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.data.aside import UNTRAINED, Aside
from raymix.data.sampler import Sampler
from raymix.data.stream import Stream


@dataclass(frozen=True)
class Lengths:
    domain: str
    tokens: np.ndarray
    loss_tokens: np.ndarray


def table(name="a", rows=30, silent=()):
    rng = np.random.default_rng(3)
    tokens = rng.integers(4, 20, rows)
    loss = tokens // 2
    loss[list(silent)] = 0
    return Lengths(name, tokens, loss)


def test_all_rows_of_the_pool_come_once_in_a_pass_of_their_own():
    stream = Stream(table(), 20, 5, Unit.EXAMPLES)
    aside = Aside(stream, 0, UNTRAINED)
    drawn = [item.rows[0] for item in aside.take(20)]
    assert sorted(drawn) == sorted(stream.order(0).tolist())
    assert drawn != stream.order(0).tolist()
    assert drawn == stream.order(UNTRAINED).tolist()
    assert [item.rows[0] for item in aside.take(7)] == stream.order(UNTRAINED + 1)[:7].tolist()


def test_rows_without_loss_are_passed_over():
    aside = Aside(Stream(table(silent=range(25)), 30, 5, Unit.EXAMPLES), 0)
    assert sorted(item.rows[0] for item in aside.take(5)) == [25, 26, 27, 28, 29]
    assert Aside(Stream(table(silent=range(30)), 30, 5, Unit.EXAMPLES), 0).take(3) == []
    assert Aside(Stream(table(rows=0), 0, 5, Unit.EXAMPLES), 0).take(3) == []


@pytest.mark.parametrize("pack", [None, 40])
def test_it_goes_on_where_its_state_was_taken(pack):
    stream = Stream(table(), 30, 5, Unit.TOKENS, pack=pack)
    aside, other = Aside(stream, 0), Aside(stream, 0)
    aside.take(13)
    ahead = aside.ahead(40)
    other.restore(aside.state())
    items = aside.take(40)
    assert other.take(40) == items
    assert ahead.tolist() == [row for item in items for row in item.rows]


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("pack", [None, 40])
def test_the_look_ahead_is_what_comes(unit, pack):
    tables = [table("a"), table("b", 50)]
    domains = tuple(
        Domain(t.domain, len(t.tokens), int(t.tokens.sum()), int(t.loss_tokens.sum()))
        for t in tables
    )
    budget = Budget(90 if unit is Unit.EXAMPLES else 700, unit)
    mixture = Mixture(("a", "b"), (0.3, 0.7))
    caps = (2.0, 2.0)
    space = Space(domains, budget, mixture, (0.0, 0.0), (1.0, 1.0), caps)
    sampler = Sampler(tables, space, Stage(mixture, budget), 4, pack)
    sampler.take(11)
    sampler.set_mixture(Mixture(("a", "b"), (0.6, 0.4)))
    sampler.take(3)
    state = sampler.state()
    ahead = sampler.ahead()
    assert sampler.state() == state
    draws = sampler.take(10**6)
    owners = np.repeat(draws.domains, np.diff(draws.starts))
    for d in range(2):
        assert ahead[d].tolist() == draws.rows[owners == d].tolist()
