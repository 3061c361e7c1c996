"""Checkpoints are whole or not there; saved models load in transformers."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_tables import DOMAINS, VOCABULARY
from transformers import AutoModelForCausalLM, AutoTokenizer

from raymix.core.errors import CheckpointError
from raymix.core.job import Status
from raymix.storage.place import place
from raymix.train import checkpoint
from raymix.train.worker import Worker

ONE = {"model": {"w": torch.arange(3.0)}, "optimizer": {"w/step": torch.tensor(1.0)}}


def _write(trial, step, job="job"):
    return checkpoint.write(trial, step, {"job": job, "n": step}, ONE)


@pytest.fixture(params=["disk", "s3"])
def trial(request, tmp_path):
    """Folder of a trial's checkpoints."""
    return place(request.getfixturevalue("bucket") if request.param == "s3" else tmp_path) / "t"


def test_the_two_newest_are_kept(trial):
    for step in (1, 2, 10):
        _write(trial, step)
    names = sorted(path.name for path in trial.iterdir())
    assert names == ["step-00000002", "step-00000010"]
    newest, state = checkpoint.newest(trial, "job")
    assert newest == checkpoint.place(trial, 10)
    assert state == checkpoint.read(newest)
    assert state["n"] == 10
    assert torch.equal(checkpoint.tensors(newest, "model")["w"], ONE["model"]["w"])


def test_a_store_that_is_away_for_a_moment_does_not_make_the_newest_look_damaged(
    bucket, monkeypatch
):
    trial = place(bucket) / "t"
    _write(trial, 1)
    newest, real = _write(trial, 2), trial.fs.get

    def away(*args, **kwargs):
        raise ConnectionError("reset")

    with monkeypatch.context() as patch:
        patch.setattr(trial.fs, "get", away)
        with pytest.raises(CheckpointError, match=r"look for checkpoints in .*: reset"):
            checkpoint.newest(trial, "job")
        with pytest.raises(CheckpointError, match=r"cannot read .*: reset"):
            checkpoint.tensors(newest, "model")
    assert real == trial.fs.get
    assert checkpoint.newest(trial, "job")[0] == newest


def test_nothing_there(trial):
    assert checkpoint.newest(trial / "no", "job") is None
    with pytest.raises(CheckpointError, match="not whole"):
        checkpoint.read(trial)


def test_a_store_that_is_away_is_no_empty_store(bucket, monkeypatch):
    trial = place(bucket) / "t"
    _write(trial, 1)

    def away(*args, **kwargs):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(trial.fs, "cat_file", away)
    with pytest.raises(CheckpointError, match=f"look for checkpoints in {trial}: nobody answers"):
        checkpoint.newest(trial, "job")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_the_one_before_is_used_where_the_newest_is_harmed(name, harm, trial):
    old, new = _write(trial, 1), _write(trial, 2)
    file = new / name
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        at = content.index(b'"model') + 2 if name == "state.json" else len(content) - 2
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert checkpoint.newest(trial, "job")[0] == old
    assert checkpoint.newest(trial, "another") is None


def test_no_flipped_bit_of_the_state_is_taken_for_another_state(tmp_path):
    state = {"job": "job", "lr": 0.125, "window": [1.5, float("nan")], "mix": {"a": 1e-9}}
    folder = checkpoint.write(tmp_path, 1, state, ONE)
    file, whole = folder / "state.json", checkpoint.read(folder)
    assert whole.keys() == {*state, "files"}
    content = file.read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            flipped = bytes([content[at] ^ (1 << bit)])
            file.write_bytes(content[:at] + flipped + content[at + 1 :])
            try:
                read = checkpoint.read(folder)
            except CheckpointError:
                continue
            # Where it says the same in other words (a space is a tab), or its digest has no name.
            assert repr({name: read[name] for name in whole}) == repr(whole)


def test_a_checkpoint_of_another_job_is_not_gone_on_from(setup_of, job_of, keep_points):
    setup = setup_of(save_steps=5)
    first = Worker(setup).run(job_of(160), keep_points)
    other = Worker(setup).run(job_of(160, weights=(0.2, 0.2, 0.6)), keep_points)
    assert other.metrics != first.metrics
    assert other.spent.rows == 160
    again = Worker(setup).run(job_of(160, weights=(0.2, 0.2, 0.6), attempt=1), keep_points)
    assert replace(again, spent=other.spent) == other


def test_without_save_steps_nothing_is_written(setup_of, job_of, keep_points):
    setup = setup_of()
    assert Worker(setup).run(job_of(), keep_points).checkpoint is None
    assert not Path(setup.output_dir).exists()


def test_a_full_disk_fails_the_trial_and_no_more(setup_of, job_of, keep_points):
    """A limit on file sizes stands for the full disk: the write fails half-way, for real."""
    setup = setup_of(save_steps=5)
    worker = Worker(setup)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        result = worker.run(job_of(), keep_points)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.status is Status.FAILED
    assert "cannot write checkpoint" in result.error
    assert list((Path(setup.output_dir) / "checkpoints" / "trial-1").iterdir()) == []
    assert worker.run(job_of(), keep_points).status is Status.DONE


