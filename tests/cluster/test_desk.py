"""The desk without Ray: who gets which job, what is heard of whom, what happens to the lost."""

import asyncio
from contextlib import suppress

from desk_plays import DONE, POINT, job, run, soon, taken

from raymix.cluster.desk import CLOSED, LEAVE


def test_a_job_goes_to_a_waiting_pool_and_its_reports_come_back():
    async def play(desk):
        one = await desk.arrive("a")
        waiting = await soon(desk.take("a", one, 5))
        await desk.submit(job(7), stoppable=False)
        assert (await waiting) == {"job": job(7)}
        assert await desk.push(7, 0, POINT)
        await desk.finish(7, 0, DONE)
        assert await desk.next(7) == {"point": POINT}
        assert await desk.next(7) == {"result": DONE}
        assert await desk.take("a", one, 0.01) is None

    run(play)


def test_each_waiting_pool_gets_one_job():
    async def play(desk):
        pools = {name: await desk.arrive(name) for name in "abc"}
        waiting = [await soon(desk.take(name, n, 5)) for name, n in pools.items()]
        for trial in range(3):
            await desk.submit(job(trial), stoppable=False)
        got = await asyncio.gather(*waiting)
        assert sorted(word["job"]["trial"] for word in got) == [0, 1, 2]

    run(play)


def test_a_pool_prefers_the_model_it_holds_and_else_the_oldest_job():
    async def play(desk):
        a = await desk.arrive("a")
        await desk.submit(job(0, "proxy"), stoppable=False)
        assert await taken(desk, "a", a) == 0
        await desk.finish(0, 0, DONE)
        for trial, model in enumerate(["target", "other", "proxy"], start=1):
            await desk.submit(job(trial, model), stoppable=False)
        assert await taken(desk, "a", a) == 3
        assert await taken(desk, "a", a) == 1

    run(play)


def test_a_stoppable_job_waits_for_the_answer_to_each_point():
    async def play(desk):
        a = await desk.arrive("a")
        await desk.submit(job(0), stoppable=True)
        await taken(desk, "a", a)
        for go_on in (True, False):
            pushed = await soon(desk.push(0, 0, POINT))
            assert not pushed.done()
            assert await desk.next(0) == {"point": POINT}
            await desk.answer(0, go_on)
            assert await pushed is go_on

    run(play)


def test_the_job_of_a_dead_group_goes_to_whoever_is_free_and_the_dead_are_not_heard():
    async def play(desk):
        a, b = await desk.arrive("a"), await desk.arrive("b")
        await desk.submit(job(0), stoppable=True)
        await taken(desk, "a", a)
        pushed = await soon(desk.push(0, 0, POINT))
        waiting = await soon(desk.take("b", b, 5))
        assert await desk.crashed("a", "killed")
        assert await pushed is False
        assert (await waiting) == {"job": job(0, attempt=1)}
        assert await desk.push(0, 0, POINT) is False
        await desk.finish(0, 0, DONE)
        await desk.finish(0, 1, {"status": "done", "by": "b"})
        assert await desk.next(0) == {"point": POINT}
        assert await desk.next(0) == {"result": {"status": "done", "by": "b"}}

    run(play)


def test_a_dead_groups_waiting_take_gets_no_job():
    async def play(desk):
        a = await desk.arrive("a")
        ghost = await soon(desk.take("a", a, 5))
        await desk.crashed("a", "killed")
        assert await ghost == LEAVE
        again = await desk.arrive("a")
        await desk.submit(job(0), stoppable=False)
        assert await desk.take("a", a, 0.01) == LEAVE
        assert await taken(desk, "a", again) == 0

    run(play)


def test_a_group_that_comes_back_unannounced_gets_its_job_again():
    async def play(desk):
        a = await desk.arrive("a")
        await desk.submit(job(4, attempt=2), stoppable=False)
        await taken(desk, "a", a)
        again = await desk.arrive("a")
        assert (await desk.take("a", again, 0.01))["job"] == job(4, attempt=3)

    run(play)


def test_a_job_that_kills_its_workers_fails_after_three_deliveries():
    async def play(desk):
        for delivery in range(3):
            if delivery == 0:
                await desk.submit(job(0), stoppable=False)
            a = await desk.arrive("a")
            assert (await desk.take("a", a, 0.01))["job"]["attempt"] == delivery
            assert await desk.crashed("a", "out of memory")
        result = (await desk.next(0))["result"]
        assert result["status"] == "failed"
        assert "3 times" in result["error"]
        assert "out of memory" in result["error"]

    run(play)


def test_a_job_that_comes_further_before_each_death_is_not_given_up():
    async def play(desk):
        await desk.submit(job(0), stoppable=False)
        a = await desk.arrive("a")
        for delivery, step in enumerate([1, 2, 3, 4, 4, 4, 3]):
            assert (await desk.take("a", a, 0.01))["job"]["attempt"] == delivery
            assert await desk.push(0, delivery, {**POINT, "step": step})
            assert await desk.crashed("a", "spot instance taken away")
            a = await desk.arrive("a")
            points = [await desk.next(0)]
            assert points == [{"point": {**POINT, "step": step}}]
            if delivery == 5:
                break
        # Deaths after step 4, 4 again and 4 again: no further, so these are its three strikes.
        result = (await desk.next(0))["result"]
        assert "workers died 3 times" in result["error"]
        assert await desk.take("a", a, 0.01) is None

    run(play)


