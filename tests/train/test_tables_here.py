"""A worker that does not see the driver's tables trains on fetched ones, and says the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_tables import write_rows

from raymix.core.codec import decode, encode
from raymix.core.errors import DataError
from raymix.core.job import Status
from raymix.data.fetch import content_of
from raymix.data.leak import Asked, Format, Prompts
from raymix.train.config import Setup
from raymix.train.identity import identity
from raymix.train.tables import described, fetch_tables, prompts_here, publish_tables, table_here
from raymix.train.worker import Worker


@pytest.fixture
def driver(setup_of, stores, tmp_path, monkeypatch):
    """A setup whose tables lie in a cache of the driver's own."""
    monkeypatch.setenv("RAYMIX_CACHE", str(tmp_path / "node"))
    shutil.copytree(Path(stores["ants"]["train"]).parent, tmp_path / "driver")
    own = {
        name: {split: str(tmp_path / "driver" / Path(path).name) for split, path in splits.items()}
        for name, splits in stores.items()
    }
    return described(replace(setup_of(eval_steps=5), stores=own))


def blind(tmp_path):
    """From now on this node does not see them."""
    (tmp_path / "driver").rename(tmp_path / "elsewhere")


def test_contents_are_of_all_tables_that_are_here(driver, stores):
    assert set(driver.contents) == {p for splits in driver.stores.values() for p in splits.values()}
    for name, splits in stores.items():
        for split, path in splits.items():
            assert driver.contents[driver.stores[name][split]] == content_of(path)
    # What is known already is not read again, what is not there is passed over.
    gone = {**driver.stores, "none": {"train": "/nowhere/train.arrow"}}
    assert described(replace(driver, stores=gone)) == replace(driver, stores=gone)


def test_contents_reach_workers_as_json(driver):
    assert decode(Setup, encode(driver)) == driver


def test_the_drivers_path_is_used_where_it_is_seen(driver, tmp_path):
    path = driver.stores["ants"]["train"]
    assert table_here(driver, path) == Path(path)
    fetch_tables(driver)
    assert not (tmp_path / "node").exists()


def test_a_training_on_fetched_tables_is_the_same(driver, job_of, keep_points, tmp_path):
    job = job_of()
    publish_tables(driver)
    before = Worker(driver).run(job, keep_points)
    shutil.rmtree(tmp_path / "out" / "checkpoints", ignore_errors=True)
    mark = identity(job, driver)
    blind(tmp_path)
    fetch_tables(driver)
    # All of it came at once: nothing is fetched in a training.
    shutil.rmtree(tmp_path / "out" / "data")
    after = Worker(driver).run(job, keep_points)
    assert before.status is Status.DONE, before.error
    assert after.metrics == before.metrics
    assert after.curve == before.curve
    assert identity(job, driver) == mark
    assert len(list((tmp_path / "node" / "fetched").glob("*.arrow"))) == len(driver.contents)


def test_a_table_that_nobody_published_fails_in_words(driver, job_of, tmp_path):
    blind(tmp_path)
    with pytest.raises(DataError, match="does not see the prepared table"):
        fetch_tables(driver, patience=0)
    result = Worker(driver).run(job_of(), lambda point: True)
    assert result.status is Status.FAILED
    assert "ants-train.arrow" in result.error
    assert "resume the study, it publishes what nodes do not see" in result.error


def test_without_contents_only_the_path_counts(driver, tmp_path):
    bare = replace(driver, contents={})
    blind(tmp_path)
    path = driver.stores["ants"]["train"]
    assert table_here(bare, path) == Path(path)


def test_the_prompts_of_the_format_leak_are_fetched_too(driver, tmp_path):
    rows = [([1, 5, 6, 7, 2], [0] * 5)]
    kept, bare = (
        write_rows(tmp_path / "driver" / f"{name}.arrow", "bees", "eval", rows)
        for name in ("kept", "bare")
    )
    asked = (Asked("bees", kept, bare, 1, 1, 0, 0.0), Asked("cats", kept, None, 1, 0, 0, 0.0))
    prompts = Prompts("ants", Format(("w1",)), None, 4, (), 1.0, asked, (), {})
    setup = described(replace(driver, leak=prompts))
    assert prompts_here(setup) == prompts
    assert prompts_here(driver) is None
    publish_tables(setup)
    blind(tmp_path)
    (bees, cats), fetched = prompts_here(setup).asked, tmp_path / "node" / "fetched"
    assert Path(bees.kept) == fetched / f"{setup.contents[kept].sha256}.arrow"
    assert Path(bees.kept).read_bytes() == (tmp_path / "elsewhere" / "kept.arrow").read_bytes()
    assert Path(bees.bare).is_file()
    assert (cats.kept, cats.bare) == (bees.kept, None)
    assert setup.leak == prompts
