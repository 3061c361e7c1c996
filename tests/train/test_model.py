"""What the loop relies on in a model: losses, packing, reset; and which models are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_tables import DOMAINS, VOCABULARY, write_rows

from raymix.core.errors import TrainingError
from raymix.data.batches import Item
from raymix.data.store import open_table
from raymix.train.config import Training
from raymix.train.measure import micro
from raymix.train.pretrained import load
from raymix.train.shard import World

FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "cohere", "granite", "gpt2")


def _load(folder, lora=False, **training):
    return load(folder, Training(**training), World(), lora=lora, trust=False)


def _item(table, *rows):
    tokens, loss = table.tokens[list(rows)].sum(), table.loss_tokens[list(rows)].sum()
    return Item(0, rows, int(tokens), int(loss))


def _micro(items, table, scale=1.0):
    return micro(items, [table], np.full(1, scale, np.float32), torch.device("cpu"))


@pytest.fixture
def table(stores):
    return open_table(stores["ants"]["train"])


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_transformers_own(family, model_folder, table):
    model = _load(model_folder(family))
    assert model._selects
    items = [_item(table, row) for row in range(6)]
    ours = model.losses(_micro(items, table))
    total = 0.0
    for row in range(6):
        ids, mask = (torch.from_numpy(a.astype(np.int64))[None] for a in table.row(row))
        labels = torch.where(mask > 0, ids, -100)
        with torch.no_grad():
            total += float(model.module(input_ids=ids, labels=labels).loss) * int(mask.sum())
    assert ours.shape == (sum(item.loss_tokens for item in items),)
    assert ours.detach().sum().item() == pytest.approx(total, abs=2e-4)


def test_full_logits_where_the_head_does_not_select(model_folder, table):
    model = _load(model_folder("llama"))
    items = [_item(table, row) for row in range(6)]
    chosen = model.losses(_micro(items, table))
    model._selects = False
    torch.testing.assert_close(model.losses(_micro(items, table)), chosen)


@pytest.mark.parametrize("family", FAMILIES[:6])
def test_packed_equals_unpacked(family, model_folder, table):
    """Loss of each token, and the gradient, are the same whether rows share a pack or not."""
    model = _load(model_folder(family), packing=True)
    model.module.eval()
    rows = [(0, 1, 2), (3, 4), (5,)]
    packed = [_item(table, *pack) for pack in rows]
    single = [_item(table, row) for pack in rows for row in pack]
    results = []
    for items in (packed, single):
        model.reset(0)
        losses = model.losses(_micro(items, table))
        losses.sum().backward()
        gradients = [p.grad.clone() for p in model.parameters.values()]
        results.append((losses.detach(), gradients))
    (packed_losses, packed_gradients), (losses, gradients) = results
    torch.testing.assert_close(packed_losses, losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed_gradients, gradients, atol=1e-4, rtol=1e-4)


def test_packing_is_refused_where_examples_see_each_other(tmp_path):
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="packed examples see each other"):
        _load(str(tmp_path), packing=True)
    _load(str(tmp_path))


def test_encoder_decoder_is_refused_by_name(tmp_path):
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match=r"encoder-decoder \(t5\)"):
        _load(str(tmp_path))


@pytest.mark.parametrize("content", [None, "{", json.dumps({"model_type": "no-such"})])
def test_no_model_there(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(TrainingError, match="cannot load model"):
        _load(str(tmp_path))


def test_remote_code_is_not_run(tmp_path, model_folder):
    folder = Path(model_folder("llama"))
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "stranger"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(TrainingError, match="trust_remote_code"):
        _load(str(tmp_path))


def test_pickled_weights_that_run_code_are_refused(tmp_path, model_folder):
    (tmp_path / "config.json").write_text((Path(model_folder("llama")) / "config.json").read_text())
    torch.save({"lm_head.weight": _Mischief()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TrainingError, match="cannot load model"):
        _load(str(tmp_path))


class _Mischief:
    def __reduce__(self):
        return (print, ("code in a pickle ran",))


def test_reset_restores_every_bit(model_folder, table):
    model = _load(model_folder("llama"))
    before = {name: p.detach().clone() for name, p in model.parameters.items()}
    batch = _micro([_item(table, 0)], table)
    optimizer = torch.optim.SGD(model.parameters.values(), lr=1.0)
    model.losses(batch).sum().backward()
    optimizer.step()
    assert not torch.equal(model.parameters["model.norm.weight"], before["model.norm.weight"])
    model.reset(0)
    assert all(torch.equal(p, before[name]) for name, p in model.parameters.items())
    assert all(p.grad is None for p in model.parameters.values())


def test_adapters_are_drawn_from_the_seed(model_folder):
    model = _load(model_folder("llama"), lora=True, lora_r=4)
    assert all("lora_" in name for name in model.parameters)
    drawn = {}
    for seed in (1, 2, 1):
        model.reset(seed)
        drawn.setdefault(seed, []).append(
            torch.cat([p.flatten() for p in model.parameters.values()])
        )
    assert torch.equal(*drawn[1])
    assert not torch.equal(drawn[1][0], drawn[2][0])
    zeros = [p for name, p in model.parameters.items() if "lora_B" in name]
    assert zeros
    assert all(not p.any() for p in zeros)


def test_a_batch_without_items_has_no_loss_and_zero_gradients(model_folder, table):
    model = _load(model_folder("gemma2"))
    batch = _micro([], table)
    losses = model.losses(batch)
    assert losses.shape == (0,)
    (losses * batch.scale).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters.values())


def test_tokens_outside_the_vocabulary(setup_of, job_of, tmp_path, keep_points):
    from dataclasses import replace

    from raymix.train.worker import Worker

    path = write_rows(tmp_path / "t", DOMAINS[0], "train", [([1, VOCABULARY, 3], [0, 1, 1])])
    setup = setup_of()
    stores = {**setup.stores, DOMAINS[0]: {**setup.stores[DOMAINS[0]], "train": path}}
    result = Worker(replace(setup, stores=stores)).run(job_of(), keep_points)
    assert f"token {VOCABULARY} of domain 'ants'" in result.error