def test_an_influence_that_is_measured_further_is_further_too():
    async def play(desk):
        await desk.submit(job(0), stoppable=False)
        for delivery, done in enumerate([0.0, 0.2, 0.5, 0.8, 0.8, 0.7]):
            a = await desk.arrive("a")
            assert (await desk.take("a", a, 0.01))["job"]["attempt"] == delivery
            # The training is over: its last point is said again.
            point = {"step": 9, "progress": 1.0, "metrics": {"influence/progress": done}}
            assert await desk.push(0, delivery, point)
            assert await desk.next(0) == {"point": point}
            assert await desk.crashed("a", "spot instance taken away")
        result = (await desk.next(0))["result"]
        assert "workers died 3 times" in result["error"]

    run(play)


def test_a_pool_that_dies_three_times_without_a_job_is_given_up():
    async def play(desk):
        assert await desk.crashed("a", "no such file")
        assert await desk.crashed("a", "no such file")
        assert not await desk.crashed("a", "no such file")

    run(play)


def test_a_finished_job_makes_up_for_crashes():
    async def play(desk):
        for trial in range(3):
            assert await desk.crashed("a", "spot instance taken away")
            assert await desk.crashed("a", "spot instance taken away")
            a = await desk.arrive("a")
            await desk.submit(job(trial), stoppable=False)
            await taken(desk, "a", a)
            await desk.finish(trial, 0, DONE)

    run(play)


def test_a_trial_handed_in_again_replaces_the_first():
    async def play(desk):
        a = await desk.arrive("a")
        await desk.submit(job(0), stoppable=False)
        await desk.submit(job(0, attempt=1), stoppable=False)
        assert (await desk.take("a", a, 0.01))["job"]["attempt"] == 1
        assert await desk.take("a", a, 0.01) is None

    run(play)


def test_what_is_handed_in_again_is_not_taken_for_a_former_delivery():
    async def play(desk):
        a, b = await desk.arrive("a"), await desk.arrive("b")
        await desk.submit(job(0), stoppable=False)
        await taken(desk, "a", a)
        await desk.crashed("a", "killed")
        a = await desk.arrive("a")
        assert (await desk.take("a", a, 0.01))["job"]["attempt"] == 1
        await desk.submit(job(0, attempt=1), stoppable=False)
        assert (await desk.take("b", b, 0.01))["job"]["attempt"] == 2
        assert await desk.push(0, 1, POINT) is False
        await desk.finish(0, 1, {"by": "a"})
        await desk.finish(0, 2, {"by": "b"})
        # Nobody has heard of that result when its Tune trial dies, too.
        await desk.submit(job(0, attempt=1), stoppable=False)
        assert (await desk.take("b", b, 0.01))["job"]["attempt"] == 3
        await desk.finish(0, 3, DONE)
        assert await desk.next(0) == {"result": DONE}

    run(play)


def test_closing_wakes_everyone():
    async def play(desk):
        a, b = await desk.arrive("a"), await desk.arrive("b")
        await desk.submit(job(0), stoppable=True)
        await taken(desk, "a", a)
        waiting = await soon(desk.take("b", b, 5))
        pushed = await soon(desk.push(0, 0, POINT))
        resting = await soon(desk.rest("trial"))
        assert await desk.next(0) == {"point": POINT}
        hearing = await soon(desk.next(0))
        await desk.close()
        assert await waiting == LEAVE
        assert await pushed is False
        assert await hearing == CLOSED
        await resting
        assert await desk.next(0) == CLOSED
        assert await desk.push(0, 0, POINT) is False
        await desk.rest("another")

    run(play)


def test_a_resting_process_sleeps_until_it_is_woken():
    async def play(desk):
        resting = await soon(desk.rest("one"))
        await desk.wake("two")
        assert not resting.done()
        await desk.wake("one")
        await resting
        await desk.rest("two")
        with suppress(TimeoutError):
            await asyncio.wait_for(desk.rest("three"), 0.01)
            raise AssertionError

    run(play)


def test_a_pool_that_was_given_up_gets_no_job_and_its_job_goes_to_another():
    async def play(desk):
        a, b = await desk.arrive("a"), await desk.arrive("b")
        assert (await desk.watch(5, None))["up"] == {"a": True, "b": True}
        await desk.submit(job(0), stoppable=False)
        await taken(desk, "a", a)
        ghost = await soon(desk.push(0, 0, POINT))
        await desk.gone("a", "it hangs")
        assert (await desk.watch(5, None))["up"] == {"a": False, "b": True}
        assert (await desk.take("b", b, 0.01))["job"] == job(0, attempt=1)
        assert await ghost is True
        assert await desk.push(0, 0, POINT) is False
        await desk.submit(job(1), stoppable=False)
        assert await desk.take("a", a, 0.01) == LEAVE
        await desk.crashed("b", "killed")
        assert (await desk.watch(5, None))["up"] == {"a": False, "b": False}

    run(play)


def test_workers_that_come_up_after_their_pool_has_ended_get_no_job():
    async def play(desk):
        b = await desk.arrive("b")
        await desk.arrive("a")
        await desk.crashed("a", "its node has gone")
        await desk.gone("a", "its node has gone")
        late = await desk.arrive("a")
        await desk.submit(job(0), stoppable=False)
        assert await desk.take("a", late, 0.01) == LEAVE
        assert (await desk.watch(5, None))["up"] == {"a": False, "b": True}
        assert await taken(desk, "b", b) == 0

    run(play)
