"""EK-FAC and the exact solver against the Gauss-Newton matrix written out in float64."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from small_networks import (
    Stub,
    Tokenwise,
    batched,
    by_layer,
    chains,
    cosines,
    fit,
    fitted,
    llama,
    mlp,
    solved,
    table,
    written_out,
)
from torch import nn

from raymix.influence.curvature import Corrections, covariances, eigenvectors
from raymix.influence.exact import GaussNewton, exact, solve
from raymix.influence.gradients import correct, gradients
from raymix.influence.layers import choose

DAMPINGS = (0.01, 0.1, 1.0)


def kinds(kind: str, seed: int):
    """A network after a short training, its batches, and small ones for the Jacobians."""
    if kind == "mlp":
        network, tables = mlp(seed), chains(seed, 3, 60, 16, prompt=1)
    else:
        network, tables = llama(seed, 16, blocks=1), chains(seed, 3, 24, 16)
    fit(network, batched(network, tables))
    return network, batched(network, tables, size=64), batched(network, tables, size=4)


@pytest.fixture(scope="module")
def dense():
    """By kind and seed: network, layers, batches, and all of it written out."""
    torch.set_num_threads(1)
    made = {}

    def make(kind: str, seed: int):
        if (kind, seed) not in made:
            network, batches, small = kinds(kind, seed)
            layers = choose(network, "all")
            written = written_out(network, layers, small)
            made[kind, seed] = network, layers, batches, written, written.gauss_newton()
        return made[kind, seed]

    return make


@pytest.mark.parametrize("kind", ["mlp", "llama"])
def test_gradients_of_domains_and_halves_are_those_of_their_tokens(kind, dense):
    network, layers, batches, written, _ = dense(kind, 0)
    found = gradients(network, layers, batches, network.world)
    each = written.gradients()
    for domain in range(3):
        parts = [
            found.sums(layer, [(domain, 0), (domain, 1)], torch.device("cpu")) for layer in layers
        ]
        ours = torch.cat([part.sum(0).flatten() for part in parts])
        theirs = each[written.domains == domain].sum(0)
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
        judged = sum(found.tokens[domain, half] for half in (0, 1))
        assert judged == int((written.domains == domain).sum())


@pytest.mark.parametrize("kind", ["mlp", "llama"])
def test_drawn_labels_make_the_true_diagonal_on_average(kind, dense):
    """Over 60 draws of labels, in the eigenbasis of the first: the diagonal of each block."""
    network, layers, batches, written, matrix = dense(kind, 0)
    peers = network.world
    rotations = eigenvectors(covariances(network, layers, batches, peers), layers, peers)
    sums = defaultdict(list)
    for seed in range(60):
        corrections = Corrections(layers, rotations, peers.device)
        correct(network, batches, corrections, layers, seed=seed)
        for name, factors in corrections.factors(layers, peers).items():
            sums[name].append(factors.eigenvalues.double())
    at = 0
    for layer, size in zip(layers, written.sizes, strict=True):
        block = matrix[at : at + size, at : at + size]
        at += size
        qa, qs = (q.double() for q in rotations.basis(layer))
        basis = torch.kron(qs, qa)
        true = (basis * (block @ basis)).sum(0).view(layer.shape.out, -1)
        found = torch.stack(sums[layer.name])
        assert float(found.sum()) / 60 == pytest.approx(float(block.trace()), rel=0.03)
        assert float(cosines(found.mean(0).flatten(), true.flatten())) > 0.995
        # Where logits only shift together, there is nothing but rounding.
        gap = (found.mean(0) - true) / (found.std(0) / 60**0.5 + 1e-6 * true.max())
        # As normal as means of 60 skewed numbers are: few beyond 3.
        assert float((gap.abs() > 3).double().mean()) < 0.03
        # The eigenvalues of the covariances are another diagonal of about the same trace.
        assert float(rotations.kronecker(layer).sum()) == pytest.approx(float(block.trace()), rel=1)


def test_ekfac_is_nearer_to_the_whole_matrix_than_kfac_and_identity(dense):
    """Vectors: gradients of a quarter of the tokens, 20 for each of 5 seeds."""
    for kind in ("mlp", "llama"):
        off = defaultdict(list)
        for seed in range(5):
            network, layers, batches, written, matrix = dense(kind, seed)
            factors = fitted(network, layers, batches, seed=seed)
            each, draw = written.gradients(), torch.Generator().manual_seed(seed)
            quarter = len(each) // 4
            vectors = torch.stack(
                [
                    each[torch.randperm(len(each), generator=draw)[:quarter]].mean(0)
                    for _ in range(20)
                ]
            )
            for damping in DAMPINGS:
                whole = matrix + torch.diag(written.damping(matrix, damping))
                truth = torch.linalg.solve(whole, vectors.T).T
                ways = {
                    "ekfac": solved(factors, layers, vectors, damping),
                    "kfac": solved(factors, layers, vectors, damping, kronecker=True),
                    "identity": vectors,
                }
                for name, found in ways.items():
                    off[damping, name].append(float(1 - cosines(found, truth).mean()))
        for damping in DAMPINGS:
            mean = {name: np.mean(off[damping, name]) for name in ("ekfac", "kfac", "identity")}
            assert mean["ekfac"] < mean["kfac"] < mean["identity"], (kind, damping, mean)


def test_one_layer_with_independent_sides_is_exact():
    """Logits W x + b at W = 0: p does not depend on x, so the Fisher is (diag p - p p') (x) A."""
    torch.manual_seed(0)
    vocabulary, features = 12, 8
    embedding = nn.Embedding(vocabulary, features).requires_grad_(False)
    embedding.weight.copy_(embedding.weight @ torch.randn(features, features) + 1.0)
    layer = nn.Linear(features, vocabulary)
    layer.bias.requires_grad_(False)
    layer.weight.data.zero_()
    layer.bias.data.normal_()
    network = Stub(Tokenwise(embedding, layer))
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, vocabulary, 21).tolist(), [1] * 21) for _ in range(3000)]
    batches = batched(network, [table("d", rows)], size=500)
    layers = choose(network, "all")

    p = layer.bias.detach().double().softmax(0)
    sigma = torch.diag(p) - torch.outer(p, p)

    def kronecker(shown) -> torch.Tensor:
        x = torch.cat([embedding(b.input_ids).flatten(0, 1)[b.index] for b in shown]).double()
        return torch.kron(sigma, x.T @ x / len(x))

    few = batched(network, [table("d", rows[:20])], size=5)
    written = written_out(network, layers, few).gauss_newton()
    assert torch.allclose(written, kronecker(few), atol=1e-6 * float(written.max()), rtol=0)

    matrix = kronecker(batches)
    factors = fitted(network, layers, batches)
    vectors = torch.randn(20, vocabulary * features, generator=torch.Generator().manual_seed(1))
    for damping in DAMPINGS:
        shift = damping * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
        truth = torch.linalg.solve(matrix + shift, vectors.double().T).T
        for kfac in (False, True):
            found = solved(factors, layers, vectors, damping, kfac)
            assert float(cosines(found, truth).min()) > 0.999
            scale = float((found.double() * truth).sum() / (truth * truth).sum())
            assert scale == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kind", ["mlp", "llama"])
