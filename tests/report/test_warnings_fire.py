"""Where an influence must not be believed, on real trainings of the suite: the report says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raymix.core.codec import decode
from raymix.core.influence import Influence, Thresholds
from raymix.core.job import Diagnostic, Stage, Status, TrainJob
from raymix.core.mixture import Budget
from raymix.report.trust import doubts
from raymix.testing.bench import open_bench, training
from raymix.testing.skills import objective_weights
from raymix.testing.suite import write_suite
from raymix.train.config import Setup
from raymix.train.local import LocalRunner


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("warnings")
    written = write_suite(folder / "suite", 5)
    return folder, written, open_bench(written, folder / "cache")


@pytest.fixture(scope="module")
def untrained(suite):
    """The suite's model with random weights, its tokenizer beside it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, written, _ = suite
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(written.model)).save_pretrained(
        folder / "untrained"
    )
    AutoTokenizer.from_pretrained(written.model).save_pretrained(folder / "untrained")
    return str(folder / "untrained")


def said(suite, model, examples, epochs=None, seed=0):
    """The doubts about the influence measured after a training on proportional shares."""
    folder, written, bench = suite
    space = replace(bench.space, budget=Budget(examples))
    pools = None
    if epochs is not None:
        every = sum(domain.rows for domain in space.domains)
        pools = tuple(round(d.rows * examples / epochs / every) for d in space.domains)
    stage = Stage(space.proportional(), space.budget, pools=pools)
    measure = frozenset({Diagnostic.INFLUENCE})
    setup = Setup({"target": model}, training(), bench.stores, str(folder / "runs"))
    job = TrainJob(1, (stage,), space, seed, measure=measure)
    (result,) = LocalRunner(setup).run([job], lambda trial, point: True)
    assert result.status is Status.DONE, result.error
    found = decode(Influence, result.diagnostics["influence"])
    weights = objective_weights(written.names)
    found = replace(found, slope=tuple(weights[name] for name in written.names))
    return doubts(found, space.proportional(), Thresholds())


def test_no_warning_in_the_suites_own_regime(suite):
    assert said(suite, str(suite[1].model), 4_800) == ()


@pytest.mark.slow
def test_a_warning_where_rows_were_seen_forty_times(suite):
    words = " ".join(said(suite, str(suite[1].model), 12_800, epochs=40))
    assert "a change of count is no change of weight" in words


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_warning_from_scratch(suite, untrained, seed):
    """600 steps from random weights: EK-FAC's correlation with retraining was -.04 there."""
    assert said(suite, untrained, 19_200, seed=seed)
