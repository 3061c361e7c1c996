"""One thread; and for whole jobs: tables and tiny models on disk, made once per session."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

# The ranks and the tables of the training's tests serve here too.
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from small_jobs import ROWS, tiny_config
from tiny_tables import VOCABULARY, write_rows

from raymix.core.job import Stage, TrainJob
from raymix.core.mixture import Budget, Domain, Mixture, Space
from raymix.data.store import open_table
from raymix.train.config import InfluenceSettings, Setup, Training


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _rows(rng: np.random.Generator, domain: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Prompts of 2 to 9 tokens; answers of 2 to 6, the prompt's first ones shifted by domain."""
    rows = []
    for _ in range(count):
        prompt = rng.integers(4, VOCABULARY - 4, rng.integers(2, 10))
        answer = (np.resize(prompt, rng.integers(2, 7)) + domain) % VOCABULARY
        ids = [1, *prompt.tolist(), 2, *answer.tolist(), 3]
        rows.append((ids, [0] * (len(prompt) + 2) + [1] * (len(answer) + 1)))
    return rows


@pytest.fixture(scope="session")
def stores(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Three domains of `ROWS` training rows and 9, 8 and 7 eval rows."""
    folder = tmp_path_factory.mktemp("influence-tables")
    result = {}
    for d, (name, count) in enumerate(ROWS.items()):
        rng = np.random.default_rng([17, d])
        sizes = {"train": count, "eval": 9 - d}
        result[name] = {
            split: write_rows(folder / f"{name}-{split}.arrow", name, split, _rows(rng, d, size))
            for split, size in sizes.items()
        }
    return result


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Folder of a tiny random model of the family asked for."""
    from transformers import AutoModelForCausalLM

    made: dict[str, str] = {}

    def make(family: str, seed: int = 11) -> str:
        name = f"{family}-{seed}"
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(folder)
            made[name] = str(folder)
        return made[name]

    return make


@pytest.fixture
def setup_of(stores, model_folder, tmp_path):
    """A setup with a tiny model; `influence` are its settings, the rest go to `Training`."""

    def make(family: str = "llama", influence: dict | None = None, **training) -> Setup:
        settings = {
            "learning_rate": 5e-3,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 3,
            "max_length": 48,
        }
        return Setup(
            models={"target": model_folder(family)},
            training=Training(**{**settings, **training}),
            stores=stores,
            output_dir=str(tmp_path / "out"),
            influence=InfluenceSettings(**(influence or {})),
        )

    return make


@pytest.fixture
def job_of(stores):
    """A job of one stage that ends with a kept checkpoint; keyword arguments change the job."""

    def make(amount: int = 160, seed: int = 3, trial: int = 1, **fields) -> TrainJob:
        names = tuple(ROWS)
        tables = [open_table(stores[name]["train"]) for name in names]
        domains = tuple(
            Domain(t.domain, t.rows, int(t.tokens.sum()), int(t.loss_tokens.sum())) for t in tables
        )
        budget = Budget(amount)
        mixture = Mixture(names, (0.6, 0.35, 0.05))
        space = Space(domains, budget, mixture, (0.0,) * 3, (1.0,) * 3, (float("inf"),) * 3)
        stages = fields.pop("stages", (Stage(mixture, budget),))
        return TrainJob(trial, stages, space, seed, **fields)

    return make
