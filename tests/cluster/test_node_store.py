"""A study on a real cluster that keeps all it writes in an object store; a worker dies in it."""

import pytest
from pool_clusters import nothing_remains, on_pools, same, serially

from raymix.cluster.config import Cluster
from raymix.search.dirichlet import Dirichlet
from raymix.storage.place import place
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read
from raymix.study.study import Study
from raymix.train.local import LocalRunner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Ray's test cluster reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
    # It leaves the pipes of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_a_damaged_checkpoint_and_a_dead_worker_in_a_store_change_nothing(
    bucket, nodes, tiny, tmp_path
):
    import ray

    make, space = tiny
    methods = (Method("dirichlet", Dirichlet(), 2),)
    plan = Plan(space, MultiTask(), Objective(), methods, {}, Confirm(0, 0))
    setup = make(tmp_path)

    def study_in(home, rows):
        # Two workers with half as many rows each take the same steps.
        changed = {"save_steps": 5, "per_device_train_batch_size": rows}
        training = setup.training.model_copy(update=changed)
        own = type(setup)(setup.models, training, setup.stores, str(home))
        return Study(home, plan, {"data": "tiny"}), own

    straight, own = study_in(tmp_path / "straight", 8)
    serially(straight, LocalRunner(own))

    home = f"{bucket}/runs"
    study, own = study_in(home, 4)
    on_pools(study, own, Cluster(pools=1, num_workers=2), "pool_trainers:StoreTrainer")
    points = sorted(path.name for path in (place(home) / "points").iterdir())
    # Killed at step 15 with the checkpoint of step 10 damaged: it goes on from that of step 5.
    assert [name[2:] for name in points if name.startswith("2-")] == [
        *("0-05", "0-10", "0-15", "1-10", "1-15", "1-20")
    ]
    assert len(read(home).history) == 4
    for there, here in zip(read(home).history, straight.history, strict=True):
        assert there.mixture == here.mixture
        assert there.score == pytest.approx(here.score, rel=1e-5)
    assert same(read(home).history, study.history)
    nothing_remains(ray, tmp_path)
