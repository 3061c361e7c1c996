"""Real trainings on a real cluster whose disk lets them down: a checkpoint cut short, no room."""

import os
import shutil
import subprocess

import pytest
from pool_clusters import On, nothing_remains, on_pools, onward, same, serially
from pool_processes import log

from raymix.cluster.config import Cluster
from raymix.core.errors import StudyError
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
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


@pytest.fixture(scope="module")
def small(tiny):
    """Makes a study of the tiny model, its checkpoints after every fifth of twenty steps."""
    make, space = tiny

    def one(folder, resume=False, listeners=()):
        plan = Plan(
            space,
            MultiTask(),
            Objective(),
            (Method("dirichlet", Dirichlet(), 2),),
            {},
            Confirm(0, 0),
        )
        setup = make(folder)
        training = setup.training.model_copy(update={"save_steps": 5})
        study = Study(folder, plan, {"data": "tiny"}, resume=resume, listeners=listeners)
        return study, type(setup)(setup.models, training, setup.stores, setup.output_dir)

    return one


@pytest.fixture(scope="module")
def untouched(small, tmp_path_factory):
    study, setup = small(tmp_path_factory.mktemp("straight"))
    return serially(study, LocalRunner(setup))


def through(one, trainer="AwaitingRealTrainer"):
    return on_pools(*one, Cluster(pools=1), f"pool_trainers:{trainer}")


def test_a_checkpoint_cut_short_is_noticed_and_the_one_before_it_used(
    nodes, small, tmp_path, untouched
):
    import ray

    history = through(small(tmp_path), "CutTrainer")
    points = [(attempt, step) for trial, attempt, step, _ in log(tmp_path) if trial == 2]
    # Killed at step 15, the checkpoint of step 10 cut: it goes on from that of step 5.
    assert points == [(0, 5), (0, 10), (0, 15), (1, 10), (1, 15), (1, 20)]
    assert same(history, untouched)
    nothing_remains(ray, tmp_path)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_study_in_words_and_it_goes_on_where_it_was(
    nodes, small, disk, untouched
):
    import ray

    ballast = disk / "ballast"

    def fill():
        # The worker may write a checkpoint meanwhile: then there was less room than it seemed.
        for _ in range(20):
            try:
                ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 64 * 1024)))
                return
            except OSError:
                ballast.unlink()

    study = small(disk, listeners=[On(2, 10, fill), onward(disk, 10)])
    with pytest.raises(StudyError) as error:
        through(study)
    assert "trial 2 was stopped: cannot write checkpoint" in str(error.value)
    assert "No space left on device" in str(error.value)
    assert "resume the study" in str(error.value)
    assert [trial.number for trial in study[0].history if trial.pending] == [2]
    nothing_remains(ray, disk)

    ballast.unlink()
    assert same(through(small(disk, resume=True)), untouched)
    nothing_remains(ray, disk)
