"""Reconnect: what a browser does when things go wrong

A laboratory. The server sends a few events, drops the stream in the way that
you choose, and gives the browser that comes back the answer that you choose.
The page says what the browser did, and why.

Notice: a connection that is lost the browser reestablishes: it waits for the
reconnection time and asks again, with Last-Event-ID. After an answer that is no
event stream it fails the connection, for good. Coming back after that, and
noticing that nothing comes any more, it leaves to the page. There is no
`eventSource.reconnectTime`: the `retry` field of the server sets it.

Try: start with `status` 503 and both boxes ticked. The browser has failed, the
page comes back, and its waits get longer and longer. Then choose 200, as if the
server had recovered: the events go on after the last that was seen.

    curl -N "http://127.0.0.1:5000/stream/reconnect?retry=500&drop=cut"
"""

import time

from flask import Blueprint, Response, abort, redirect, request, url_for

from sse import Event, EventStream, last_event_number, query_number

TICK_SECONDS = 0.5
SILENCE_SECONDS = 60
DROPS = ("end", "cut", "silence")
STATUSES = ("200", "204", "301", "307", "401", "404", "500", "503", "text")

bp = Blueprint("reconnect", __name__)


@bp.get("/stream/reconnect")
def stream():
    retry = query_number("retry", 1000, 0, 60_000)
    drop_after = query_number("drop_after", 3, 0, 100)
    drop = choice("drop", DROPS)
    status = choice("status", STATUSES)
    # A new EventSource can send no header, so its URL says where to go on.
    last = last_event_number() or query_number("last", 0, 0, 10**15)
    comes_back = last > 0 or drop_after == 0
    if status == "200" or not comes_back:
        header = request.headers.get("Last-Event-ID", "none")
        asked = {"url": request.full_path, "header": header}
        return EventStream(events(asked, last, drop_after, drop), retry=retry)
    if status in ("301", "307"):
        others = {"retry": retry, "drop_after": drop_after, "drop": drop}
        return redirect(url_for(".stream", last=last, **others), int(status))
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
        yield f"id: {last + drop_after + 1}\ndata: half an ev".encode()
    if drop == "silence":
        sleep(SILENCE_SECONDS)