def _metrics(worker, job_of, start):
    return worker.run(job_of(stages=(), start=start), lambda point: True)


@pytest.mark.parametrize("lora", [False, True])
def test_start_takes_up_a_checkpoints_weights(lora, setup_of, job_of, keep_points):
    worker = Worker(setup_of(save_steps=100, use_peft=lora))
    trained = worker.run(job_of(160), keep_points)
    base = worker.run(job_of(stages=()), keep_points)
    started = _metrics(worker, job_of, trained.checkpoint)
    for name in DOMAINS:
        key = f"eval/{name}/loss"
        assert started.metrics[key] == trained.metrics[key] != base.metrics[key]
    assert worker.run(job_of(stages=()), keep_points).metrics == base.metrics


def test_adapters_may_start_from_full_weights(setup_of, job_of, keep_points):
    """And the next job has the base again, though adapters never move it."""
    trained = Worker(setup_of(save_steps=100)).run(job_of(160), keep_points)
    worker = Worker(setup_of(use_peft=True))
    base = worker.run(job_of(stages=()), keep_points)
    started = _metrics(worker, job_of, trained.checkpoint)
    for name in DOMAINS:
        key = f"eval/{name}/loss"
        assert started.metrics[key] == pytest.approx(trained.metrics[key], abs=1e-6)
    assert worker.run(job_of(stages=()), keep_points).metrics == base.metrics


def test_what_cannot_be_started_from(setup_of, job_of, model_folder, tmp_path, keep_points):
    worker = Worker(setup_of())
    for start in (str(tmp_path), model_folder("gpt2")):
        result = worker.run(job_of(start=start), keep_points)
        assert result.status is Status.FAILED
        assert start in result.error


@pytest.mark.parametrize("family", ["llama", "gemma3", "untied"])
def test_a_saved_model_loads_in_transformers(family, setup_of, job_of, tmp_path, keep_points):
    folder = tmp_path / "deep" / "final"
    setup = setup_of(family)
    worker = Worker(setup)
    job = job_of(160, save=str(folder))
    result = worker.run(job, keep_points)
    assert result.status is Status.DONE, result.error
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ours = worker._models["target", False, False]
    theirs = dict(loaded.named_parameters())
    assert theirs.keys() == ours.parameters.keys()
    assert all(torch.equal(theirs[name], p) for name, p in ours.parameters.items())
    assert loaded.config.use_cache
    assert len(AutoTokenizer.from_pretrained(folder)) == VOCABULARY
    started = _metrics(worker, job_of, str(folder))
    assert started.metrics["eval/ants/loss"] == result.metrics["eval/ants/loss"]
    assert worker.run(job, keep_points).status is Status.DONE


def test_saved_adapters_load_in_transformers(setup_of, job_of, tmp_path, keep_points):
    folder = tmp_path / "final"
    worker = Worker(setup_of(use_peft=True, lora_r=4))
    result = worker.run(job_of(160, save=str(folder)), keep_points)
    assert result.status is Status.DONE, result.error
    assert (folder / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(10)[None]
    ours = worker._models["target", True, False].module.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, ours(ids).logits)


def test_saved_in_the_bases_precision_with_the_template(
    setup_of, job_of, model_folder, tmp_path, keep_points
):
    half = tmp_path / "half"
    tokenizer = AutoTokenizer.from_pretrained(model_folder("llama"))
    AutoModelForCausalLM.from_pretrained(
        model_folder("llama"), dtype=torch.bfloat16
    ).save_pretrained(half)
    tokenizer.save_pretrained(tmp_path / "words")
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    setup = replace(
        setup_of(),
        models={"target": str(half)},
        tokenizer=str(tmp_path / "words"),
        chat_template=str(tmp_path / "chat.jinja"),
    )
    result = Worker(setup).run(job_of(save=str(tmp_path / "final")), keep_points)
    assert result.status is Status.DONE, result.error
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final").dtype is torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "final").chat_template == "{{ messages }}"


def test_what_is_in_the_way_is_not_touched(setup_of, job_of, tmp_path, keep_points):
    (tmp_path / "letters.txt").write_text("dear")
    result = Worker(setup_of()).run(job_of(save=str(tmp_path)), keep_points)
    assert result.status is Status.FAILED
    assert "holds something else" in result.error
    assert (tmp_path / "letters.txt").read_text() == "dear"
    assert result.spent.steps == 0


def test_a_missing_tokenizer_is_known_before_training(setup_of, job_of, tmp_path, keep_points):
    setup = replace(setup_of(), tokenizer="/no/such/words")
    result = Worker(setup).run(job_of(save=str(tmp_path / "final")), keep_points)
    assert "cannot load tokenizer '/no/such/words'" in result.error
    assert result.spent.steps == 0
