"""A raymix searcher under Ray Tune's own interface."""

import dataclasses

import pytest
from ray.tune.search import Searcher as RaySearcher

from raymix.cluster.searcher import TuneSearcher
from raymix.core.errors import SearchError
from raymix.core.trial import Idle, Proposal, Role
from raymix.search.dirichlet import Dirichlet
from raymix.search.optuna import Optuna
from raymix.testing.toy import Toy

# Ray Tune reads Ray Data's settings, which name what newer versions will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data")

TOY = Toy()


def play(searcher, trials, start=0):
    """Suggest and report `trials` times; the suggested shares."""
    found = []
    for number in range(start, start + trials):
        config = searcher.suggest(f"t{number}")
        weights = config["weights"]
        found.append(tuple(weights.values()))
        loss = float(TOY.losses([weights[name] for name in TOY.names]).mean())
        searcher.on_trial_complete(f"t{number}", {"loss": loss, "done": True, "config/x": "y"})
    return found


def test_equal_seeds_give_equal_suggestions_and_a_restored_searcher_goes_on(tmp_path):
    space = TOY.space()
    straight = play(TuneSearcher(Optuna(), space, "loss", seed=3), 12)
    assert straight == play(TuneSearcher(Optuna(), space, "loss", seed=3), 12)
    assert straight != play(TuneSearcher(Optuna(), space, "loss", seed=4), 12)
    first = TuneSearcher(Optuna(), space, "loss", seed=3)
    assert play(first, 9) == straight[:9]
    # One is running when the tuner is saved.
    first.suggest("t9")
    first.save(str(tmp_path / "searcher"))
    second = TuneSearcher(Optuna(), space, "loss", seed=3)
    second.restore(str(tmp_path / "searcher"))
    weights = dict(zip(TOY.names, straight[9], strict=True))
    loss = float(TOY.losses([weights[name] for name in TOY.names]).mean())
    second.on_trial_complete("t9", {"loss": loss})
    assert play(second, 2, start=10) == straight[10:]


def test_it_learns_in_both_directions():
    losses = {}
    for mode in ("min", "max"):
        searcher = TuneSearcher(Optuna(), TOY.space(), "loss", mode, seed=1)
        tried = play(searcher, 40)
        losses[mode] = [float(TOY.losses(shares).mean()) for shares in tried]
    assert sum(losses["min"][-10:]) < 0.9 * sum(losses["min"][:10])
    assert sum(losses["max"][-10:]) > 1.1 * sum(losses["max"][:10])


def test_failed_and_unknown_trials_are_taken_in():
    searcher = TuneSearcher(Dirichlet(), TOY.space(), "loss")
    searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_complete("never heard of")
    searcher.suggest("b")
    searcher.on_trial_complete("b", {"something else": 1.0})
    assert searcher.suggest("c") is not None


class Scripted:
    def __init__(self, answer):
        self.answer = answer

    def propose(self, space, history, rng):
        return self.answer


def test_waiting_ending_and_asking_for_more():
    space = TOY.space()
    assert TuneSearcher(Scripted(Idle.WAIT), space).suggest("a") is None
    assert TuneSearcher(Scripted(Idle.DONE), space).suggest("a") == RaySearcher.FINISHED
    plain = Proposal(space.prior, params={"k": 0.5})
    assert TuneSearcher(Scripted(plain), space).suggest("a")["params"] == {"k": 0.5}
    for change in ({"model": "proxy"}, {"start": 3}, {"role": Role.MEASURE}):
        more = dataclasses.replace(plain, **change)
        with pytest.raises(SearchError, match=next(iter(change))):
            TuneSearcher(Scripted(more), space).suggest("a")


@pytest.mark.slow
def test_the_example_finds_the_optimum(patient, monkeypatch):
    import runpy
    from pathlib import Path

    # A Ray of its own, whatever else runs on this machine.
    monkeypatch.setenv("RAY_ADDRESS", "local")
    example = Path(__file__).parents[2] / "experiments" / "own_tuner.py"
    assert runpy.run_path(str(example))["main"]() < 0.01
