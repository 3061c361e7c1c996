"""What a measurement puts through the model is on the training's bill."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_jobs import MEASURE, ROWS, influence_of, later, yes

from raymix.data.store import open_table
from raymix.influence.exact import GaussNewton, passes
from raymix.train.worker import Worker


def tokens(setup, split):
    """Of all rows, each of which the trainings here have drawn."""
    return sum(int(open_table(setup.stores[name][split]).tokens.sum()) for name in ROWS)


def test_a_training_pays_for_its_own_measurement(setup_of, job_of):
    """The eval rows forward and back; the others twice forward and back to the activations alone
    (2/3), the second time to the weights, too (2/3 more).
    """
    setup = setup_of()
    result = Worker(setup).run(job_of(measure=MEASURE), yes)
    assert influence_of(result).rows == tuple(ROWS.values())
    assert result.spent.extra == tokens(setup, "eval") + 2 * tokens(setup, "train")
    plain = Worker(setup).run(job_of(trial=2), yes)
    assert plain.spent.extra == 0
    assert plain.spent.tokens == result.spent.tokens


@pytest.mark.parametrize("packing", [False, True])
def test_a_job_that_only_measures_pays_too(packing, setup_of, job_of):
    setup = setup_of(packing=packing)
    job = job_of(keep=True)
    kept = Worker(setup).run(job, yes)
    result = Worker(setup).run(later(job, kept), yes)
    found = influence_of(result)
    assert (result.spent.steps, result.spent.tokens) == (0, 0)
    wanted = tokens(setup, "eval") + 2 * tokens(setup, "train")
    assert result.spent.extra == wanted
    assert sum(found.passes.values()) == pytest.approx(3)


def test_layer_groups_cost_more(setup_of, job_of):
    """4/3 of a pass for each group but the first."""
    setup = setup_of(influence={"max_memory_gb": 3e-5})
    result = Worker(setup).run(job_of(measure=MEASURE), yes)
    found = influence_of(result)
    groups = 1 + round(found.passes["eigenvalues"] * 3 / 2)
    assert groups > 1
    wanted = tokens(setup, "eval") + (6 + 4 * (groups - 1)) / 3 * tokens(setup, "train")
    assert result.spent.extra == pytest.approx(wanted, abs=1)


def test_the_exact_solution_pays_for_each_product(setup_of, job_of, monkeypatch):
    asked, inner = [], GaussNewton.__call__

    def spy(self, vectors):
        asked.append(len(vectors))
        return inner(self, vectors)

    monkeypatch.setattr(GaussNewton, "__call__", spy)
    setup = setup_of(influence={"exact": True, "damping": 1.0})
    result = Worker(setup).run(job_of(measure=MEASURE), yes)
    found = influence_of(result)
    # A product with one vector: a forward and three backward passes.
    assert passes(1) == pytest.approx((1 + 3 * 2) / 3)
    made = sum(passes(vectors) for vectors in asked)
    assert len(asked) > 3
    assert found.passes["exact"] == pytest.approx(made)
    wanted = tokens(setup, "eval") + (2 + made) * tokens(setup, "train")
    assert result.spent.extra == pytest.approx(wanted, abs=1)
    bare = replace(setup, influence=setup.influence.model_copy(update={"exact": False}))
    assert Worker(bare).run(job_of(measure=MEASURE, trial=3), yes).spent.extra < wanted
