"""The product of IDEAL's released code, kept as a warning: it must lead to worse mixtures.

That code multiplies by the eigenvalues where it should divide, rotates the other way about (in the
eigenvalues and in the product alike), has no damping and takes every domain's mean gradient as if
all were equally large (arXiv:2505.12762, its repository; see `raymix.influence.curvature` for what
is right).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raymix.core.codec import decode
from raymix.core.influence import Influence, centred, correlation
from raymix.core.job import Diagnostic, Stage, Status, TrainJob, TrainResult
from raymix.core.mixture import Mixture
from raymix.data.store import open_table
from raymix.influence.curvature import Corrections, Rotations, covariances, eigenvectors
from raymix.influence.gradients import correct, gradients
from raymix.influence.layers import choose
from raymix.search.agreement import spearman
from raymix.search.counts import betas, rescaled
from raymix.testing.bench import Bench, open_bench, training
from raymix.testing.grid import read_grid
from raymix.testing.skills import objective_weights
from raymix.testing.suite import write_suite
from raymix.train.diagnose import Batched, Sample, halves_of, parts_of, sampled
from raymix.train.evaluate import HeldOut
from raymix.train.pretrained import load, start_from
from raymix.train.shard import World

SEEDS = (0, 1, 2)
STEP, ROUNDS = 0.5, 2


@dataclass(frozen=True)
class Suite:
    bench: Bench
    slope: np.ndarray
    stores: dict
    model: str

    def job(self, mixture: Mixture, seed: int, **fields) -> TrainJob:
        stage = Stage(mixture, self.bench.space.budget)
        return TrainJob(0, (stage,), self.bench.space, seed, **fields)

    def train(self, mixture: Mixture, seed: int, **fields) -> TrainResult:
        job = self.job(mixture, seed, **fields)
        (result,) = self.bench.runner.run([job], lambda trial, point: True)
        assert result.status is Status.DONE, result.error
        return result

    def score(self, result: TrainResult) -> float:
        names = self.bench.space.names
        return float(self.slope @ [result.metrics[f"eval/{name}/loss"] for name in names])


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("released")
    written = write_suite(folder / "suite", 5)
    bench = open_bench(written, folder / "cache")
    weights = objective_weights(written.names)
    slope = np.array([weights[name] for name in written.names])
    return Suite(bench, slope, bench.stores, str(written.model))


def released(suite: Suite, job: TrainJob, result: TrainResult) -> np.ndarray:
    """The released code's influence on the objective [K], from the kept checkpoint of `job`."""
    names, world = job.space.names, World()
    model = load(suite.model, training(), world, lora=False, trust=False)
    start_from(model, Path(result.checkpoint))
    model.module.eval()
    tables = [open_table(suite.stores[name]["train"]) for name in names]
    held = HeldOut([open_table(suite.stores[name]["eval"]) for name in names], None, 256)
    train = Batched(
        model, tables, parts_of(sampled(job, job.stages, tables, 512, None), tables, 256)
    )
    seen = tuple(halves_of(held, domain) for domain in range(len(names)))
    whole = Sample(seen, (1.0,) * len(names), (), ())
    evals = Batched(model, held.tables, parts_of(whole, held.tables, 256))
    layers = choose(model, "all")
    right = eigenvectors(covariances(model, layers, train, world), layers, world)
    found = replace(
        right.found,
        inputs={name: q.mT.contiguous() for name, q in right.found.inputs.items()},
        outputs={name: q.mT.contiguous() for name, q in right.found.outputs.items()},
    )
    corrections = Corrections(layers, Rotations(found, right.values), world.device)
    correct(model, train, corrections, layers)
    factors = corrections.factors(layers, world)
    matrix = np.zeros((len(names), len(names)))
    g_all, v_all = gradients(model, layers, train, world), gradients(model, layers, evals, world)
    for layer in layers:
        g, v = (_means(side, layer, len(names)) for side in (g_all, v_all))
        turned = factors[layer.name].rotated(g) * factors[layer.name].eigenvalues
        matrix -= (factors[layer.name].rotated(v).flatten(1) @ turned.flatten(1).mT).numpy()
    return suite.slope @ matrix


def _means(found, layer, domains: int) -> torch.Tensor:
    keys = [(domain, half) for domain in range(domains) for half in (0, 1)]
    sums = found.sums(layer, keys, torch.device("cpu")).unflatten(0, (domains, 2)).sum(1)
    counts = torch.tensor([found.tokens[key] for key in keys]).view(domains, 2).sum(1)
    return sums / counts[:, None, None]


def right(suite: Suite, result: TrainResult, mixture: Mixture) -> np.ndarray:
    found = decode(Influence, result.diagnostics["influence"])
    return centred(suite.slope @ found.effect(), mixture)


def search(suite: Suite, seed: int, wrong: bool) -> tuple[Mixture, float, np.ndarray]:
    """Two rounds at a fixed total: the last mixture, its score, and the first influence [K]."""
    space = suite.bench.space
    mixture, first = space.proportional(), None
    fields = {"keep": True} if wrong else {"measure": frozenset({Diagnostic.INFLUENCE})}
    for _ in range(ROUNDS):
        result = suite.train(mixture, seed, **fields)
        if wrong:
            influence = released(suite, suite.job(mixture, seed), result)
        else:
            influence = right(suite, result, mixture)
        first = influence if first is None else first
        counts = mixture.array() * space.budget.amount
        mixture, _ = rescaled(space, counts, betas(influence, STEP), "fixed")
    return mixture, suite.score(suite.train(mixture, seed)), first


def retrained(suite: Suite, step: float = 0.3) -> np.ndarray:
    """Derivative of the objective by each count [K], by retraining with all seeds."""
    space = suite.bench.space
    begin = space.proportional().array()
    found = np.zeros(len(begin))
    for j in range(len(begin)):
        for sign in (1, -1):
            shares = begin.copy()
            shares[j] *= 1 + sign * step
            moved = Mixture.normalised(space.names, shares)
            scores = [suite.score(suite.train(moved, seed)) for seed in SEEDS]
            found[j] += sign * np.mean(scores) / (2 * step)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_released_product_scores_below_the_right_one(suite):
    space, grid = suite.bench.space, read_grid(5)
    even = [suite.score(suite.train(space.uniform(), seed)) for seed in SEEDS]
    sized = [suite.score(suite.train(space.proportional(), seed)) for seed in SEEDS]
    scores, influences, regrets = {}, {}, {}
    for wrong in (False, True):
        ends = [search(suite, seed, wrong) for seed in SEEDS]
        scores[wrong] = np.array([score for _, score, _ in ends])
        influences[wrong] = np.mean([first for _, _, first in ends], axis=0)
        regrets[wrong] = np.mean([grid.regret(mixture, "test") for mixture, _, _ in ends])
    truth = retrained(suite)
    for wrong, name in ((False, "EK-FAC"), (True, "released")):
        print(
            f"{name}: score {scores[wrong].mean():.3f} (proportional {np.mean(sized):.3f}, uniform "
            f"{np.mean(even):.3f}), regret {regrets[wrong]:.3f}, with retraining: Pearson "
            f"{correlation(influences[wrong], truth):.2f}, "
            f"Spearman {spearman(influences[wrong], truth):.2f}"
        )
    assert correlation(influences[False], truth) >= 0.9
    assert correlation(influences[True], truth) < correlation(influences[False], truth)
    gain = sized - scores[False]
    assert gain.mean() > 3 * gain.std(ddof=1) / np.sqrt(len(SEEDS))
    assert np.all(scores[True] > scores[False])
    assert regrets[True] > regrets[False]
