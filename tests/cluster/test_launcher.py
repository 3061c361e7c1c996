"""The files that `ray up` reads: checked with Ray's own schema and by hand, without a cloud."""

import copy
import ipaddress
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import pytest
import yaml

from raymix.cluster.config import Cluster
from raymix.cluster.growth import kinds_of, together
from raymix.cluster.resources import plan

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "cluster"
AWS, ONPREM = ROOT / "cluster.yaml", FOLDER / "onprem.yaml"
FILES = [AWS, *sorted(path for path in FOLDER.iterdir() if path.is_file())]
SECRET = re.compile(
    r"AKIA\w{12}|hf_\w{20}|PRIVATE KEY|(token|secret|password|key)\w*['\"]?\s*[:=]\s*['\"]?\w{20}",
    re.IGNORECASE,
)

pytestmark = [
    # Ray's launcher reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
]


def config(path):
    return yaml.safe_load(path.read_text())


def validated(described):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(described))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=["aws", "onprem"])
def test_ray_accepts_it_and_keeps_the_cluster_to_itself(path):
    prepared = validated(config(path))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in prepared[key] if "ray start" in command]
        assert "RAY_AUTH_MODE=token ray start" in start
    (head,) = [c for c in prepared["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=["aws", "onprem"])
def test_this_checkout_is_brought_and_installed(path):
    described = config(path)
    mounts = dict(described["file_mounts"])
    # It is made by the command in the file's first lines.
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert "ray get-auth-token --generate" in path.read_text()
    assert {there: (ROOT / here).resolve() for there, here in mounts.items()} == {"~/raymix": ROOT}
    commands = described["setup_commands"] + described["head_start_ray_commands"]
    assert any("pip install --quiet --editable ~/raymix" in command for command in commands)
    named = [n for c in commands for n in re.findall(r"~/raymix/([\w/.]+)", c)]
    assert {"experiments/cluster/environment.sh", "experiments/cluster/mlflow.sh"} == set(named)
    assert all((ROOT / name).is_file() for name in named)
    assert os.access(FOLDER / "mlflow.sh", os.X_OK)


def test_ray_refuses_what_is_wrong():
    with pytest.raises(jsonschema.ValidationError, match="nonsense"):
        validated({**config(AWS), "nonsense": 1})
    described = config(ONPREM)
    del described["provider"]["head_ip"]
    with pytest.raises(click.ClickException):
        validated(described)


def test_the_machines_hold_the_pools_that_the_comment_promises():
    prepared = validated(config(AWS))
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    head, machines = {"CPU": 0.0}, kinds_of(prepared)
    assert machines == (({"CPU": 48, "GPU": 4}, 8),)
    for workers, pools in ((4, 8), (1, 32)):
        found = plan(Cluster(num_workers=workers), [head], together(machines))
        assert (found.pools, found.need.gpus, found.growing) == (pools, 1.0, True)
    local = validated(config(ONPREM))
    assert kinds_of(local) == ()
    (kind,) = local["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(local["provider"]["worker_ips"])


def test_spot_machines_are_on_demand_until_two_lines_are_uncommented():
    assert "MarketType" not in yaml.safe_dump(config(AWS))
    lines = ("# InstanceMarketOptions:", "#   MarketType: spot")
    text = AWS.read_text()
    for line in lines:
        assert text.count(line) == 1
        text = text.replace(line, line.replace("# ", "", 1))
    prepared = validated(yaml.safe_load(text))
    options = prepared["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"]
    assert options == {"MarketType": "spot"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_stands_in_it_and_no_address_is_public(path):
    text = path.read_text()
    assert not SECRET.search(text)
    for address in re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text):
        assert ipaddress.ip_address(address).is_private
        # Kubernetes' pods have a network of their own; see test_kuberay.py.
        assert address != "0.0.0.0" or path.name == "kuberay.yaml"


def shell(command, home):
    return subprocess.run(
        ["bash", "-euc", command],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout


def test_every_shell_has_the_shared_folders_and_the_users_secrets(tmp_path):
    source = f". {FOLDER / 'environment.sh'}; env"
    found = dict(line.split("=", 1) for line in shell(source, tmp_path).splitlines() if "=" in line)
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["HF_HOME"].startswith("/shared/")
    assert found["RAYMIX_CACHE"].startswith("/shared/")
    assert found["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    (tmp_path / ".raymix.env").write_text("HF_TOKEN=mine\n")
    assert "HF_TOKEN=mine" in shell(source, tmp_path).splitlines()
    shell(f"bash -n {FOLDER / 'mlflow.sh'}", tmp_path)


def test_a_script_that_ray_submit_has_copied_finds_its_neighbours(tmp_path):
    script = tmp_path / "ideal_vs_doremi.py"
    script.write_text((ROOT / "experiments" / script.name).read_text())
    paths = [str(ROOT / "experiments"), str(ROOT)]
    said = subprocess.run(
        [sys.executable, str(script), "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    assert "--folder" in said.stdout
