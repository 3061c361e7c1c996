"""How a study is driven, under a toy in place of Tune: any pace, any number of pools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_studies import toy_study
from pool_trainers import TOY

from raymix.cluster.drive import Drive
from raymix.core.codec import from_json, to_json
from raymix.core.errors import ClusterError
from raymix.core.job import TrainJob
from raymix.core.trial import Idle
from raymix.study.record import equal_histories
from raymix.study.serial import run_serial

# Ray Tune reads Ray Data's settings, which name what newer versions will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data")


class Said:
    """An actor's method: notes what it is told."""

    def __init__(self, heard):
        self.heard = heard

    def remote(self, *words):
        self.heard.append(words)


class ToyDesk:
    """What the drive tells the desk."""

    def __init__(self):
        self.woken, self.closed, self.lost, self.answers = [], [], [], []
        self.wake, self.close = Said(self.woken), Said(self.closed)
        self.gone, self.answer = Said(self.lost), Said(self.answers)


def finish(drive, number_of, config):
    """Train the job of a configuration and hand it in, as a trial would."""
    job = from_json(TrainJob, config["job"])

    def report(trial, point):
        drive.heard(number_of, {"point": to_json(point)})
        return True

    (result,) = TOY.run([job], report)
    drive.ended(number_of, {"result": to_json(result)})


def run(drive, desk, room, rng):
    """A toy Tune: asks when it likes, ends trials in any order. Returns the most at once."""
    active, done, most, count = {}, False, 0, 0
    while not done or active:
        if not done and rng.random() < 0.6:
            answer = drive.suggest(f"t{count}")
            done = answer is Idle.DONE
            if isinstance(answer, dict):
                active[f"t{count}"] = answer
                count += 1
        most = max(most, len(active))
        woken = {words[0] for words in desk.woken}
        ready = [t for t, config in active.items() if config["job"] is not None or t in woken]
        if ready and rng.random() < 0.5:
            name = ready[rng.integers(len(ready))]
            config = active.pop(name)
            if config["job"] is None:
                drive.ended(name, {"done": True})
            else:
                finish(drive, name, config)
    return most


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_every_trial_runs_once_and_never_more_than_the_pools(tmp_path_factory, room, seed):
    study = toy_study(tmp_path_factory.mktemp("study"), trials=3, confirm=1)
    desk = ToyDesk()
    drive = Drive(study, desk, room, None)
    most = run(drive, desk, room, np.random.default_rng(seed))
    assert drive.error is None
    assert most <= room
    assert len(study.history) == 1 + 2 + 3 + 3
    assert all(trial.finished for trial in study.history)
    study.close()


def test_one_pool_is_the_serial_study(tmp_path):
    there, here = toy_study(tmp_path / "there", confirm=1), toy_study(tmp_path / "here", confirm=1)
    desk = ToyDesk()
    run(Drive(there, desk, 1, None), desk, 1, np.random.default_rng(0))
    run_serial(here, TOY)
    assert equal_histories(there.history, here.history)
    # With one pool no process ever rests.
    assert desk.woken == []


def test_the_study_ends_with_its_last_pool(tmp_path):
    desk = ToyDesk()
    drive = Drive(toy_study(tmp_path), desk, 2, None)
    config = drive.suggest("t0")
    drive.pool_failed("pool-0", RuntimeError("no memory"))
    assert not drive.stopping
    drive.pool_failed("pool-1", RuntimeError("no memory"))
    assert drive.stopping
    assert isinstance(drive.error, ClusterError)
    assert "no memory" in str(drive.error)
    assert [words[0] for words in desk.lost] == ["pool-0", "pool-1"]
    assert len(desk.closed) == 1
    # The trial stays open for a resumed study.
    drive.ended("t0", {"done": True})
    assert config["job"] is not None
    assert drive.suggest("t1") is Idle.DONE


def test_more_pools_get_more_trials_and_fewer_get_fewer(tmp_path):
    desk = ToyDesk()
    drive = Drive(toy_study(tmp_path), desk, 1, None)
    finish(drive, "t0", drive.suggest("t0"))
    running = {"t1": drive.suggest("t1")}
    assert drive.suggest("t2") is Idle.WAIT
    assert drive.resized(1) == 2
    running["t2"] = drive.suggest("t2")
    assert running["t2"]["job"] is not None
    assert drive.suggest("t3") is Idle.WAIT
    drive.pool_failed("pool-1", RuntimeError("its node has gone"))
    finish(drive, "t1", running["t1"])
    assert drive.suggest("t3") is Idle.WAIT
    finish(drive, "t2", running["t2"])
    assert drive.suggest("t3")["job"] is not None
    assert drive.error is None


def test_an_interrupted_study_asks_and_tells_nothing_more(tmp_path):
    study = toy_study(tmp_path)
    drive = Drive(study, ToyDesk(), 1, None)
    config = drive.suggest("t0")
    drive.interrupted = True
    finish(drive, "t0", config)
    assert drive.suggest("t1") is Idle.DONE
    assert study.history.trials[0].pending


def test_an_error_on_the_way_ends_the_study(tmp_path):
    desk = ToyDesk()
    drive = Drive(toy_study(tmp_path), desk, 1, None)
    drive.suggest("t0")
    drive.heard("t0", {"point": '{"nonsense": 1}'})
    assert "nonsense" in str(drive.error)
    assert drive.suggest("t1") is Idle.DONE
    assert len(desk.closed) == 1
