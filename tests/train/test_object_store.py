"""A training that keeps its files in an object store: the same as on a disk, to the last bit."""

from dataclasses import replace

import pytest
import torch
from test_resume import StopAt
from transformers import AutoModelForCausalLM

from raymix.core.codec import to_spec
from raymix.core.job import Diagnostic, Status
from raymix.reweight.doremi import DoReMi
from raymix.storage.copies import at_hand
from raymix.storage.place import place, write_whole
from raymix.train import checkpoint
from raymix.train.worker import Worker


@pytest.fixture
def setups(setup_of, bucket, tmp_path):
    """The same setup on a disk and in a store."""
    setup = setup_of(save_steps=5, eval_steps=6)
    return [replace(setup, output_dir=home) for home in (str(tmp_path / "out"), f"{bucket}/out")]


def told(result):
    """What must be the same wherever it was written."""
    return replace(result, checkpoint=None, spent=replace(result.spent, seconds=0.0))


def test_stopped_and_resumed_in_a_store_equals_straight_through_on_a_disk(
    setups, job_of, keep_points
):
    disk, store = setups
    straight = Worker(disk).run(job_of(176), keep_points)
    assert straight.status is Status.DONE, straight.error
    for _stops in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            Worker(store).run(job_of(176), StopAt(2))
    points = []
    resumed = Worker(store).run(
        replace(job_of(176), attempt=3), lambda point: points.append(point) or True
    )
    assert points[0].step > 6  # it has gone on from a checkpoint, not from the start
    assert told(resumed) == told(straight)
    assert resumed.checkpoint.startswith(store.output_dir)
    mine, theirs = (
        checkpoint.tensors(place(result.checkpoint), "model") for result in (resumed, straight)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_start_reference_influence_and_model_in_a_store(setups, job_of, keep_points):
    found = []
    for setup in setups:
        first = Worker(setup).run(replace(job_of(80), keep=True), keep_points)
        (stage,) = job_of(80).stages
        steered = replace(stage, reweighter=to_spec(DoReMi()))
        job = replace(
            job_of(80, trial=2),
            stages=(steered,),
            start=first.checkpoint,
            reference=first.checkpoint,
            measure=frozenset({Diagnostic.INFLUENCE}),
            save=f"{setup.output_dir}/models/last",
        )
        found.append(Worker(setup).run(job, keep_points))
        assert found[-1].status is Status.DONE, found[-1].error
        # Again, with the reference's losses as they were kept.
        again = Worker(setup).run(replace(job, measure=frozenset(), trial=3), keep_points)
        assert again.metrics == found[-1].metrics
        model = AutoModelForCausalLM.from_pretrained(
            at_hand(place(job.save)), local_files_only=True
        )
        found[-1] = (found[-1], {n: p.detach() for n, p in model.named_parameters()})
    (disk, on_disk), (store, in_store) = found
    assert store.metrics == disk.metrics
    assert store.mean_mixture == disk.mean_mixture
    here, there = (
        {k: v for k, v in result.diagnostics["influence"].items() if "second" not in k}
        for result in (disk, store)
    )
    assert here == there
    assert all(torch.equal(in_store[name], on_disk[name]) for name in on_disk)


def test_a_store_that_does_not_take_a_checkpoint_fails_the_trial_and_says_why(
    setups, job_of, keep_points
):
    result = Worker(replace(setups[1], output_dir="s3://no-such-bucket/out")).run(
        job_of(80), keep_points
    )
    assert result.status is Status.FAILED
    assert result.outside
    assert "s3://no-such-bucket/out/checkpoints" in result.error
    assert "bucket does not exist" in result.error


def test_a_model_takes_only_its_own_place_in_a_store_and_is_saved_again_after_a_cut(
    setups, job_of, keep_points, bucket
):
    store = setups[1]
    home = place(f"{bucket}/models/m")
    write_whole(home / "model.safetensors", b"cut off")
    write_whole(home / ".raymix-saving", b"")
    job = replace(job_of(80), save=str(home))
    for _ in range(2):
        assert Worker(store).run(job, keep_points).status is Status.DONE
        write_whole(home / "eval" / "results.json", b"mine")
    names = {each.name for each in home.iterdir()}
    assert {"config.json", "model.safetensors", "eval"} <= names
    assert ".raymix-saving" not in names
    AutoModelForCausalLM.from_pretrained(at_hand(home), local_files_only=True)

    write_whole(place(bucket) / "other" / "history.jsonl", b"of another")
    for save, said in ((bucket, "is a whole bucket"), (f"{bucket}/other", "something else")):
        refused = Worker(store).run(replace(job, save=save), keep_points)
        assert refused.status is Status.FAILED
        assert said in refused.error
    assert (place(bucket) / "other" / "history.jsonl").exists()
