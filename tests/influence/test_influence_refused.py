"""What cannot be measured is refused in words that name the domain, the layer or the file."""

import shutil
from dataclasses import replace

import pytest
import torch
from small_jobs import MEASURE, influence_of, later, matrices, same, yes
from small_networks import Stub, Tokenwise, batched, fit, mlp, table
from tiny_tables import write_rows
from torch import nn

from raymix.core.errors import InfluenceError
from raymix.core.job import Status
from raymix.influence.layers import choose
from raymix.influence.measure import Plan, measure
from raymix.influence.score import check
from raymix.train.worker import Worker

NAMES = ("ants", "bees", "cats")


def tables_of(own: dict[int, int]) -> list:
    """Rows of tokens 0 to 9; of domain d also the token `own[d]`, that no other domain has."""
    made = []
    for d in range(3):
        draw = torch.Generator().manual_seed(d)
        rows = []
        for _ in range(6):
            ids = torch.randint(0, 10, (8,), generator=draw).tolist()
            if d in own:
                ids[2] = own[d]
            rows.append((ids, [0] + [1] * 7))
        made.append(table(NAMES[d], rows, first=100 * d))
    return made


def measured(network, train, held):
    layers = choose(network, "all")
    batches = [batched(network, tables, size=4) for tables in (train, held)]
    found = measure(network, layers, *batches, network.world, Plan(3))
    check(found.scores, found.train, NAMES)
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_eval_gradient_that_is_not_finite_names_its_domain(value):
    """A token that only the rows of bees have blows the forward pass up."""
    network = mlp(0)
    network.embedding.weight[12] = value
    with pytest.raises(InfluenceError, match="eval gradient of domain 'bees' is nan"):
        measured(network, tables_of({}), tables_of({1: 12}))


def test_a_training_gradient_that_is_not_finite_names_its_domain(
    setup_of, job_of, stores, tmp_path
):
    """A token that only a training row of bees has is NaN in the embedding."""
    from transformers import AutoModelForCausalLM

    path = write_rows(
        tmp_path / "bees.arrow",
        "bees",
        "train",
        [([1, 63, 5, 2, 6, 7, 3], [0, 0, 0, 0, 1, 1, 1])] * 3,
    )
    setup = setup_of("untied")
    setup = replace(setup, stores={**stores, "bees": {**stores["bees"], "train": path}})
    module = AutoModelForCausalLM.from_pretrained(setup.models["target"])
    module.get_input_embeddings().weight.data[63] = float("nan")
    module.save_pretrained(tmp_path / "broken")
    job = job_of()
    job = replace(
        job, stages=(), trained=job.stages, start=str(tmp_path / "broken"), measure=MEASURE
    )
    result = Worker(setup).run(job, yes)
    assert error_of(result) == "the training gradient of domain 'bees' is not finite"


@pytest.mark.parametrize("side", ["training", "eval"])
def test_a_gradient_of_zero_names_its_domain(side):
    """One layer without bias on features that are 0 in all rows of cats."""
    torch.manual_seed(0)
    embedding = nn.Embedding(16, 6).requires_grad_(False)
    embedding.weight[12] = 0
    network = Stub(Tokenwise(embedding, nn.Linear(6, 16, bias=False)))
    good = tables_of({})
    nothing = [*good[:2], table("cats", [([12] * 6, [0] + [1] * 5)] * 4, first=200)]
    train, held = (nothing, good) if side == "training" else (good, nothing)
    with pytest.raises(InfluenceError, match=rf"{side} gradient of domain 'cats' is 0"):
        measured(network, train, held)


def test_a_domain_that_was_not_trained_on_has_no_influence():
    """No rows, no gradient: a column of zeros and no complaint; its eval loss has its row."""
    network, good = mlp(0), tables_of({})
    fit(network, batched(network, good), 10)
    layers = choose(network, "all")
    train, held = batched(network, good[:2]), batched(network, good)
    found = measure(network, layers, train, held, network.world, Plan(3))
    check(found.scores, found.train, NAMES)
    for name, by_layer in found.scores.matrices.items():
        matrix = by_layer.sum(0)
        assert matrix.isfinite().all()
        assert (matrix[:, 2] == 0).all(), name
        assert (matrix[2, :2] != 0).all(), name


def error_of(result) -> str:
    assert result.status is Status.FAILED
    return result.error


def test_broken_weights_fail_the_job_in_words(setup_of, job_of, tmp_path):
    from transformers import AutoModelForCausalLM

    worker = Worker(setup_of())
    module = AutoModelForCausalLM.from_pretrained(worker.setup.models["target"])
    module.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    module.save_pretrained(tmp_path / "broken")
    job = job_of()
    job = replace(
        job, stages=(), trained=job.stages, start=str(tmp_path / "broken"), measure=MEASURE
    )
    assert "eval/ants/loss is nan" in error_of(worker.run(job, yes))
    assert influence_of(worker.run(job_of(trial=5, measure=MEASURE), yes)).domains == NAMES


