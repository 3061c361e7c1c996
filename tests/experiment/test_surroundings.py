"""What an experiment takes from where it is run: MLflow's address, a GPU that is there or not."""

import pytest
import torch

from raymix.cluster.config import Cluster
from raymix.core.errors import ClusterError
from raymix.experiment.config import TrackingSettings
from raymix.experiment.run import _local_runner
from raymix.train.config import Setup, Training


def test_mlflow_is_where_the_environment_says_unless_the_experiment_does(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert TrackingSettings().tracking_uri == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert TrackingSettings().tracking_uri == "http://127.0.0.1:5000"
    assert TrackingSettings(tracking_uri="sqlite:///mine.db").tracking_uri == "sqlite:///mine.db"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_any_training(tmp_path):
    parts = Setup({"target": "toy"}, Training(), {}, str(tmp_path))
    with pytest.raises(ClusterError, match="use_gpu is set but this machine has no GPU"):
        _local_runner(parts, Cluster(runner="local", use_gpu=True))
