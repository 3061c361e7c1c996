"""When the prepared data are published: where a node may come that does not see them, else not."""

import threading
from pathlib import Path

import pytest
import yaml

from raymix.cluster import growth
from raymix.cluster import sharing as module
from raymix.cluster.config import Cluster
from raymix.cluster.fleet import ground
from raymix.cluster.sharing import Sharing
from raymix.cluster.tune import TRAINER
from raymix.core.errors import ClusterError
from raymix.data.fetch import content_of
from raymix.train.tables import described


@pytest.fixture
def autoscaler(tmp_path, monkeypatch):
    """A description of a cluster that may bring a machine, where `ray up` leaves it."""
    kinds = {"cpu": {"resources": {"CPU": 4}, "max_workers": 2}}
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump({"max_workers": 2, "available_node_types": kinds}))
    monkeypatch.setenv("HOME", str(tmp_path))
    growth._described.cache_clear()
    yield
    growth._described.cache_clear()


def published(ray, setup, pools):
    """Names of what is published once the cluster is ready for a study."""
    with ground(Cluster(pools=pools), setup, TRAINER) as ready:
        ready.look()
        ray.kill(ready.desk)
    return sorted(path.name for path in (Path(setup.output_dir) / "data").glob("*"))


def test_where_all_nodes_see_them_nothing_is_published(ray_here, tiny, tmp_path):
    make, _ = tiny
    assert published(ray_here, make(tmp_path), pools=2) == []


def test_where_pools_wait_for_nodes_they_are_published_by_content(
    ray_here, tiny, tmp_path, autoscaler
):
    make, _ = tiny
    setup = make(tmp_path)
    assert published(ray_here, setup, pools=2) == []
    paths = [path for splits in setup.stores.values() for path in splits.values()]
    named = sorted(f"{content_of(path).sha256}.arrow" for path in paths)
    assert published(ray_here, setup, pools=6) == named


def test_a_folder_that_does_not_take_them_is_named(ray_here, tiny, tmp_path):
    make, _ = tiny
    (tmp_path / "data").write_text("a file")
    sharing = Sharing(described(make(tmp_path)))
    with pytest.raises(ClusterError, match=r"study.output_dir '.*': cannot publish .*File exists"):
        sharing.publish()


@pytest.fixture
def later(monkeypatch, tiny, tmp_path):
    """What publishes a study's tables; a node has come since it was made."""
    make, _ = tiny
    nodes = {"first"}
    monkeypatch.setattr(module, "_alive", lambda: set(nodes))
    made = Sharing(described(make(tmp_path)))
    made.look()
    assert made._thread is None
    nodes.add("second")
    return made


def test_nobody_waits_until_all_is_published_and_it_is_done_once(later, monkeypatch):
    begun, may = [], threading.Event()

    def publish(setup):
        begun.append(setup)
        assert may.wait(30)

    monkeypatch.setattr(module, "publish_tables", publish)
    for _ in range(3):
        later.look()
    may.set()
    later._thread.join()
    later.look()
    later._thread.join()
    assert len(begun) == 1


def test_a_publication_that_failed_is_tried_again_after_a_while(
    later, monkeypatch, tmp_path, caplog
):
    (tmp_path / "data").write_text("a file")

    def look():
        later.look()
        later._thread.join()
        return caplog.text.count("cannot publish the prepared data")

    assert look() == 1
    assert look() == 1, "at once it would fail again"
    later._next = 0.0
    assert look() == 2
    (tmp_path / "data").unlink()
    later._next = 0.0
    assert look() == 2
    assert len(list((tmp_path / "data").glob("*.arrow"))) == len(later._setup.contents)
