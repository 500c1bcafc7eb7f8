"""Numbers: event ids, so a dropped connection loses nothing

When a connection drops, the browser reconnects and sends the last
id that it received. The id comes in the header `Last-Event-ID`, and
the server resumes with the next number. Each event here has an id,
and JSON as its data.

Notice: press "Cut the connection". The ids continue with no gap and
no duplicate. The page's script has no code to reconnect.

Try: with `flask run --reload`, press Start, change `choose(100)` to
`choose(10)`, and save. The server restarts, the browser reconnects,
and the ids continue, now with numbers below 10.

    curl -N -H "Last-Event-ID: 41" \
        http://127.0.0.1:5000/real-time-updates
"""

import time
from random import randrange
from types import SimpleNamespace

from flask import Blueprint

from checks import allow_any_origin, query_number, same_origin_only
from sse import Event, EventStream, last_event_number

INTERVAL_SECONDS = 1.0

bp = Blueprint("numbers", __name__)
bp.after_request(allow_any_origin)
cable = SimpleNamespace(cuts=0)


@bp.get("/real-time-updates")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    first = last_event_number() + 1
    return EventStream(numbers(first, interval, cable))


@bp.post("/real-time-updates/cut")
def cut():
    same_origin_only()
    cable.cuts += 1  # ends all streams: they look like dropped ones
    return "", 204


def numbers(n, interval, cable, choose=randrange, sleep=time.sleep):
    cuts = cable.cuts
    while cable.cuts == cuts:
        yield Event({"id": n, "number": choose(100)}, id=n)
        n += 1
        sleep(interval)
