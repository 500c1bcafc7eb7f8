"""Event streams with FastAPI, written as in its documentation."""

import asyncio
import time
from collections.abc import AsyncIterable

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from openai import AsyncOpenAI

app = FastAPI()
client = AsyncOpenAI()


@app.get("/timer", response_class=EventSourceResponse)
async def timer() -> AsyncIterable[ServerSentEvent]:
    n = 0
    while True:
        n += 1
        now = time.time_ns() // 1_000_000
        yield ServerSentEvent(data={"id": n, "number": now}, id=str(n))
        await asyncio.sleep(0.05)


@app.get("/idle", response_class=EventSourceResponse)
async def idle() -> AsyncIterable[ServerSentEvent]:
    await asyncio.Event().wait()
    yield ServerSentEvent()


@app.get("/completion", response_class=EventSourceResponse)
async def completion(prompt: str) -> AsyncIterable[ServerSentEvent]:
    answer = await client.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": prompt}],
        stream=True,
    )
    async for chunk in answer:
        if text := chunk.choices[0].delta.content:
            yield ServerSentEvent(raw_data=text)