def test_gauss_newton_products_are_the_dense_ones(kind, dense):
    network, layers, batches, written, matrix = dense(kind, 0)
    damping = written.damping(matrix, 0.1)
    product = GaussNewton(network, layers, batches, in_tensors(layers, damping).float())
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, len(matrix), generator=draw, dtype=torch.float64)
    found = product(in_tensors(layers, vectors).float())
    for ours, vector in zip(found, vectors, strict=True):
        expected = in_tensors(layers, matrix @ vector + damping * vector)
        assert (ours - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("kind", "damping"), [("mlp", 0.01), ("mlp", 0.1), ("mlp", 1.0), ("llama", 0.1)]
)
def test_the_exact_solution_is_the_dense_one(kind, damping, dense):
    """And influence is its product with the other side's gradient."""
    network, layers, batches, written, matrix = dense(kind, 0)
    shift = written.damping(matrix, damping)
    whole = matrix + torch.diag(shift)
    each = written.gradients()
    mean = torch.stack([each[written.domains == d].mean(0) for d in range(3)])
    truth = torch.linalg.solve(whole, mean.T).T
    most = (mean @ truth.T).abs().max()
    dense_order = in_tensors(layers, torch.arange(len(matrix))[None])[0]
    moved = whole[dense_order][:, dense_order]

    product = GaussNewton(network, layers, batches, in_tensors(layers, shift).float())
    found = solve(product, in_tensors(layers, mean).float()).double()
    left = in_tensors(layers, mean) - found @ moved
    assert float((left.norm(dim=1) / mean.norm(dim=1)).max()) < 1.1e-4
    assert (found @ in_tensors(layers, mean).T - truth @ mean.T).abs().max() < 1e-3 * most

    g = gradients(network, layers, batches, network.world)
    shifts = [float(part[0]) for part in torch.split(shift, written.sizes)]
    influence = exact(network, layers, batches, g, g, 3, shifts, network.world)
    assert (influence + mean @ truth.T).abs().max() < 1e-3 * most


def in_tensors(layers, vectors):
    """Vectors [..., P] by matrices with the bias as last column, as weight, then bias."""
    made = []
    for layer, part in zip(layers, by_layer(layers, vectors), strict=True):
        inner = layer.module.in_features
        made += [part[..., :inner].flatten(-2), part[..., inner:].flatten(-2)]
    return torch.cat(made, dim=-1)
