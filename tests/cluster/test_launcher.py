"""`cluster.yaml` is what `ray up` reads: checked with Ray's own schema, without a cloud."""

import copy
from pathlib import Path

import jsonschema
import pytest
import yaml

from raymix.cluster.config import Cluster
from raymix.cluster.resources import plan

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())

pytestmark = [
    # Ray's launcher reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
]


def validated(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_it():
    prepared = validated(CONFIG)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    assert any("pip install" in command for command in prepared["setup_commands"])
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in prepared[key][-1]


def test_ray_refuses_an_unknown_key():
    with pytest.raises(jsonschema.ValidationError, match="nonsense"):
        validated({**CONFIG, "nonsense": 1})


def test_its_machines_hold_the_pools_that_its_comment_promises():
    kinds = CONFIG["available_node_types"]
    head, gpu = kinds["head"]["resources"], kinds["gpu"]["resources"]
    most = {name: count * kinds["gpu"]["max_workers"] for name, count in gpu.items()}
    found = plan(Cluster(address="auto", num_workers=4), [head], most)
    assert (found.pools, found.need.gpus, found.growing) == (8, 1.0, True)
