"""What every test runs under: one thread, no GPU, no network, no deadlines, fixed generators."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from typing import Any

os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    # Ray's workers would stand back behind the tests of another process, and be late.
    RAY_worker_niceness="0",
    TOKENIZERS_PARALLELISM="false",
)

import fsspec
import numpy as np
import pytest
from hypothesis import settings

# No test measures time: a busy machine is no failure.
settings.register_profile("raymix", deadline=None)
settings.load_profile("raymix")

# Two Rays that start at once on two cores may not be there in time; so these run one by one.
STARTS_RAY = (
    "cluster/",
    "driver_scaling",
    "ideal_vs_doremi",
    "node_lost",
    "scaling_curves",
    "strategies_script",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes (pytest -n 2) a file's tests run in one of them: they share fixtures.

    `--dist loadgroup` would be for this, but xdist 3.8 does not find groups under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "ray" if any(part in file for part in STARTS_RAY) else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _steady() -> None:
    """The legacy global generators, which libraries draw from, start the same in each test."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def _object_store() -> Iterator[None]:
    """A server that speaks S3, and an environment that leads to it, for child processes too."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield
    server.stop()


@pytest.fixture
def bucket(_object_store: None) -> Iterator[str]:
    """URL of a new bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    store = fsspec.filesystem("s3", use_listings_cache=False)
    store.mkdir(name)
    yield f"s3://{name}"
    store.rm(name, recursive=True)
