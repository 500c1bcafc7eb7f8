"""Reconnect: what the browser retries, and what you must

Break the stream in every way, and watch how EventSource responds.
The server sends a few events, drops the connection in the way that
you choose, and answers the reconnect as you choose.

Notice: after a dropped connection, the browser waits for the
reconnection time, which the server's `retry` field sets, and sends
Last-Event-ID. There is no `eventSource.reconnectTime`. A response
that is not an event stream stops the browser for good, and 204 does
so on purpose. Your script must retry after a failure, and notice
silence.

Try: start with status 503 and tick both boxes. The connection
fails, and the page says how long it waits before it creates a new
EventSource: on average, twice as long each time. Then choose 200,
as if the server had recovered. At the next attempt, the events
resume after the last one that arrived.

    curl -N "http://127.0.0.1:5000/stream/reconnect?drop=cut"
"""

import time

from flask import (
    Blueprint,
    Response,
    abort,
    redirect,
    request,
    url_for,
)

from checks import query_number
from sse import Event, EventStream, last_event_number

TICK_SECONDS = 0.5
SILENCE_SECONDS = 60
DROPS = ("end", "cut", "silence")
STATUSES = "200 204 301 307 401 404 500 503 text"

bp = Blueprint("reconnect", __name__)


@bp.get("/stream/reconnect")
def stream():
    retry = query_number("retry", 1000, 0, 60_000)
    drop_after = query_number("drop_after", 3, 0, 100)
    drop = choice("drop", DROPS)
    status = choice("status", STATUSES.split())
    # A new EventSource sends no id: the page puts it into the URL.
    last = last_event_number() or query_number("last", 0, 0, 10**15)
    is_reconnect = last > 0 or drop_after == 0
    if status == "200" or not is_reconnect:
        stream = events(last, drop_after, drop)
        return EventStream(stream, retry=retry)
    if status in ("301", "307"):
        query = request.args.to_dict() | {"last": last}
        del query["status"]
        return redirect(url_for(".stream", **query), int(status))
    if status == "text":
        return Response("data: no event\n\n", mimetype="text/plain")
    return Response(status=int(status))


def choice(name, allowed):
    value = request.args.get(name, allowed[0])
    if value not in allowed:
        abort(400, f"{name} must be one of {', '.join(allowed)}.")
    return value


def events(last, drop_after, drop, sleep=time.sleep):
    for id in range(last + 1, last + drop_after + 1):
        sleep(TICK_SECONDS)
        yield Event(f"event {id}", id=id)
    sleep(TICK_SECONDS)
    if drop == "cut":
        half = f"id: {last + drop_after + 1}\ndata: half an ev"
        yield half.encode()
    if drop == "silence":
        sleep(SILENCE_SECONDS)
