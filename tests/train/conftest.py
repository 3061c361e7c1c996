"""Tiny models and prepared tables, made once per session."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scripted import steered
from tiny_tables import DOMAINS, VOCABULARY, write_rows

from raymix.core.job import Stage, Status, TrainJob
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.data.store import open_table
from raymix.train.config import Setup, Training
from raymix.train.worker import Worker


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _rows(rng: np.random.Generator, domain: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Prompts of 3 to 8 tokens; answers of 2 to 6, the prompt's first ones shifted by domain."""
    rows = []
    for _ in range(count):
        prompt = rng.integers(4, VOCABULARY - 4, rng.integers(3, 9))
        answer = (np.resize(prompt, rng.integers(2, 7)) + domain) % VOCABULARY
        ids = [1, *prompt.tolist(), 2, *answer.tolist(), 3]
        rows.append((ids, [0] * (len(prompt) + 2) + [1] * (len(answer) + 1)))
    return rows


@pytest.fixture(scope="session")
def stores(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Three domains of 400, 300 and 200 rows, with 24 rows of eval and test each."""
    folder = tmp_path_factory.mktemp("tables")
    result = {}
    for d, name in enumerate(DOMAINS):
        rng = np.random.default_rng([7, d])
        sizes = {"train": 400 - 100 * d, "eval": 24, "test": 24}
        result[name] = {
            split: write_rows(folder / f"{name}-{split}.arrow", name, split, _rows(rng, d, size))
            for split, size in sizes.items()
        }
    return result


def config(family: str):
    """A config of `family` with about 20k parameters."""
    import transformers

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "tie_word_embeddings": True,
    }
    kinds = {
        "untied": transformers.LlamaConfig,
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "gemma": transformers.GemmaConfig,
        "gemma2": transformers.Gemma2Config,
        "gemma3": transformers.Gemma3TextConfig,
        "cohere": transformers.CohereConfig,
        "granite": transformers.GraniteConfig,
    }
    if family == "untied":
        sizes |= {"tie_word_embeddings": False, "vocab_size": 67, "intermediate_size": 45}
    if family in ("qwen2", "cohere", "granite"):
        del sizes["head_dim"]
    if family == "granite":
        sizes["logits_scaling"] = 2.0
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128
        )
    return kinds[family](**sizes)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0").save_pretrained(folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Folder of a tiny random model of the family asked for."""
    from transformers import AutoModelForCausalLM

    made: dict[str, str] = {}

    def make(family: str) -> str:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(11)
            AutoModelForCausalLM.from_config(config(family)).save_pretrained(folder)
            save_tokenizer(folder)
            made[family] = str(folder)
        return made[family]

    return make


@pytest.fixture
def setup_of(stores, model_folder, tmp_path):
    """A setup with a tiny model; arguments go to `Training`."""

    def make(family: str = "llama", **training) -> Setup:
        settings = {
            "learning_rate": 3e-3,
            "per_device_train_batch_size": 8,
            "max_length": 64,
            "warmup_steps": 0.1,
        }
        return Setup(
            models={"target": model_folder(family)},
            training=Training(**{**settings, **training}),
            stores=stores,
            output_dir=str(tmp_path / "out"),
        )

    return make


@pytest.fixture
def job_of(stores):
    """A job of one stage on the mixture .5 .3 .2; keyword arguments change the job or the stage."""

    def make(
        amount: int = 160,
        unit: Unit = Unit.EXAMPLES,
        weights: tuple[float, ...] = (0.5, 0.3, 0.2),
        seed: int = 3,
        trial: int = 1,
        stage: dict | None = None,
        **fields,
    ) -> TrainJob:
        tables = [open_table(stores[name]["train"]) for name in DOMAINS]
        domains = tuple(
            Domain(t.domain, t.rows, int(t.tokens.sum()), int(t.loss_tokens.sum())) for t in tables
        )
        budget = Budget(amount, unit)
        mixture = Mixture(DOMAINS, weights)
        space = Space(domains, budget, mixture, (0.0,) * 3, (1.0,) * 3, (float("inf"),) * 3)
        stages = (Stage(mixture, budget, **(stage or {})),)
        return TrainJob(trial, fields.pop("stages", stages), space, seed, **fields)

    return make


@pytest.fixture
def keep_points():
    """A report that keeps points and never stops; `.points` has them."""

    class Kept:
        def __init__(self) -> None:
            self.points = []

        def __call__(self, point) -> bool:
            self.points.append(point)
            return True

    return Kept()


@pytest.fixture
def heard(tmp_path, keep_points):
    """Runs a job with a reweighter; gives its result and what the reweighter heard."""

    def run(worker, job, reweighter):
        path = tmp_path / "heard.json"
        result = worker.run(steered(job, replace(reweighter, path=str(path))), keep_points)
        assert result.status is Status.DONE, result.error
        return result, json.loads(path.read_text())

    return run


@pytest.fixture
def reference(setup_of, job_of, keep_points, tmp_path):
    """The folder of a checkpoint of the model after a few steps."""
    setup = replace(setup_of(), output_dir=str(tmp_path / "reference"))
    return Worker(setup).run(job_of(160, seed=8, keep=True), keep_points).checkpoint
