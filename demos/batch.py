"""Batch: thousands of messages, a few events

Collect messages that arrive fast, and send many of them in one
event. They wait in a buffer, which the server sends a few times a
second, as a JSON array.

Notice: both streams carry the same number of messages, but the
batched one needs far fewer events, and fewer bytes. No message is
lost unless the client is far too slow. Then a `dropped` event
reports how many.

Try: set the messages a second to 10000 and press Start. The batched
stream still sends ten events a second, each with about a thousand
messages. The other one sends nearly ten thousand events.

    curl -N "http://127.0.0.1:5000/stream/batch?rate=1000&flush=500"
"""

import threading
import time
from collections import deque
from random import random

from flask import Blueprint, abort

from checks import allow_any_origin, query_number
from sse import Event, EventStream

RATE_PER_SECOND = 1000
FLUSH_MS = 100
MAX_TURN = 200  # messages, then other clients get a turn
MAX_BUFFER = 10_000  # messages, 3 MB; sent early when half full

bp = Blueprint("batch", __name__)
bp.after_request(allow_any_origin)


@bp.get("/stream/batch")
def stream():
    rate = query_number("rate", RATE_PER_SECOND, 1, 10_000)
    flush = query_number("flush", FLUSH_MS, 0, 5000)
    if 0 < flush < 10:
        abort(400, "flush must be 0 (no batches), or 10 to 5000.")
    return EventStream(batches(rate, flush / 1000))


def produce(rate, put, closed):
    start, n = time.monotonic(), 0
    while not closed.wait(0.01):
        due = int((time.monotonic() - start) * rate)
        n = max(n, due - MAX_BUFFER)  # earlier ones don't fit
        made = range(n + 1, min(due, n + MAX_TURN) + 1)
        put([{"n": i, "value": round(random(), 3)} for i in made])
        n += len(made)


def batches(rate, flush_seconds, produce=produce):
    buffer = deque(maxlen=MAX_BUFFER)  # drops the oldest when full
    arrived, closed = threading.Condition(), threading.Event()

    def put(messages):
        with arrived:
            buffer.extend(messages)
            arrived.notify()

    job = (rate, put, closed)
    source = threading.Thread(target=produce, args=job, daemon=True)
    sent, most = 0, MAX_BUFFER if flush_seconds else MAX_TURN
    try:
        source.start()
        while True:
            time.sleep(min(flush_seconds or 0.001, most / 2 / rate))
            with arrived:
                arrived.wait_for(lambda: buffer)
                count = min(len(buffer), most)
                messages = [buffer.popleft() for _ in range(count)]
            if dropped := messages[-1]["n"] - sent - count:
                yield Event({"dropped": dropped}, event="dropped")
            sent = messages[-1]["n"]
            if flush_seconds:
                yield Event(messages)
            else:
                yield from map(Event, messages)
    finally:
        closed.set()
