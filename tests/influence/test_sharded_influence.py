"""One worker, two and four (gloo, FSDP2) measure the same, shards and rows being uneven."""

from dataclasses import replace

import pytest
from ranks import on_ranks
from small_jobs import MEASURE, influence_of, later, same, yes

from raymix.core.job import Status
from raymix.train.worker import Worker

VARIANTS = {
    "llama": ({}, {}),
    "biases": ({"family": "qwen2"}, {}),
    "packed": ({"packing": True, "per_device_train_batch_size": 1}, {}),
    "lora": ({"use_peft": True, "lora_r": 3, "learning_rate": 0.02}, {}),
    "groups": ({"family": "qwen2"}, {"max_memory_gb": 5e-5, "fisher": "empirical"}),
    "one row at a time": ({}, {"batch_size": 1}),
}


FEW = ("biases", "packed", "lora", "groups")


def run_all(world, cases):
    """Each case's result on this rank."""
    return [Worker(setup, world).run(job, yes) for setup, job in cases]


@pytest.fixture
def cases(setup_of, job_of, tmp_path):
    """A kept training on one worker for each variant, and the job that measures it."""
    made = {}
    for number, (name, (training, influence)) in enumerate(VARIANTS.items()):
        setup = replace(
            setup_of(influence=influence, **training), output_dir=str(tmp_path / str(number))
        )
        job = job_of(keep=True)
        kept = Worker(setup).run(job, yes)
        made[name] = (setup, later(job, kept))
    return made


def compare(ranks, cases):
    jobs = list(cases.values())
    alone = run_all(None, jobs)
    several = on_ranks(ranks, run_all, jobs)
    wide = {}
    for v, name in enumerate(cases):
        ours, first = influence_of(alone[v]), influence_of(several[0][v])
        assert "adam" in ours.estimates
        gaps = same(ours, first, 1e-3)
        wide |= {(name, key): gap for key, gap in gaps.items() if gap > 1e-5}
        for other in several[1:]:
            assert (
                other[v].diagnostics["influence"]["estimates"]
                == (several[0][v].diagnostics["influence"]["estimates"])
            )
    assert not wide
    return alone


def test_two_workers_measure_what_one_does(cases):
    alone = compare(2, {name: cases[name] for name in FEW})
    assert influence_of(alone[0]).rows[2] == 1


@pytest.mark.slow
def test_four_workers_measure_what_one_does(cases):
    compare(4, cases)


@pytest.mark.slow
def test_measured_at_the_end_of_a_training_on_two(setup_of, job_of):
    """The whole path on two ranks; then later on one, from what the two have kept."""
    setup = setup_of(per_device_train_batch_size=4)
    job = job_of(keep=True, measure=MEASURE)
    (end,), (other,) = on_ranks(2, run_all, [(setup, job)])
    assert end.status is other.status is Status.DONE, end.error
    again = Worker(setup).run(later(job, end), yes)
    same(influence_of(end), influence_of(again), 1e-5)


@pytest.mark.slow
def test_an_influence_that_cannot_be_measured_fails_on_all_ranks_alike(setup_of, job_of):
    head = setup_of(influence={"layers": ("*lm_head*",)})
    small = setup_of(influence={"max_memory_gb": 1e-6})
    exact = setup_of(influence={"exact": True})
    good = setup_of()
    cases = [(setup, job_of(measure=MEASURE)) for setup in (head, small, exact, good)]
    one, two = on_ranks(2, run_all, cases)
    assert [r.error for r in one] == [r.error for r in two]
    assert "head 'lm_head'" in one[0].error
    assert "max_memory_gb" in one[1].error
    assert "single worker" in one[2].error
    assert one[3].status is Status.DONE
