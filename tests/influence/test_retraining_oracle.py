"""Influence against retraining where both can be had exactly: a softmax layer on frozen features.

The problem is convex and is solved to 1e-12, so the truth has no noise: each domain's weight is
moved by +10% and by -10% and the layer is trained anew. 20 problems of 8 domains of 15 to 150 rows.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr, wilcoxon
from small_networks import Stub, Tokenwise, batched, table
from torch import Tensor, nn

from raymix.influence.exact import exact
from raymix.influence.layers import choose
from raymix.influence.measure import Measured, Plan, measure

SEEDS, DOMAINS, CLASSES, FEATURES, WORDS = 20, 8, 6, 10, 200
RIDGE, STEP = 3e-3, 0.1


@dataclass(frozen=True)
class Problem:
    """Counts of answers by domain and word [K, words, C], of the train and of the eval rows."""

    features: Tensor
    rows: tuple
    held_rows: tuple
    counts: Tensor
    held: Tensor

    @property
    def shares(self) -> Tensor:
        return self.counts.sum((1, 2)) / self.counts.sum()


def problem(seed: int) -> Problem:
    """Domains that differ in which words they use and in what they answer; sizes 1 to 10."""
    rng = np.random.default_rng([42, seed])
    mix = rng.normal(size=(FEATURES, FEATURES)) * np.linspace(1.5, 0.3, FEATURES)
    features = rng.normal(size=(WORDS, FEATURES)) @ mix / np.sqrt(FEATURES)
    common = rng.normal(size=(CLASSES, FEATURES))
    sizes = np.exp(rng.uniform(np.log(15), np.log(150), DOMAINS)).astype(int)
    rows, held, counts = [], [], np.zeros((2, DOMAINS, WORDS, CLASSES))
    for domain, size in enumerate(sizes):
        own = common + 0.5 * rng.normal(size=(CLASSES, FEATURES))
        chance = np.exp(features @ own.T)
        chance /= chance.sum(1, keepdims=True)
        words = rng.dirichlet(np.full(WORDS, 0.2))
        for split, (made, amount) in enumerate(((rows, size), (held, 40))):
            content = []
            for _ in range(amount):
                ids = []
                for word in rng.choice(WORDS, size=4, p=words):
                    answer = int(rng.choice(CLASSES, p=chance[word]))
                    ids += [CLASSES + int(word), answer]
                    counts[split, domain, word, answer] += 1
                content.append((ids, [0, 1] * 4))
            made.append(table(f"d{domain}", content, first=1000 * domain))
    tensors = torch.from_numpy(counts)
    return Problem(torch.from_numpy(features), tuple(rows), tuple(held), *tensors)


def trained(made: Problem, weights: Tensor, start: Tensor | None = None) -> Tensor:
    """The layer [C, F] that minimises the mean loss at `weights` of the domains, by Newton steps.

    Counts are weights here, so the free total moves: sum_j share_j (1 + beta_j) loss_j + ridge.
    """
    x = made.features
    counts = torch.einsum("d,dwc->wc", weights, made.counts) / made.counts.sum()
    layer = torch.zeros(CLASSES, FEATURES).double() if start is None else start.clone()

    def objective(layer: Tensor) -> Tensor:
        return -(counts * (x @ layer.T).log_softmax(-1)).sum() + RIDGE / 2 * layer.square().sum()

    for _ in range(100):
        p = (x @ layer.T).softmax(-1)
        slope = (counts.sum(1, keepdim=True) * p - counts).T @ x + RIDGE * layer
        if slope.abs().max() < 1e-12:
            return layer
        curved = counts.sum(1)[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None])
        matrix = torch.einsum("wab,wf,wg->afbg", curved, x, x).reshape(layer.numel(), -1)
        matrix += RIDGE * torch.eye(layer.numel(), dtype=torch.float64)
        step = torch.linalg.solve(matrix, slope.flatten()).view_as(layer)
        while objective(layer - step) > objective(layer) + 1e-14:
            step /= 2
        layer = layer - step
    raise AssertionError("not converged")


def retrained(made: Problem, start: Tensor) -> Tensor:
    """d eval loss i / d beta_j by central differences of whole trainings [K', K]."""

    def losses(beta: Tensor) -> Tensor:
        scores = (made.features @ trained(made, 1 + beta, start).T).log_softmax(-1)
        return -(made.held * scores).sum((1, 2)) / made.held.sum((1, 2))

    eye = torch.eye(DOMAINS, dtype=torch.float64) * STEP
    return torch.stack([(losses(b) - losses(-b)) / (2 * STEP) for b in eye], dim=1)


def released(network: Stub, found: Measured, batches, held) -> Tensor:
    """The product of the authors' released code (`algorithms.md`, 1): here to score below ours.

    Rotates by Q G Q' instead of Q' G Q, takes eigenvalues from means over batches in that basis,
    multiplies by them instead of dividing, and does not damp.
    """
    (layer,) = found.layers
    x, d, g = [], [], []
    for batch in batches:
        if not batch.examples:
            continue
        inputs = network.embedding(batch.input_ids).flatten(0, 1)[batch.index]
        p = network.logits(batch.input_ids, None, batch.index).softmax(-1).detach()
        p[torch.arange(len(p)), batch.targets] -= 1
        x.append(inputs), d.append(p), g.append(p.T @ inputs / batch.examples)
    qa, qs = (torch.linalg.eigh(t.T @ t).eigenvectors for t in (torch.cat(x), torch.cat(d)))
    eigenvalues = torch.stack([(qs @ one @ qa.T).square() for one in g]).mean(0)

    def turned(side) -> Tensor:
        keys = [[(domain, half) for half in (0, 1)] for domain in range(DOMAINS)]
        device = torch.device("cpu")
        sums = [side.sums(layer, pair, device).sum(0) for pair in keys]
        tokens = [sum(side.tokens[key] for key in pair) for pair in keys]
        return torch.stack([qs @ (s / n) @ qa.T for s, n in zip(sums, tokens, strict=True)])

    return -((turned(found.held) * eigenvalues).flatten(1) @ turned(found.train).flatten(1).T)


def oracle(network: Stub, layers, batches, found: Measured, shift: float) -> Tensor:
    """Influence through the exact curvature, `shift` being added to its diagonal [K', K]."""
    sides, world = (found.train, found.held), network.world
    return exact(network, layers, batches, *sides, DOMAINS, [shift], world)


def correlations(seed: int) -> dict[str, float]:
    """Spearman over the 8 domains with retraining, of the effect on the mean eval loss."""
    made = problem(seed)
    solution = trained(made, torch.ones(DOMAINS, dtype=torch.float64))
    truth = retrained(made, solution).mean(0)

    embedding = nn.Embedding(CLASSES + WORDS, FEATURES).requires_grad_(False)
    embedding.weight[:CLASSES] = 0
    embedding.weight[CLASSES:] = made.features.float()
    linear = nn.Linear(FEATURES, CLASSES, bias=False)
    linear.weight.data = solution.float()
    network = Stub(Tokenwise(embedding, linear))
    train, held = batched(network, made.rows, size=32), batched(network, made.held_rows, size=64)
    layers = choose(network, "all")
    found = measure(network, layers, train, held, network.world, Plan(DOMAINS, seed=seed))
    matrices = {name: matrix.sum(0) for name, matrix in found.scores.matrices.items()}
    shift = 0.1 * float(found.scores.means[0])
    large = batched(network, made.rows, size=1024)
    matrices["exact"] = oracle(network, layers, large, found, shift)
    matrices["released"] = released(network, found, train, held)
    names = ("ekfac", "kfac", "identity", "exact", "released")
    return {
        name: float(spearmanr((matrices[name] * made.shares).mean(0), truth).statistic)
        for name in names
    }


@pytest.fixture(scope="module")
def table_of_seeds() -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    rows = [correlations(seed) for seed in range(SEEDS)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_ekfac_and_the_exact_solution_follow_retraining(table_of_seeds):
    means = {name: values.mean() for name, values in table_of_seeds.items()}
    assert means["exact"] >= 0.95
    assert means["ekfac"] >= 0.85
    assert means["exact"] > means["ekfac"] > means["identity"]


@pytest.mark.parametrize("below", ["identity", "released"])
def test_ekfac_is_above_the_dot_product_and_the_released_product(below, table_of_seeds):
    ours, theirs = table_of_seeds["ekfac"], table_of_seeds[below]
    p = float(wilcoxon(ours, theirs, alternative="greater").pvalue)
    assert p < 0.05


def test_a_training_moves_as_the_exact_solution_says():
    """Not only in rank: with the ridge as the damping it is the derivative itself."""
    made = problem(0)
    solution = trained(made, torch.ones(DOMAINS, dtype=torch.float64))
    truth = retrained(made, solution)
    embedding = nn.Embedding(CLASSES + WORDS, FEATURES).requires_grad_(False)
    embedding.weight[:CLASSES] = 0
    embedding.weight[CLASSES:] = made.features.float()
    linear = nn.Linear(FEATURES, CLASSES, bias=False)
    linear.weight.data = solution.float()
    network = Stub(Tokenwise(embedding, linear))
    train, held = (batched(network, rows, size=999) for rows in (made.rows, made.held_rows))
    layers = choose(network, "all")
    found = measure(network, layers, train, held, network.world, Plan(DOMAINS))
    effect = oracle(network, layers, train, found, RIDGE) * made.shares
    gap = float((effect - truth).norm() / truth.norm())
    assert gap < 0.02
    assert float(found.train.losses[0, 0]) > 0
