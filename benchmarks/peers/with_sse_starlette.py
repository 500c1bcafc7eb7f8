"""Event streams with sse-starlette, written as in its documentation."""

import asyncio
import json
import time

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route


async def numbers():
    n = 0
    while True:
        n += 1
        now = time.time_ns() // 1_000_000
        yield {"id": str(n), "data": json.dumps({"id": n, "number": now})}
        await asyncio.sleep(0.05)


async def silence():
    await asyncio.Event().wait()
    yield {}


async def timer(request):
    return EventSourceResponse(numbers())


async def idle(request):
    return EventSourceResponse(silence())


app = Starlette(routes=[Route("/timer", timer), Route("/idle", idle)])
