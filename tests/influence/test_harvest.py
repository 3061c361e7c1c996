"""What is harvested in a pass, example by example, against plain automatic differentiation."""

import numpy as np
import pytest
import torch
from small_jobs import tiny_config
from small_networks import Stub, batched, chains, everything, fit, language_model
from torch import nn
from torch.nn.functional import cross_entropy

from raymix.core.errors import InfluenceError
from raymix.influence import curvature
from raymix.influence.batch import drawn_labels
from raymix.influence.curvature import Corrections, covariances, eigenvectors
from raymix.influence.gradients import correct, gradients
from raymix.influence.layers import choose
from raymix.influence.measure import Plan, measure
from raymix.train.config import Training
from raymix.train.model import Model
from raymix.train.pretrained import adapted
from raymix.train.shard import World

VOCABULARY = 64
CPU = torch.device("cpu")


def network_of(family: str) -> Model:
    """A tiny model after a few steps; "lora": a llama with adapters that have left zero."""
    if family != "lora":
        model = language_model(tiny_config(family), 5)
    else:
        training = Training(use_peft=True, lora_r=3, lora_alpha=6)
        module = adapted(language_model(tiny_config("llama"), 5).module, training)
        for part in module.modules():
            part._forward_pre_hooks.clear()
        model = Model("tiny", module, World(), bf16=False, dtype=torch.float32)
        module.eval()
    fit(model, batched(model, rows()), 20)
    for name, value in model.module.named_parameters():
        if name.endswith(".bias") and value.requires_grad:
            nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


def rows(seed: int = 1):
    return chains(seed, 2, 9, VOCABULARY)


def matrices_of(layers) -> list[torch.Tensor]:
    """What autograd has left at each layer [o, i], a bias as the last column."""
    made = []
    for layer in layers:
        parts = [torch.zeros_like(t) if t.grad is None else t.grad for t in layer.tensors]
        made.append(torch.cat([part.reshape(layer.shape.out, -1) for part in parts], dim=1).clone())
    return made


def row_losses(model, table, row, labels=None):
    """Summed loss of one row by itself, by transformers alone."""
    ids, mask = (torch.from_numpy(a.astype(np.int64))[None] for a in table.row(row))
    logits = model.module(input_ids=ids).logits[0, :-1]
    judged = mask[0, 1:] > 0
    targets = ids[0, 1:][judged] if labels is None else labels
    return cross_entropy(logits[judged], targets, reduction="sum")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "lora"])
def test_domain_gradients_are_autograds(family):
    """Grouped queries, a gated MLP, biases (qwen2) and adapters; rows one by one."""
    model, tables = network_of(family), rows()
    layers = choose(model, "all")
    biased = [layer.name for layer in layers if layer.bias is not None]
    assert len(biased) == (6 if family == "qwen2" else 0)
    assert len(layers) == (28 if family == "lora" else 14)
    found = gradients(model, layers, batched(model, tables, size=4), model.world)
    assert all(p.grad is None for p in model.module.parameters())
    for domain, table in enumerate(tables):
        for row in range(table.rows):
            row_losses(model, table, row).backward()
        for layer, expected in zip(layers, matrices_of(layers), strict=True):
            ours = found.sums(layer, [(domain, 0), (domain, 1)], CPU).sum(0)
            assert (ours - expected).abs().max() < 1e-5 * max(1e-3, float(expected.abs().max()))
        model.module.zero_grad()
        assert sum(found.tokens[domain, h] for h in (0, 1)) == table.loss_tokens.sum()
        total = sum(found.losses[domain, h] for h in (0, 1))
        with torch.no_grad():
            expected = sum(float(row_losses(model, table, r)) for r in range(table.rows))
        assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pack", [None, 40])
@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("family", ["qwen2", "lora"])
def test_eigenvalues_are_squares_of_single_rows_gradients(family, fisher, pack, monkeypatch):
    """Lambda = sum of w (Qs' G Qa)^2 / judged tokens, whichever way round it is computed."""
    monkeypatch.setattr(curvature, "_CHUNK", 700)  # several chunks a batch
    model, tables = network_of(family), rows()
    layers = choose(model, "all")
    sample_weights = (0.5, 2.0)
    sample = everything(tables)
    sample = type(sample)(sample.rows, sample_weights, sample.shares, sample.epochs)
    batches = batched(model, tables, sample, size=4, pack=pack)
    found = covariances(model, layers, batches, model.world, fisher, seed=7)
    judged = sum(
        w * float(t.loss_tokens.sum()) for w, t in zip(sample_weights, tables, strict=True)
    )
    tokens = sum(w * float(t.tokens.sum()) for w, t in zip(sample_weights, tables, strict=True))
    assert (found.judged, found.tokens) == pytest.approx((judged, tokens))
    rotations = eigenvectors(found, layers, model.world)
    corrections = Corrections(layers, rotations, CPU)
    correct(model, batches, corrections, layers, fisher, seed=7)
    ours = corrections.factors(layers, model.world)

    single = batched(model, tables, sample, size=1)
    expected = {layer.name: 0.0 for layer in layers}
    for batch in single:
        labels = None
        if fisher == "true":
            logits = model.logits(batch.input_ids, batch.position_ids, batch.index)
            labels = drawn_labels(logits, batch, 7)
        model.module.zero_grad()
        row = int(batch.keys[0]) - 1000 * batch.domain
        row_losses(model, tables[batch.domain], row, labels).backward()
        for layer, g in zip(layers, matrices_of(layers), strict=True):
            qa, qs = rotations.single().basis(layer)
            turned = (qs.T @ g @ qa).square()
            expected[layer.name] = expected[layer.name] + sample_weights[batch.domain] * turned
    for layer in layers:
        values = ours[layer.name].eigenvalues
        right = expected[layer.name] / judged
        assert (values - right).abs().max() < 1e-4 * float(right.max()), layer.name


