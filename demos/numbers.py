"""Numbers: ids, so that a lost connection loses no event

When a connection drops, the browser reconnects by itself and sends the last id
that it saw as Last-Event-ID, so that the server goes on at the next one. Every
event here has such an id, and data in JSON.

Notice: the ids go on without a gap and without a repeat, although the stream
was cut. The page does nothing for that: no line of its script reconnects.

Try: with `flask run --reload`, press Start, write `choose(10)` for
`choose(100)`, and save. The server starts again, the browser comes back, and
the ids go on, now with numbers below 10.

    curl -N -H "Last-Event-ID: 41" http://127.0.0.1:5000/real-time-updates
"""

import time
from random import randrange
from types import SimpleNamespace

from flask import Blueprint

from sse import Event, EventStream, last_event_number, query_number

INTERVAL_SECONDS = 1.0

bp = Blueprint("numbers", __name__)
cable = SimpleNamespace(cuts=0)


@bp.get("/real-time-updates")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    return EventStream(numbers(last_event_number() + 1, interval, cable))


@bp.post("/real-time-updates/cut")
def cut():
    """End every open stream: to a browser, a lost connection."""
    cable.cuts += 1
    return "", 204


def numbers(n, interval, cable, choose=randrange, sleep=time.sleep):
    cuts = cable.cuts
    while cable.cuts == cuts:
        yield Event({"id": n, "number": choose(100)}, id=n)
        n += 1
        sleep(interval)
