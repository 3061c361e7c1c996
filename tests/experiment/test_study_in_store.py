"""A whole study in an object store, by the command line: the same study as on a disk."""

import fsspec
import pytest
import yaml
from typer.testing import CliRunner

from raymix.cli import app
from raymix.report.best import read_best
from raymix.study.record import canonical, read


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def config(describe, bucket, tmp_path):
    plain = describe(tmp_path)
    plain["training"] |= {"save_steps": 5}
    plain["study"]["output_dir"] = f"{bucket}/runs/first"
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def test_a_study_in_a_store_is_the_study_on_a_disk_and_is_reported_from_there(
    config, bucket, tmp_path
):
    url, disk = f"{bucket}/runs/first", tmp_path / "disk"
    ran = invoke("tune", config)
    assert ran.exit_code == 0, ran.output
    assert f"{url}/best_mixture.yaml" in ran.output
    there = {name.split("runs/first/")[1] for name in fsspec.filesystem("s3").find(url)}
    assert {
        "history.jsonl",
        "experiment.yaml",
        "best_mixture.yaml",
        "figures/losses.png",
        "figures/ranking.png",
    } <= there
    assert any(name.startswith("checkpoints/trial-") for name in there)
    # Nothing is left that only a running study needs.
    assert not [n for n in there if "lock" in n or "parts" in n or n.startswith(".")]

    onto_disk = invoke("tune", config, f"study.output_dir={disk}")
    assert onto_disk.exit_code == 0, onto_disk.output
    assert canonical(read(url).history) == canonical(read(disk).history)
    assert read_best(url).mixture == read_best(disk).mixture

    refused = invoke("tune", config)
    assert refused.exit_code == 1
    assert f"{url}/history.jsonl already holds a study of 11 trials" in refused.output
    assert invoke("tune", config, "--resume").exit_code == 0
    for command in ("status", "report", "export"):
        told = invoke(command, url)
        assert told.exit_code == 0, told.output
    assert f"written: {url}/figures/losses.png" in invoke("report", url).output
    assert invoke("export", url, "--out", f"{bucket}/out").exit_code == 0
    assert fsspec.filesystem("s3").find(f"{bucket}/out")


def test_a_store_that_cannot_be_written_to_is_refused_before_any_training(config):
    refused = invoke("tune", config, "study.output_dir=s3://no-such-bucket/runs")
    assert refused.exit_code == 1
    assert "study.output_dir: cannot write to 's3://no-such-bucket/runs'" in refused.output
    assert "bucket does not exist" in refused.output


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s5://bucket/runs", "cannot be opened"),
        ("s3:///runs", "names no bucket"),
        ("sftp://me:secret@host/runs", "secrets by the environment"),
        ("memory://a/runs", "nothing can be kept in memory://"),
        ("s3:/bucket/runs", "neither a path nor a URL"),
        ("s3://bucket/run[1]", "may not have"),
    ],
)
def test_a_url_that_cannot_be_is_refused_by_check(config, url, said):
    refused = invoke("check", config, f"study.output_dir={url}")
    assert refused.exit_code == 1
    assert said in refused.output
    assert "study.output_dir" in refused.output
