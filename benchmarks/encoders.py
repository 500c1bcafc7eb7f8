"""Compare how fast this app and other libraries encode and parse events."""

import timeit
from collections.abc import Callable, Iterable, Iterator

import httpx
from httpx_sse import EventSource
from sse_starlette import JSONServerSentEvent
from sseclient import SSEClient

from event_source import parse_events
from sse import Event

DATA = {"id": 1234, "number": 56, "text": "a few words, as a token has them"}
EVENTS = 1000
CHUNK_BYTES = 4096


def httpx_sse(chunks: Iterable[bytes]) -> Iterator:
    headers = {"Content-Type": "text/event-stream"}
    response = httpx.Response(200, headers=headers, content=iter(chunks))
    return EventSource(response).iter_sse()


def sseclient_py(chunks: Iterable[bytes]) -> Iterator:
    return SSEClient(iter(chunks)).events()


PARSERS = {
    "this app": parse_events,
    "httpx-sse": httpx_sse,
    "sseclient-py": sseclient_py,
}
ENCODERS = {
    "this app": lambda: Event(DATA, id=1234).encode(),
    "sse-starlette": lambda: JSONServerSentEvent(DATA, id="1234").encode(),
}


def nanoseconds(call: Callable[[], object], times: int) -> float:
    """Return the average time of a call."""
    return timeit.timeit(call, number=times) / times * 1e9


def encode(times: int) -> Iterator[tuple[str, float]]:
    """Yield the ns that each encoder takes to create and encode an event."""
    for name, call in ENCODERS.items():
        yield name, nanoseconds(call, times)


def parse(times: int) -> Iterator[tuple[str, float]]:
    """Yield the ns that each parser takes per event, in chunks of 4 KiB."""
    stream = Event(DATA, id=1234, event="message").encode() * EVENTS
    starts = range(0, len(stream), CHUNK_BYTES)
    chunks = [stream[start : start + CHUNK_BYTES] for start in starts]
    for name, parser in PARSERS.items():

        def call(parser=parser) -> int:
            return sum(1 for _ in parser(chunks))

        if call() != EVENTS:
            raise SystemExit(f"{name} missed events.")
        yield name, nanoseconds(call, times // EVENTS) / EVENTS
