"""Two real nodes, one of which cannot take part: refused before any training, and named."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pool_processes import log
from pool_studies import toy_setup, toy_study

from raymix.cluster.config import Cluster as Settings
from raymix.cluster.nodes import check_here, terms
from raymix.cluster.tune import tune_study
from raymix.core.codec import encode
from raymix.core.errors import ClusterError

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Ray's test cluster reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
    # It leaves the pipes of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def another(two_nodes, address, monkeypatch):
    """Adds a node with more before its path and in a folder of its own, for the time of a test."""
    added = []

    def add(first, folder=None):
        path = os.environ["PYTHONPATH"]
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join([str(first), path]))
            patch.chdir(folder or Path.cwd())
            added.append(two_nodes.add_node(num_cpus=2))
        return added[-1]

    yield add
    for node in added:
        two_nodes.remove_node(node)
    # One that was too slow to say good-bye is missed only after seconds.
    two_nodes.wait_for_nodes(60)


def refused(folder, setup=None, **settings):
    """What is said, and that nothing was trained or kept."""
    study = toy_study(folder)
    try:
        with pytest.raises(ClusterError) as error:
            tune_study(
                study, setup or toy_setup(folder), Settings(**settings), trainer="pool_trainers:Toy"
            )
        assert len(study.history) == 0
    finally:
        study.close()
    # Nothing was trained, so the next start is a first one, whatever has changed.
    toy_study(folder, trials=5).close()
    assert log(folder) == []
    assert sorted(p.name for p in folder.iterdir() if "shared" in p.name) == []
    return str(error.value)


def test_another_version_is_named_with_its_node(another, tmp_path):
    # Versions are read from what is first on the path.
    described = tmp_path / "first" / "transformers-4.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.0\n")
    node = another(tmp_path / "first")
    before = time.monotonic()
    said = refused(tmp_path)
    print(f"refused in {time.monotonic() - before:.1f} s: {said}")
    assert f"({node.node_id[:8]}): transformers is 4.0 there and 5." in said
    assert said.count("node ") == 1


def test_a_model_and_a_folder_that_a_node_does_not_see(another, tmp_path, monkeypatch):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    (mine / "model").mkdir(parents=True)
    theirs.mkdir()
    node = another(HERE, theirs)
    monkeypatch.chdir(mine)
    # Workers are in the folder in which their node was started.
    setup = replace(toy_setup("study"), models={"target": "model"})
    said = refused(tmp_path / "history", setup)
    for what in ("model_name_or_path: 'model'", "study.output_dir 'study'"):
        assert f"({node.node_id[:8]}): it does not see {what}" in said


def test_a_node_that_comes_later_is_asked_by_its_workers(another, tmp_path):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(log_to_driver=False)
    try:
        with terms(toy_setup(tmp_path / "study")) as asked:
            there = NodeAffinitySchedulingStrategy(another(HERE).node_id, soft=False)
            look = ray.remote(check_here).options(num_cpus=0, scheduling_strategy=there)
            ray.get(look.remote(encode(asked)))
            old = encode(replace(asked, versions={**asked.versions, "torch": "1.0"}))
            with pytest.raises(ClusterError, match=r"torch is 2\..* there and 1\.0 where"):
                ray.get(look.remote(old))
        assert list((tmp_path / "study").iterdir()) == []
    finally:
        ray.shutdown()


def test_more_than_there_is_is_refused_at_once(address, tmp_path):
    said = refused(tmp_path / "gpu", use_gpu=True)
    assert "cluster.use_gpu is set but there is no GPU" in said
    said = refused(tmp_path / "nine", num_workers=9)
    assert "asked for 9 worker(s) with 1 CPU each; the cluster has 3 node(s): " in said
