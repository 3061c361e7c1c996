"""A real Ray on this machine, a tiny real model and its data, made once per module or session."""

import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pool_processes import begin

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from raymix.core.mixture import Budget, Domain, Mixture, Space
from raymix.data.store import Table, open_table, write_table
from raymix.train.config import Setup, Training

NAMES = ("ants", "bees")
VOCABULARY = 64


@pytest.fixture(scope="session")
def patient():
    """Nodes may take longer to start than Ray allows."""
    from raymix.cluster import rehearsal

    with rehearsal.patient():
        yield


@pytest.fixture(scope="module")
def ray_here(patient):
    """Ray with four CPUs (they need not exist), started by the test as a notebook would."""
    import ray

    # Workers import this folder's trainers by path.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, sys.path)]
    )
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def start():
    """Starts studies in processes of their own; what a failed test leaves behind is killed."""
    started = []

    def start_one(*args, **settings):
        started.append(begin(*args, **settings))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def two_nodes(_object_store):
    """A head without CPUs and two nodes with two each; one for all tests, it starts slowly.

    What runs there knows where the object store is.
    """
    from raymix.cluster.rehearsal import machines

    patch = pytest.MonkeyPatch()
    here = str(Path(__file__).parent)
    patch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, sys.path)]))
    with machines(2, 2) as cluster:
        patch.undo()
        yield cluster


@pytest.fixture(scope="module")
def address(two_nodes):
    """The cluster of two nodes is the one that is found, by Ray in this process and its children.

    Nodes that are added import this folder's trainers by path, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        here = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, sys.path)]))
        patch.setenv("RAY_ADDRESS", two_nodes.address)
        yield two_nodes.address


@pytest.fixture(scope="module")
def nodes(two_nodes, address):
    """The cluster of two nodes, to which this process is connected."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    yield two_nodes
    ray.shutdown()


def _write(folder: Path, rng: np.random.Generator, domain: str, split: str, rows: int) -> str:
    """Rows of a prompt and its first tokens again, shifted by the domain; half bears loss."""
    shift = NAMES.index(domain)
    lengths = np.full(rows, 12)
    prompts = rng.integers(4, VOCABULARY - 4, (rows, 6))
    ids = np.concatenate([prompts, prompts + shift], axis=1).astype(np.int32)
    mask = np.tile(np.repeat([0, 1], 6), (rows, 1)).astype(np.uint8)
    path = folder / f"{domain}-{split}.arrow"
    write_table(
        Table(
            domain=domain,
            split=split,
            path=path,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            ids=ids.ravel(),
            mask=mask.ravel(),
            hashes=np.arange(rows, dtype=np.uint64),
        )
    )
    return str(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A setup without its output folder, and the space of its two domains."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(folder)
    rng = np.random.default_rng(0)
    stores = {
        name: {
            split: _write(folder, rng, name, split, rows)
            for split, rows in (("train", 300), ("eval", 40), ("test", 40))
        }
        for name in NAMES
    }
    tables = [open_table(stores[name]["train"]) for name in NAMES]
    domains = tuple(
        Domain(t.domain, t.rows, int(t.tokens.sum()), int(t.loss_tokens.sum())) for t in tables
    )
    prior = Mixture(NAMES, (0.5, 0.5))
    space = Space(domains, Budget(160), prior, (0.0,) * 2, (1.0,) * 2, (float("inf"),) * 2)
    training = Training(
        learning_rate=3e-3, per_device_train_batch_size=8, max_length=64, eval_steps=5
    )

    def make(output: Path) -> Setup:
        return Setup({"target": str(folder)}, training, stores, str(output))

    return make, space
