"""What an autoscaler may bring, read from descriptions as `ray up` and KubeRay leave them."""

import pytest
import yaml

from raymix.cluster import growth
from raymix.cluster.config import Cluster
from raymix.cluster.growth import check_machines, kinds_of, together
from raymix.cluster.resources import Need, plan
from raymix.core.errors import ClusterError

DESCRIBED = {
    "max_workers": 6,
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 16, "GPU": 4}, "max_workers": 8},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 2},
        "unknown": {"resources": {}, "max_workers": 2},
    },
}


def test_machines_that_may_be_added():
    assert kinds_of(DESCRIBED) == (({"CPU": 16, "GPU": 4}, 6), ({"CPU": 8}, 2))
    assert together(kinds_of(DESCRIBED)) == {"CPU": 16 * 6 + 8 * 2, "GPU": 24}
    assert together(kinds_of({})) is None


def test_a_cluster_that_is_only_a_head_has_room_for_what_may_come():
    found = plan(Cluster(num_workers=4), [{"CPU": 0.0}], together(kinds_of(DESCRIBED)))
    assert (found.pools, found.growing, found.need.gpus) == (6, True, 1.0)


def test_a_worker_larger_than_any_machine_is_refused():
    check_machines(Need(2, 16, 4), [{}], kinds_of(DESCRIBED))
    check_machines(Need(1, 32, 0), [{"CPU": 32}], kinds_of(DESCRIBED))
    with pytest.raises(ClusterError) as error:
        check_machines(Need(1, 8, 8), [{"CPU": 0}], kinds_of(DESCRIBED))
    assert "1 worker(s) with 8 CPU and 8 GPU each, but no machine holds one" in str(error.value)
    assert "have 0 CPU and 0 GPU, 16 CPU and 4 GPU, 8 CPU and 0 GPU. Lower" in str(error.value)


def test_the_description_is_read_where_ray_up_leaves_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert growth._bootstrap() is None
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(DESCRIBED))
    assert growth._bootstrap() == DESCRIBED
    path.write_text("{")
    assert growth._bootstrap() is None
    assert "cannot read what the autoscaler may add" in caplog.text
