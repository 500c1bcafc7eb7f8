"""Reconnect: what the browser retries, and what you must

A laboratory. The server sends a few events, drops the stream in the
way that you choose, and answers the reconnect as you choose. The
page says what the browser did, and why.

Notice: when a connection drops, the browser waits for the
reconnection time and reconnects with Last-Event-ID. A response that
is not an event stream stops it for good. To retry after such a
failure, and to notice that a stream has gone silent, is up to your
script. There is no `eventSource.reconnectTime`: the server's
`retry` field sets it.

Try: start with `status` 503 and tick both boxes. The browser has
failed, the page retries, and its waits get longer and longer. Then
choose 200, as if the server had recovered: the events resume after
the last one that arrived.

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
        header = request.headers.get("Last-Event-ID", "none")
        asked = {"url": request.full_path, "header": header}
        stream = events(asked, last, drop_after, drop)
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


def events(asked, last, drop_after, drop, sleep=time.sleep):
    yield Event(asked, event="asked")
    for id in range(last + 1, last + drop_after + 1):
        sleep(TICK_SECONDS)
        yield Event(f"event {id}", id=id)
    sleep(TICK_SECONDS)
    if drop == "cut":
        half = f"id: {last + drop_after + 1}\ndata: half an ev"
        yield half.encode()
    if drop == "silence":
        sleep(SILENCE_SECONDS)
