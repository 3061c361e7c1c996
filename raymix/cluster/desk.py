"""The desk: trials hand in jobs, pools take them, reports and answers pass through.

A plain asyncio class; `open_desk` makes it a Ray actor. Everything said to it and by it is JSON.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from raymix.core.codec import encode
from raymix.core.influence import PROGRESS
from raymix.core.job import Json, Status, TrainResult

LEAVE: Json = {"leave": True}
"""Said to a pool: no more jobs, ever."""
CLOSED: Json = {"closed": True}
"""Said to a trial: the study ends before the job did."""


@dataclass
class _Ticket:
    """One job on the desk. `pool`: who trains it now; None: it waits, or is finished.

    `heard`: when its workers last gave a sign of life, on the clock of the loop. `spent` counts
    deliveries that are over; `strikes` workers that died since it has last come further than ever
    before, to `furthest`: its step, and how far an influence is measured there.
    """

    job: dict[str, Any]
    stoppable: bool
    spent: int = 0
    strikes: int = 0
    furthest: tuple[int, float] = (0, 0.0)
    delivered: bool = False
    pool: str | None = None
    heard: float = 0.0
    events: asyncio.Queue[Json] = field(default_factory=asyncio.Queue)
    answer: asyncio.Future[bool] | None = None

    @property
    def attempt(self) -> int:
        """Number of this delivery; a study that was resumed does not start at 0."""
        return int(self.job["attempt"]) + self.spent

    def settle(self, go_on: bool) -> None:
        """Answer the report that is waiting, if one is."""
        if self.waits:
            assert self.answer is not None
            self.answer.set_result(go_on)

    @property
    def waits(self) -> bool:
        """Whether its workers wait for an answer of ours."""
        return self.answer is not None and not self.answer.done()


@dataclass
class _Group:
    """A pool's worker group through all its restarts; `idle_crashes` in a row, without a job.

    `up`: its workers have arrived and are not known to have died. `ended`: for good. `heard`: when
    they last began or ended something; None: there are none, or they have a job, or wait for one.
    """

    incarnation: int = 0
    up: bool = False
    ended: bool = False
    model: str = ""
    idle_crashes: int = 0
    heard: float | None = None
    controller: Any = None


class Desk:
    """Jobs in, reports out. `deliveries`: how often workers may die in one job before it fails.

    What comes further than ever before starts that count again: a long job on machines that are
    taken away now and then is no job that kills its workers.

    A job belongs to the pool that took it until it is finished; what an earlier delivery of it
    still says is not heard. Any pool takes any job: first the oldest of the model that it holds.
    """

    def __init__(self, deliveries: int = 3) -> None:
        self._deliveries = deliveries
        self._tickets: dict[int, _Ticket] = {}
        self._waiting: deque[int] = deque()
        self._groups: dict[str, _Group] = {}
        self._resting: dict[str, asyncio.Event] = {}
        self._work = asyncio.Event()
        self._closed = False

    async def submit(self, job: Json, stoppable: bool) -> None:
        """Hand in a job; `stoppable`: each of its points waits for `answer`.

        A job of the same trial that is still here (its Tune trial died) is heard no more: no
        delivery of this one has the number of one of its.
        """
        ticket = _Ticket(dict(job), stoppable)
        former = self._tickets.get(job["trial"])
        if former is not None:
            former.settle(go_on=False)
            ticket.spent = max(0, former.attempt + former.delivered - ticket.attempt)
        self._tickets[job["trial"]] = ticket
        if job["trial"] not in self._waiting:
            self._waiting.append(job["trial"])
        self._work.set()

    async def next(self, trial: int) -> Json:
        """The next event of a job: {"point": ...}, in the end {"result": ...}; or CLOSED."""
        if self._closed:
            return CLOSED
        event = await self._tickets[trial].events.get()
        if "point" not in event:
            self._tickets.pop(trial, None)
        return event

    async def answer(self, trial: int, go_on: bool) -> None:
        """Say whether a stoppable job goes on after the point that it has just reported."""
        ticket = self._tickets.get(trial)
        if ticket is not None:
            ticket.settle(go_on)

    async def rest(self, process: str) -> None:
        """Wait for `wake` (a trial's process that has no trial yet)."""
        if not self._closed:
            await self._resting.setdefault(process, asyncio.Event()).wait()

    async def wake(self, process: str) -> None:
        """Let a resting process go."""
        self._resting.setdefault(process, asyncio.Event()).set()

    async def waits(self, pool: str) -> None:
        """A worker group waits for room; what processes it had are no more."""
        group = self._groups.setdefault(pool, _Group())
        group.up, group.heard = False, None

    async def starting(self, pool: str) -> None:
        """A worker group has its processes and will arrive."""
        self._groups.setdefault(pool, _Group()).heard = _now()

    async def fetching(self, pool: str) -> None:
        """A worker group that starts is alive; of one that has a job, or died, it is too late."""
        group = self._groups.setdefault(pool, _Group())
        if group.heard is not None:
            group.heard = _now()

    async def arrive(self, pool: str) -> int:
        """A worker group has started (again); says which incarnation of its pool it is.

        One whose pool has ended came too late (a node did, while Ray was ending it) and is none.
        """
        group = self._groups.setdefault(pool, _Group())
        if group.ended:
            return 0
        group.incarnation += 1
        group.up = True
        group.heard = _now()
        group.model = ""
        self._again(pool, "the worker group was restarted")
        return group.incarnation

    async def take(self, pool: str, incarnation: int, patience: float) -> Json:
        """The next job as {"job": ...}; None after `patience` seconds without one; or LEAVE."""
        group = self._groups[pool]
        end = _now() + patience
        while not self._closed and group.incarnation == incarnation:
            group.heard = None
            if self._waiting:
                return {"job": self._deliver(pool, group)}
            self._work.clear()
            try:
                await asyncio.wait_for(self._work.wait(), end - _now())
            except TimeoutError:
                if group.incarnation == incarnation:
                    group.heard = _now()
                return None
        return LEAVE

    def _deliver(self, pool: str, group: _Group) -> Json:
        """Take the oldest waiting job of the group's model, or else the oldest, for `pool`."""
        same = (t for t in self._waiting if self._tickets[t].job["model"] == group.model)
        trial = next(same, self._waiting[0])
        self._waiting.remove(trial)
        ticket = self._tickets[trial]
        ticket.pool, ticket.delivered = pool, True
        ticket.heard = _now()
        group.model = ticket.job["model"]
        return {**ticket.job, "attempt": ticket.attempt}

    async def push(self, trial: int, attempt: int, point: Json) -> bool:
        """Report a point of a delivery; False asks it to stop."""
        ticket = self._current(trial, attempt)
        if ticket is None:
            return False
        come = (point["step"], point.get("metrics", {}).get(PROGRESS, 0.0))
        if come > ticket.furthest:
            ticket.furthest, ticket.strikes = come, 0
        if ticket.stoppable:
            ticket.answer = asyncio.get_running_loop().create_future()
        ticket.events.put_nowait({"point": point})
        go_on = await ticket.answer if ticket.answer is not None else True
        ticket.heard = _now()
        return go_on

    async def beat(self, trial: int, attempt: int) -> None:
        """The workers of a delivery are alive: they have taken an optimizer step."""
        ticket = self._current(trial, attempt)
        if ticket is not None:
            ticket.heard = _now()

    async def watch(self, seconds: float | None, idle: float | None) -> Json:
        """The state of the pools: `up`, whether each has workers; `silent`, what hangs.

        `silent` gives the trial that a pool holds and of which nothing was heard for `seconds`; or
        None, where its workers have no trial and were to arrive, or to ask for one, for `idle`
        seconds. Workers that wait for our answer do not hang. None: nothing ever hangs.
        """
        limit = math.inf if seconds is None else seconds
        held = (t for t in self._tickets.values() if t.pool is not None and not t.waits)
        late = {t.pool: t.job["trial"] for t in held if _now() - t.heard > limit}
        limit = math.inf if idle is None else idle
        due = ((n, g.heard) for n, g in self._groups.items() if g.heard is not None)
        late |= {name: None for name, heard in due if _now() - heard > limit}
        return {"up": {name: group.up for name, group in self._groups.items()}, "silent": late}

    async def finish(self, trial: int, attempt: int, result: Json) -> None:
        """Hand in the result of a delivery."""
        ticket = self._current(trial, attempt)
        if ticket is not None and ticket.pool is not None:
            group = self._groups[ticket.pool]
            group.idle_crashes, group.heard = 0, _now()
            ticket.pool = None
            ticket.events.put_nowait({"result": result})

    def _current(self, trial: int, attempt: int) -> _Ticket | None:
        ticket = self._tickets.get(trial)
        live = ticket is not None and ticket.attempt == attempt and ticket.pool is not None
        return ticket if live and not self._closed else None

    async def crashed(self, pool: str, reason: str) -> bool:
        """A worker group died; its job goes back to the queue. False: give this pool up.

        A job that kills its workers is given up by itself; a pool is given up when it dies
        without a job as often in a row.
        """
        group = self._groups.setdefault(pool, _Group())
        group.idle_crashes = 0 if self._again(pool, reason) else group.idle_crashes + 1
        # Whatever the dead workers still wait for must not be given a job.
        group.incarnation += 1
        group.up, group.heard = False, None
        self._work.set()
        return group.idle_crashes < self._deliveries

    async def introduce(self, pool: str, controller: Any) -> None:
        """Remember the actor that controls a pool's workers."""
        self._groups.setdefault(pool, _Group()).controller = controller

    async def controller(self, pool: str) -> Any:
        """The actor that controls a pool's workers; None before it has started."""
        return self._groups.setdefault(pool, _Group()).controller

    async def gone(self, pool: str, reason: str) -> None:
        """A pool has ended for good; its job goes back to the queue."""
        self._again(pool, reason)
        group = self._groups.setdefault(pool, _Group())
        group.incarnation += 1
        group.up, group.ended, group.heard = False, True, None

    def _again(self, pool: str, reason: str) -> bool:
        """Queue the job that `pool` held, if any, in front; after the last strike it failed."""
        held = next((t for t in self._tickets.values() if t.pool == pool), None)
        if held is None:
            return False
        held.settle(go_on=False)
        held.pool = held.answer = None
        held.spent, held.delivered = held.spent + 1, False
        held.strikes += 1
        if held.strikes < self._deliveries:
            self._waiting.appendleft(held.job["trial"])
            self._work.set()
        else:
            error = f"workers died {held.strikes} times in this training; the last time: {reason}"
            lost = TrainResult(Status.FAILED, {}, error=error)
            held.events.put_nowait({"result": encode(lost)})
        return True

    async def here(self) -> bool:
        """Whether there still is a desk: where there is none, asking is an error."""
        return not self._closed

    async def close(self) -> None:
        """No more jobs: idle pools leave, waiting trials hear CLOSED, running jobs stop."""
        self._closed = True
        for ticket in self._tickets.values():
            ticket.events.put_nowait(CLOSED)
            ticket.settle(go_on=False)
        for resting in self._resting.values():
            resting.set()
        self._work.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