def test_covariances_by_hand():
    """Inputs of every token, a 1 where there is a bias; output gradients of the judged loss."""
    model, tables = network_of("qwen2"), rows()
    layers = choose(model, "all")
    batches = batched(model, tables, size=5)
    found = covariances(model, layers, batches, model.world, "empirical")
    by_name = {layer.name: layer for layer in layers}
    watched = ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj")
    heard: dict[str, list] = {name: [] for name in watched}
    graded: dict[str, list] = {name: [] for name in watched}

    def hook(name):
        def hears(module, inputs, output):
            heard[name].append(inputs[0].detach()[0])
            output.register_hook(lambda g: graded[name].append(g[0]))

        return hears

    handles = [by_name[name].module.register_forward_hook(hook(name)) for name in watched]
    for table in tables:
        for row in range(table.rows):
            row_losses(model, table, row).backward()
    for handle in handles:
        handle.remove()
    tokens = sum(int(table.tokens.sum()) for table in tables)
    for name in watched:
        x, d = torch.cat(heard[name]), torch.cat(graded[name])
        layer = by_name[name]
        if layer.bias is not None:
            x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        a, s = found.inputs[layer.shape.source].float(), found.outputs[name].float()
        assert torch.allclose(a, x.T @ x, rtol=1e-4, atol=1e-4 * float(a.max()))
        assert torch.allclose(s, d.T @ d, rtol=1e-4, atol=1e-4 * float(s.max()))
        assert len(x) == tokens
    k = by_name[watched[0]]
    assert found.inputs[k.shape.source][-1, -1] == tokens


def test_layers_with_the_very_same_input_share_its_covariance():
    model = network_of("qwen2")
    layers = choose(model, "all")
    sources = {layer.name.removeprefix("model.layers."): layer.shape.source for layer in layers}
    q, k, v, o = (f"self_attn.{x}_proj" for x in "qkvo")
    first = "model.layers.0."
    assert sources[f"0.{q}"] == sources[f"0.{k}"] == sources[f"0.{v}"] == f"{first}{q} and 1"
    assert sources[f"0.{o}"] == f"{first}{o}"
    gate, up, down = (f"mlp.{x}_proj" for x in ("gate", "up", "down"))
    assert sources[f"0.{gate}"] == sources[f"0.{up}"] == f"{first}{gate}"
    assert sources[f"0.{down}"] == f"{first}{down}"
    found = covariances(model, layers, batched(model, rows()), model.world)
    assert len(found.inputs) == 8
    assert len(found.outputs) == 14


def measured(model, tables, layers, **kwargs):
    train = batched(model, tables, **kwargs)
    held = batched(model, rows(2), **kwargs)
    return measure(model, layers, train, held, model.world, Plan(2, seed=3)).scores


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "lora"])
def test_packs_and_the_size_of_batches_change_nothing(family):
    """Equal to 1e-5 of each matrix's largest entry."""
    model, tables = network_of(family), rows()
    layers = choose(model, "all")
    plain = measured(model, tables, layers, size=1)
    for kwargs in ({"size": 3, "pack": 40}, {"size": 16}, {"size": 1, "pack": 64}):
        other = measured(model, tables, layers, **kwargs)
        for name, matrix in plain.matrices.items():
            ours, theirs = matrix.sum(0), other.matrices[name].sum(0)
            gap = float((ours - theirs).abs().max() / ours.abs().max())
            assert gap < 1e-5, (kwargs, name, gap)


def test_adapters_at_their_start_have_zeros_and_not_nan():
    """B = 0: no gradient reaches A, and its curvature is 0."""
    training = Training(use_peft=True, lora_r=3, lora_alpha=6)
    module = adapted(language_model(tiny_config("llama"), 5).module, training)
    for part in module.modules():
        part._forward_pre_hooks.clear()
    model = Model("tiny", module, World(), bf16=False, dtype=torch.float32)
    module.eval()
    layers = choose(model, "all")
    found = measured(model, rows(), layers, size=4)
    for number, layer in enumerate(layers):
        for name, matrix in found.matrices.items():
            assert matrix.isfinite().all(), (name, layer.name)
            assert ("lora_A" in layer.name) == bool((matrix[number] == 0).all()), (name, layer.name)
    assert {layer.name.rsplit(".", 2)[1] for layer in layers} == {"lora_A", "lora_B"}


