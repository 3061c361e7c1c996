"""`kuberay.yaml`: read as Ray's autoscaler reads it, and by hand, without Kubernetes."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from raymix.cluster.config import Cluster
from raymix.cluster.growth import kinds_of, together
from raymix.cluster.resources import plan

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "cluster"
OBJECTS = {
    (found["kind"], found["metadata"]["name"]): found
    for found in yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    if found
}
RAY = OBJECTS["RayCluster", "raymix"]
MLFLOW = OBJECTS["Deployment", "raymix-mlflow"]

pytestmark = [
    # Ray's autoscaler reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
]


def pods():
    """The description of every pod."""
    groups = [RAY["spec"]["headGroupSpec"], *RAY["spec"]["workerGroupSpecs"], MLFLOW["spec"]]
    return [group["template"]["spec"] for group in groups]


def derived(described):
    """What Ray's autoscaler makes of the cluster; it validates it, too."""
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    return _derive_autoscaling_config_from_ray_cr(described)


def test_ray_derives_machines_that_hold_the_pools_of_the_comment():
    assert RAY["apiVersion"] == "ray.io/v1"
    assert RAY["spec"]["enableInTreeAutoscaling"] is True
    described = derived(RAY)
    assert described["idle_timeout_minutes"] == 15
    assert described["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    ((machine, count),) = kinds_of(described)
    assert (machine["CPU"], machine["GPU"], count) == (44, 4, 8)
    found = plan(Cluster(num_workers=4), [{"CPU": 0.0}], together(kinds_of(described)))
    assert (found.pools, found.need.gpus) == (8, 1.0)


def test_ray_refuses_a_group_whose_cpus_it_cannot_know():
    broken = yaml.safe_load(yaml.safe_dump(RAY))
    container = broken["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    del container["resources"]
    with pytest.raises(ValueError, match="group gpu"):
        derived(broken)


def test_token_authentication_is_on_and_no_secret_is_written():
    assert RAY["spec"]["authOptions"] == {"mode": "token"}
    for pod in pods():
        for variable in pod["containers"][0]["env"]:
            if re.search("TOKEN|SECRET|KEY|PASSWORD", variable["name"]):
                assert set(variable) == {"name", "valueFrom"}
                assert set(variable["valueFrom"]) == {"secretKeyRef"}


def test_nothing_is_reached_from_outside():
    assert {kind for kind, _ in OBJECTS} == {
        "PersistentVolumeClaim",
        "RayCluster",
        "Deployment",
        "Service",
        "NetworkPolicy",
    }
    assert OBJECTS["Service", "raymix-mlflow"]["spec"]["type"] == "ClusterIP"
    assert RAY["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not any(pod.get("hostNetwork") for pod in pods())
    assert not any(
        "hostPort" in port for pod in pods() for port in pod["containers"][0].get("ports", ())
    )
    policy = OBJECTS["NetworkPolicy", "raymix-mlflow"]["spec"]
    assert policy["podSelector"]["matchLabels"] == MLFLOW["spec"]["template"]["metadata"]["labels"]
    assert policy["ingress"] == [
        {
            "from": [{"podSelector": {"matchLabels": {"ray.io/cluster": RAY["metadata"]["name"]}}}],
            "ports": [{"port": 5000}],
        }
    ]


def test_all_pods_share_one_volume_in_which_caches_and_relative_paths_lie():
    claims = {name for kind, name in OBJECTS if kind == "PersistentVolumeClaim"}
    for pod in pods():
        volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
        assert volumes["shared"] == "raymix-shared"
        assert set(volumes.values()) <= claims
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert mounts["shared"] == "/shared"
    modes = OBJECTS["PersistentVolumeClaim", "raymix-shared"]["spec"]["accessModes"]
    assert modes == ["ReadWriteMany"]
    for pod in pods()[:-1]:
        container = pod["containers"][0]
        assert container["workingDir"] == "/shared"
        said = {v["name"]: v.get("value", "") for v in container["env"]}
        assert said["HF_HOME"].startswith("/shared/")
        assert said["RAYMIX_CACHE"].startswith("/shared/")
        assert said["MLFLOW_TRACKING_URI"] == "http://raymix-mlflow:5000"


def test_the_image_has_this_project_and_the_ray_that_it_asks_for():
    (base,) = re.findall("^FROM rayproject/ray:([\\d.]+)-py311$", dockerfile(), re.MULTILINE)
    assert RAY["spec"]["rayVersion"] == base
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default,train,tune]>={base.rsplit('.', 1)[0]},<2.61" in asked
    assert 'pip install --no-cache-dir --editable "/home/ray/raymix[s3,gs]"' in dockerfile()
    assert len({pod["containers"][0]["image"] for pod in pods()}) == 1


def dockerfile():
    return (FOLDER / "Dockerfile").read_text()
