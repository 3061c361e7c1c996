"""What every test runs under: one thread, no GPU, no network, no deadlines, fixed generators."""

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
from hypothesis import settings

# No test measures time: a busy machine is no failure.
settings.register_profile("raymix", deadline=None)
settings.load_profile("raymix")


@pytest.fixture(autouse=True)
def _steady() -> None:
    """The legacy global generators, which libraries draw from, start the same in each test."""
    random.seed(0)
    np.random.seed(0)
