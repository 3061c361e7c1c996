"""What every test runs under: one thread, no GPU, no network, a fixed start of the generators."""

from __future__ import annotations

import os
import random

os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _steady() -> None:
    """The legacy global generators, which libraries draw from, start the same in each test."""
    random.seed(0)
    np.random.seed(0)
