"""Plays at a desk without Ray: what its tests say to it."""

import asyncio

from raymix.cluster.desk import Desk

POINT = {"step": 1, "progress": 0.5, "metrics": {}}
DONE = {"status": "done"}


def job(trial, model="target", attempt=0):
    return {"trial": trial, "model": model, "attempt": attempt}


def run(play):
    asyncio.run(asyncio.wait_for(play(Desk()), 60))


async def soon(awaitable):
    """Start it; let everything run that can."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def taken(desk, pool, incarnation):
    return (await desk.take(pool, incarnation, 0.01))["job"]["trial"]