class Odd(nn.Module):
    """Logits of the next token, in one of the ways that a linear layer cannot be dealt with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.embedding = nn.Embedding(12, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 12)
        if kind == "tied":
            self.second.weight = self.first.weight

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        x = self.embedding(ids)
        if self.kind == "twice":
            x = self.first(self.first(x).tanh())
        elif self.kind == "routed":
            flat = x.flatten(0, 1)
            x = self.first(flat[:5]).sum(0) + x
        else:
            x = self.first(x)
        return self.head(self.second(x.tanh()))


@pytest.mark.parametrize(
    ("kind", "layers", "message"),
    [
        ("tied", "all", r"layer 'first' shares its weight with another \(tied\)"),
        ("twice", "all", "layer 'first' runs twice in one forward pass"),
        ("routed", "all", r"layer 'first' is given \[5, 6\] and not whole rows"),
        ("plain", ("h*",), "matches the head 'head'"),
        ("plain", ("second", "he*"), "matches the head 'head'"),
        ("plain", ("third",), r"\['third'\] matches no layer.*there are first, second"),
        ("plain", "secnd", r"matches no layer \(did you mean 'second'\?\)"),
    ],
)
def test_layers_that_cannot_be_dealt_with_are_refused_by_name(kind, layers, message):
    with pytest.raises(InfluenceError, match=message):
        choose(Stub(Odd(kind)), layers)


@pytest.mark.parametrize("kind", ["twice", "routed"])
def test_they_can_be_left_out(kind):
    """The other layer's gradients are autograd's where its neighbour is odd."""
    network, tables = Stub(Odd(kind)), chains(0, 1, 8, 12)
    layers = choose(network, "second")
    batches = batched(network, tables)
    found = gradients(network, layers, batches, network.world)
    for batch in batches:
        logits = network.logits(batch.input_ids, None, batch.index)
        cross_entropy(logits, batch.targets, reduction="sum").backward()
    ours = found.sums(layers[0], [(0, 0), (0, 1)], CPU).sum(0)
    assert torch.allclose(ours, matrices_of(layers)[0], atol=1e-5)


def test_the_second_name_of_a_tied_weight_is_refused():
    with pytest.raises(InfluenceError, match=r"\['second'\] matches no layer"):
        choose(Stub(Odd("tied")), "second")


def test_a_head_tied_to_the_embedding_is_refused_by_name_too():
    model = network_of("llama")
    with pytest.raises(InfluenceError, match="matches the head 'lm_head'"):
        choose(model, "*_head")
    assert "lm_head" not in [layer.name for layer in choose(model, "all")]


def test_a_model_without_linear_layers_says_what_it_is_made_of():
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    with pytest.raises(InfluenceError, match=r"no linear layer that training moves.*Conv1D"):
        choose(language_model(config, 0), "all")


def test_frozen_layers_are_not_looked_at():
    network = Stub(Odd("plain"))
    network.module.second.requires_grad_(False)
    network.module.first.bias.requires_grad_(False)
    (layer,) = choose(network, "all")
    assert (layer.name, layer.bias, layer.shape.columns) == ("first", None, 6)


def test_half_precision_is_the_models_alone():
    """Under autocast covariances are still made in fp32 of what layers are given and return."""
    half = network_of("qwen2")
    half._bf16 = True
    layers = choose(half, "all")
    batches = batched(half, rows(), size=5)
    watched = layers[0]
    heard, graded = [], []

    def hears(module, inputs, output):
        heard.append(inputs[0].detach().float().flatten(0, 1))
        output.register_hook(lambda g: graded.append(g.float().flatten(0, 1)))

    handle = watched.module.register_forward_hook(hears)
    found = covariances(half, layers, batches, half.world, "empirical")
    handle.remove()
    kept = torch.cat([batch.owner.flatten() < batch.examples for batch in batches])
    x, d = torch.cat(heard)[kept], torch.cat(graded)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    a, s = found.inputs[watched.shape.source], found.outputs[watched.name]
    assert a.dtype == s.dtype == torch.float64
    a, s = a.float(), s.float()
    assert torch.allclose(a, x.T @ x, rtol=1e-5, atol=1e-5 * float(a.max()))
    assert torch.allclose(s, d.T @ d, rtol=1e-5, atol=1e-5 * float(s.max()))


def test_half_precision_moves_the_influence_little():
    model, tables = network_of("llama"), rows()
    layers = choose(model, "all")
    full = measured(model, tables, layers, size=4)
    model._bf16 = True
    half = measured(model, tables, layers, size=4)
    for name in ("ekfac", "identity"):
        ours, theirs = (side.matrices[name].sum(0).flatten() for side in (full, half))
        assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.99, name
