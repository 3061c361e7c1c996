"""The thin trial, with a real desk on a real Ray."""

import json
import threading

import pytest

from raymix.cluster.pool import open_desk
from raymix.cluster.trial import RESULT, PoolTrial

# Ray Train imports Ray Data, which reads settings of its own that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data")


def test_a_process_that_tune_starts_and_does_not_use_takes_no_job_from_another(ray_here):
    """As more pools come, Tune starts a process for a trial that a freed one then serves."""
    desk = open_desk("desk-of-two")
    job = {"trial": 3, "model": "target", "attempt": 0}
    config = {"desk": "desk-of-two", "job": json.dumps(job), "stoppable": False}
    used, found = PoolTrial(config), []
    serving = threading.Thread(target=lambda: found.extend([used.step(), used.step()]))
    serving.start()
    pool = ray_here.get(desk.arrive.remote("a"))
    taken = ray_here.get(desk.take.remote("a", pool, 20.0))
    assert taken == {"job": job}
    PoolTrial(config)
    assert ray_here.get(desk.push.remote(3, 0, {"step": 1, "progress": 0.5}))
    ray_here.get(desk.finish.remote(3, 0, {"status": "done"}))
    serving.join(20)
    assert [one["progress"] for one in found] == [50.0, 100.0]
    assert json.loads(found[1][RESULT]) == {"status": "done"}
    assert ray_here.get(desk.take.remote("a", pool, 0.01)) is None
    ray_here.kill(desk)
