"""Hello: an event stream is text that arrives in pieces

The smallest event stream, written by hand: a response of the type
text/event-stream, whose body a generator yields bit by bit. A blank line ends
each event, and the browser dispatches it the moment that line arrives.

Notice: the first two events have no type, so they arrive as `message`. The
last one has a type of its own, `status`, and an id. Once it is here the page
calls `close()`: to the browser the end of a response is only a lost
connection, so it would reconnect.

Try: with `flask run --reload`, set PAUSE_SECONDS to 2, save, and press Start:
the events come two seconds apart. Untick “close on status” and start again: the
browser comes back, sends the last id, and is stopped for good by a 204.

    curl -N http://127.0.0.1:5000/stream/hello
"""

import time

from flask import Blueprint, Response, request

PAUSE_SECONDS = 0.7
# Nothing on the way may hold the stream back: no cache, no buffer of nginx.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

bp = Blueprint("hello", __name__)


@bp.get("/stream/hello")
def stream():
    if request.headers.get("Last-Event-ID") == "1":
        return "", 204
    events = hello(PAUSE_SECONDS)
    return Response(events, content_type="text/event-stream", headers=HEADERS)


def hello(pause):
    yield "data: Hello\n\n"
    time.sleep(pause)
    yield "data: Are you there?\n\n"
    time.sleep(pause)
    yield 'id: 1\nevent: status\ndata: {"msg": "hi"}\n\n'
