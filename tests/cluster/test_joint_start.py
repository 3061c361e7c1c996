"""A group of workers takes a job when all of its ranks have the tables, not when the first has."""

import os
from types import SimpleNamespace

import pytest
from ranks import on_ranks

from raymix.cluster import worker
from raymix.core.codec import encode
from raymix.data.fetch import content_of, publish
from raymix.train.config import Setup


class ToldDesk:
    """Notes what it is asked; knows of no job and sends workers home."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        def remote(*args):
            self.asked.append(name)
            return {"arrive": 1, "take": {"leave": True}}.get(name)

        return SimpleNamespace(remote=remote)


def serve(world, setup, caches):
    """What the desk of this rank was asked, and how the worker ended."""
    desk = ToldDesk()
    os.environ["RAYMIX_CACHE"] = caches[world.rank]
    train = SimpleNamespace(torch=SimpleNamespace(get_device=lambda: "cpu"))
    worker.ray = SimpleNamespace(
        get_actor=lambda name: desk, get=lambda answer: answer, train=train
    )
    worker.check_here = lambda terms: None
    worker._factory = lambda path: lambda setup, world: None
    config = {"terms": None, "threads": 1, "desk": "d", "pool": "p", "factory": "f", "beat": 10.0}
    try:
        worker.serve({**config, "setup": setup})
    except Exception as error:
        return desk.asked, str(error)
    return desk.asked, None


@pytest.fixture
def setup(tiny, tmp_path):
    """A setup of one table, which is published and which no rank sees."""
    table = tmp_path / "train.arrow"
    table.write_bytes(b"rows")
    content = {str(table): content_of(table)}
    publish(content, tmp_path / "study")
    table.unlink()
    make, _ = tiny
    known = make(tmp_path / "study")
    return encode(
        Setup(known.models, known.training, known.stores, known.output_dir, contents=content)
    )


def test_all_ranks_have_the_tables_before_one_asks_for_a_job(setup, tmp_path):
    caches = [str(tmp_path / "one"), str(tmp_path / "two")]
    answers = on_ranks(2, serve, setup, caches)
    assert [ended for _, ended in answers] == [None, None]
    # Signs of life there are where it takes long.
    first, other = ([word for word in asked if word != "fetching"] for asked, _ in answers)
    assert first == ["arrive", "take"]
    assert other == []
    assert all(list((tmp_path / name).glob("fetched/*.arrow")) for name in ("one", "two"))


def test_where_one_rank_has_no_room_none_takes_a_job_and_all_say_why(setup, tmp_path):
    (tmp_path / "two").write_text("a file, no folder")
    caches = [str(tmp_path / "one"), str(tmp_path / "two")]
    answers = on_ranks(2, serve, setup, caches)
    for asked, ended in answers:
        assert "arrive" not in asked
        assert "cannot fetch the prepared table" in ended
        assert "Not a directory" in ended
