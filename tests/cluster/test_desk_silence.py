"""The desk without Ray: which workers hang, and which have a reason to be silent."""

import pytest
from desk_plays import DONE, POINT, job, run, soon, taken

from raymix.cluster import desk as module


@pytest.fixture
def tenth(monkeypatch):
    """The desk's clock stands still; this lets a tenth of a second pass."""
    now = [0.0]
    monkeypatch.setattr(module, "_now", lambda: now[0])

    def go_on():
        now[0] += 0.1

    return go_on


async def silent(desk, seconds, idle=None):
    return (await desk.watch(seconds, idle))["silent"]


def test_a_job_hangs_when_its_workers_neither_report_nor_take_a_step(tenth):
    async def play(desk):
        a = await desk.arrive("a")
        await desk.submit(job(0), stoppable=False)
        await taken(desk, "a", a)
        assert await silent(desk, 5) == {}
        for word in (desk.beat(0, 0), desk.push(0, 0, POINT)):
            tenth()
            assert await silent(desk, 0.05) == {"a": 0}
            await word
            assert await silent(desk, 0.05) == {}
        tenth()
        await desk.beat(0, 1)
        assert await silent(desk, 0.05) == {"a": 0}, "the sign of life of another delivery"
        assert await silent(desk, None) == {}
        await desk.finish(0, 0, DONE)
        assert await silent(desk, 0.05) == {}

    run(play)


def test_workers_without_a_job_hang_when_they_neither_arrive_nor_ask_for_one(tenth):
    async def play(desk):
        async def hangs():
            assert await silent(desk, None, None) == {}
            return await silent(desk, None, 0.05) == {"a": None}

        await desk.introduce("a", "controller")
        tenth()
        assert not await hangs(), "it waits for a machine, as long as that takes"
        await desk.starting("a")
        assert not await hangs()
        tenth()
        assert await hangs(), "it has processes, which do not arrive"
        a = await desk.arrive("a")
        assert not await hangs()
        tenth()
        assert await hangs(), "it has arrived and asks for nothing"
        waiting = await soon(desk.take("a", a, 0.2))
        tenth()
        assert not await hangs(), "it waits for us"
        assert await waiting is None
        tenth()
        assert await hangs(), "it was told that there is nothing and does not ask again"
        await desk.submit(job(0), stoppable=False)
        await taken(desk, "a", a)
        tenth()
        assert not await hangs(), "it has a job"
        await desk.finish(0, 0, DONE)
        assert not await hangs()
        tenth()
        assert await hangs(), "it has done its job and does not ask for another"
        await desk.crashed("a", "killed")
        assert not await hangs()

    run(play)


def test_workers_that_fetch_are_alive_and_those_that_wait_for_room_do_not_hang(tenth):
    async def play(desk):
        async def hangs():
            return await silent(desk, None, 0.05) == {"a": None}

        await desk.starting("a")
        tenth()
        await desk.fetching("a")
        assert not await hangs()
        tenth()
        assert await hangs(), "it fetches no more, and does not arrive"
        # It died before it arrived, and its node with it: no word of it is still due.
        await desk.waits("a")
        assert not await hangs()
        await desk.fetching("a")
        tenth()
        assert not await hangs(), "it is dead, only its last word came late"
        await desk.starting("a")
        a = await desk.arrive("a")
        assert (await desk.watch(None, None))["up"] == {"a": True}
        await desk.submit(job(0), stoppable=False)
        await taken(desk, "a", a)
        await desk.fetching("a")
        tenth()
        assert not await hangs(), "it has a job, another rank's word came late"
        await desk.waits("a")
        assert (await desk.watch(None, None))["up"] == {"a": False}

    run(play)


def test_workers_that_wait_for_an_answer_do_not_hang(tenth):
    async def play(desk):
        a = await desk.arrive("a")
        await desk.submit(job(0), stoppable=True)
        await taken(desk, "a", a)
        pushed = await soon(desk.push(0, 0, POINT))
        tenth()
        assert await silent(desk, 0.05) == {}
        await desk.answer(0, True)
        assert await pushed
        assert await silent(desk, 0.05) == {}
        tenth()
        assert await silent(desk, 0.05) == {"a": 0}

    run(play)