def test_too_few_rows_say_how_many_would_do(setup_of, job_of):
    few = setup_of("wide", {"train_rows": 2})
    found = influence_of(Worker(few).run(job_of(measure=MEASURE), yes))
    (note,) = found.notes
    assert found.rows == (2, 2, 1)
    rows, tokens = int(note.split()[0]), int(note.split()[3])
    assert rows == 5
    assert tokens < 160
    needed = int(note.rsplit("about ", 1)[1].split()[0])
    assert needed == -(-160 * rows // tokens)
    assert "160 features of layer 'model.layers.0.mlp." in note
    enough = influence_of(Worker(setup_of("wide")).run(job_of(measure=MEASURE), yes))
    assert enough.notes == ()


def test_a_checkpoint_of_another_base_model_is_refused(setup_of, job_of):
    other, setup = setup_of("wide"), setup_of()
    job = job_of(keep=True)
    kept = Worker(other).run(job, yes)
    assert "cannot start" in error_of(Worker(setup).run(later(job, kept), yes))
    missing = replace(later(job, kept), start=f"{kept.checkpoint}-gone")
    assert "cannot" in error_of(Worker(setup).run(missing, yes))


def test_a_job_that_has_nothing_to_measure_is_refused(setup_of, job_of):
    result = Worker(setup_of()).run(job_of(stages=(), measure=MEASURE), yes)
    assert "neither trains nor starts from a checkpoint" in error_of(result)


@pytest.mark.parametrize(
    ("influence", "message"),
    [
        ({"layers": ("*lm_head",)}, "matches the head 'lm_head'"),
        ({"layers": ("*.mpl.*",)}, "matches no layer"),
        ({"max_memory_gb": 1e-6}, r"layer 'model.layers.0"),
    ],
)
def test_settings_that_do_not_fit_the_model(influence, message, setup_of, job_of):
    worker = Worker(setup_of(influence=influence))
    assert message in error_of(worker.run(job_of(measure=MEASURE), yes))
    assert worker.run(job_of(trial=2), yes).status is Status.DONE


def test_patterns_and_low_variance_choose_layers(setup_of, job_of):
    setup = setup_of(influence={"damping": 1.0}, per_device_eval_batch_size=64)
    job = job_of(keep=True)
    kept = Worker(setup).run(job, yes)

    def found(**influence):
        settings = setup.influence.model_copy(update=influence)
        worker = Worker(replace(setup, influence=settings))
        return influence_of(worker.run(later(job, kept), yes))

    every, mlps = found(), found(layers=("*.mlp.*",))
    assert len(every.layers) == 14
    assert all(".mlp." in name for name in mlps.layers)
    assert len(mlps.layers) == 6
    low = found(layers="low-variance", layer_share=0.4, exact=True)
    assert len(low.layers) == 6
    parts = dict(zip(every.layers, every.contributions, strict=True))
    summed = sum(torch.tensor(parts[name], dtype=torch.float64) for name in low.layers)
    assert torch.allclose(summed, torch.tensor(low.estimates["ekfac"], dtype=torch.float64))
    # The oracle is of the same layers as the estimates beside it.
    named = found(layers=low.layers, exact=True)
    ours, theirs = matrices(low), matrices(named)
    gap = abs(ours["exact"] - theirs["exact"]).max() / abs(theirs["exact"]).max()
    assert gap < 0.02  # conjugate gradients stop at a residual of 1e-2
    assert ours["ekfac"] == pytest.approx(theirs["ekfac"], rel=1e-6)


def test_gradient_checkpointing_changes_nothing(setup_of, job_of):
    job = job_of(keep=True)
    kept = Worker(setup_of()).run(job, yes)
    plain, sparing = (
        influence_of(Worker(setup_of(gradient_checkpointing=on)).run(later(job, kept), yes))
        for on in (False, True)
    )
    assert max(same(plain, sparing, 1e-6).values()) == 0.0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
# The compiler's own: it uses parts of Python and torch that are on their way out.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiled_model_is_measured_as_it_is(setup_of, job_of):
    """Compiled for the evaluation, eager for the measurement, whose hooks are heard."""
    job = job_of(keep=True)
    kept = Worker(setup_of()).run(job, yes)
    plain, compiled = (
        influence_of(Worker(setup_of(torch_compile=on)).run(later(job, kept), yes))
        for on in (False, True)
    )
    same(plain, compiled, 1e-6)
