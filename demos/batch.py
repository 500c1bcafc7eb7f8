"""Batch: thousands of messages, a few events

Messages arrive faster than it is wise to send them. They collect in
a buffer, and a few times a second all of them leave as one event, a
JSON array.

Notice: both sides show the same number of messages a second, but
the batched side needs far fewer events, and fewer bytes. No message
is repeated, and none is lost unless the client is far too slow:
then an event `dropped` says how many.

Try: set the messages a second to 10000 and press Start. The batched
side still gets ten events a second, each with a thousand messages.
The other side gets ten thousand events.

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
    while not closed.wait(max(1 / rate, 0.001)):
        while n < (time.monotonic() - start) * rate:
            n += 1
            put({"n": n, "value": round(random(), 3)})


def batches(rate, flush_seconds, produce=produce):
    room = int(2 * rate * max(flush_seconds, 1))
    buffer = deque(maxlen=room)  # drops the oldest if it is full
    arrived, closed = threading.Condition(), threading.Event()

    def put(message):
        with arrived:
            buffer.append(message)
            arrived.notify()

    job = (rate, put, closed)
    source = threading.Thread(target=produce, args=job, daemon=True)
    sent = 0
    try:
        source.start()
        while True:
            time.sleep(flush_seconds)
            with arrived:
                arrived.wait_for(lambda: buffer)
                messages = list(buffer)
                buffer.clear()
            dropped = messages[0]["n"] - sent - 1
            if dropped:
                yield Event({"dropped": dropped}, event="dropped")
            sent = messages[-1]["n"]
            if flush_seconds:
                yield Event(messages)
            else:
                yield from map(Event, messages)
    finally:
        closed.set()
