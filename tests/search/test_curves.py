"""Scaling curves: which trainings are asked for, on how many rows."""

import numpy as np
import pytest

from raymix.core.codec import decode, encode, from_spec, to_spec
from raymix.core.errors import SearchError
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.search.curves import Curves, rows_at
from raymix.study.job import space_of

NAMES = ("math", "code", "chat")


def space(rows=(64, 16, 3)):
    domains = tuple(Domain(n, r, 10 * r, 5 * r) for n, r in zip(NAMES, rows, strict=True))
    free = ((0.0,) * 3, (1.0,) * 3, (np.inf,) * 3)
    return Space(domains, Budget(249), Mixture.normalised(NAMES, rows), *free)


def searched(searcher, within):
    """All that it asks for, one after another."""
    trials, rng = [], np.random.default_rng(0)
    while True:
        answer = searcher.propose(within, History(tuple(trials), "curves"), rng)
        if answer is Idle.DONE:
            return [trial.proposal for trial in trials]
        trials.append(Trial(len(trials), "curves", answer, 0))


FRACTIONS = (1.0, 0.25, 1 / 16)


def test_the_trainings_by_hand():
    searcher = Curves(FRACTIONS, epochs=3, pairs=(("code", "math"),), repeats=2)
    asked = searched(searcher, space())
    # Alone 3 + 3 + 1 (a quarter of 3 rows is none), together 3, the pair 3; two repeats.
    assert len(asked) == 2 * (7 + 3 + 3)
    notes = [p.note for p in asked[:13]]
    assert notes[0] == {"curve": "alone", "domain": "math", "fraction": 1.0, "rows": {"math": 64}}
    assert notes[5]["rows"] == {"code": 1}
    assert notes[6] == {"curve": "alone", "domain": "chat", "fraction": 1.0, "rows": {"chat": 3}}
    assert [n["rows"] for n in notes[7:10]] == [
        {"math": 64, "code": 16, "chat": 3},
        {"math": 16, "code": 4},
        {"math": 4, "code": 1},
    ]
    assert notes[10] == {
        "curve": "pair",
        "fixed": "code",
        "varied": "math",
        "fraction": 1.0,
        "rows": {"code": 16, "math": 64},
    }
    assert [n["rows"]["math"] for n in notes[10:]] == [64, 16, 4]
    assert [p.repeat for p in asked] == [0] * 13 + [1] * 13
    assert searcher.left_out(space()) == [("chat", 0.25), ("chat", 1 / 16)]


def test_a_part_is_a_pool_trained_for_whole_epochs():
    for proposal in searched(Curves(FRACTIONS, epochs=3, repeats=1), space()):
        rows = proposal.note["rows"]
        assert proposal.budget == Budget(3 * sum(rows.values()), Unit.EXAMPLES)
        within = space_of(space(), proposal)
        for domain, share in zip(within.domains, proposal.mixture.weights, strict=True):
            drawn = share * within.budget.amount
            assert drawn == pytest.approx(3 * rows.get(domain.name, 0))
            assert domain.rows == rows.get(domain.name) or not share


def test_equal_amounts_are_equal_pools_and_seeds():
    asked = searched(Curves(FRACTIONS, repeats=2, pairs=(("math", "code"),)), space())
    pools = {}
    for proposal in asked:
        for name, rows in proposal.note["rows"].items():
            key = (proposal.repeat, name, rows)
            pools.setdefault(key, set()).add(proposal.pools[NAMES.index(name)])
    assert all(found == {rows} for (_, _, rows), found in pools.items())


def test_other_models_are_evaluated_before_they_are_trained():
    searcher = Curves(FRACTIONS, repeats=1, models=("target", "small"))
    asked = searched(searcher, space())
    assert asked[0].role is Role.MEASURE
    assert (asked[0].model, asked[0].note) == ("small", {"curve": "base"})
    assert [p.model for p in asked[1:]] == ["target"] * 10 + ["small"] * 10


def test_more_repeats_only_add():
    few, many = (searched(Curves(FRACTIONS, repeats=n), space()) for n in (1, 3))
    assert many[: len(few)] == few


def test_it_crosses_a_process_border():
    searcher = Curves(pairs=(("math", "code"),), models=("target", "small"))
    assert from_spec(to_spec(searcher)) == searcher
    for proposal in searched(searcher, space()):
        assert decode(Proposal, encode(proposal)) == proposal


def test_rows_of_a_fraction():
    domain = Domain("math", 450, 1, 1)
    assert [rows_at(domain, f) for f in (1.0, 0.25, 1 / 256)] == [450, 113, 2]
    assert rows_at(domain, 1 / 450) == 1
    assert rows_at(domain, 1 / 451) == 0
    assert rows_at(Domain("none", 0, 0, 0), 1.0) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fractions": (1.0, 0.5)}, r"at least 3 that differ.*got 1, 0\.5"),
        ({"fractions": (1.0, 0.5, 0.5, 0.25)}, "at least 3 that differ"),
        ({"fractions": ()}, "got none"),
        ({"fractions": (1.0, 0.5, 0.0)}, "above 0 and at most 1, got 0"),
        ({"fractions": (1.5, 0.5, 0.1)}, r"at most 1, got 1\.5"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"models": ()}, "models is empty"),
    ],
)
def test_what_means_nothing_is_refused(settings, words):
    with pytest.raises(SearchError, match=words):
        Curves(**settings)


def test_pairs_must_be_of_known_domains():
    with pytest.raises(SearchError, match=r"unknown domain 'coed' \(did you mean 'code'\?\)"):
        Curves(pairs=(("math", "coed"),)).proposals(space())
    with pytest.raises(SearchError, match="two different domains, got math, math"):
        Curves(pairs=(("math", "math"),)).proposals(space())
