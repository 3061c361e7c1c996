"""Which trials a Gaussian process is fitted to, where there are more than it can bear."""

import dataclasses

from raymix.core.trial import History
from raymix.search.dirichlet import Dirichlet
from raymix.search.optuna import Optuna
from raymix.testing.conformance import rng, run
from raymix.testing.toy import Toy

MOST = 256
TOY = Toy()


def long_history(asks, pending=0):
    """Random mixtures in the order of their numbers, the last ones still pending."""
    return run(Dirichlet("uniform", 1.0), TOY.space(), asks, lag=pending)


def test_all_of_a_short_history_and_for_tpe_all_of_any():
    short, long = long_history(100), long_history(400)
    assert Optuna("gp")._fitted(list(short)) == list(short)
    assert Optuna("tpe")._fitted(list(long)) == list(long)


def test_the_pending_the_best_half_and_the_newest_of_a_long_one():
    history = long_history(400, pending=6)
    fitted = Optuna("gp")._fitted(list(history))
    numbers = [trial.number for trial in fitted]
    assert len(fitted) == MOST
    assert numbers == sorted(set(numbers))
    pending = [trial for trial in history if trial.pending]
    assert len(pending) == 6
    best = {trial.number for trial in history.ranking()[: (MOST - 6) // 2]}
    rest = [trial.number for trial in history.finished if trial.number not in best]
    newest = rest[-(MOST - 6 - len(best)) :]
    assert set(numbers) == {trial.number for trial in pending} | best | set(newest)


def test_guards_come_before_scores():
    history = long_history(300)
    trials = [dataclasses.replace(t, violation=float(t.score < 1.2)) for t in history]
    guarded = History(tuple(trials), history.method, history.base)
    fitted = {trial.number for trial in Optuna("gp")._fitted(list(guarded))}
    best = guarded.ranking()[: MOST // 2]
    assert {trial.number for trial in best} <= fitted


def test_it_proposes_from_a_long_history_the_same_twice():
    history = long_history(300)
    gp = Optuna("gp")
    assert gp.propose(TOY.space(), history, rng(1)) == gp.propose(TOY.space(), history, rng(1))
