"""Hello: your first event stream, by hand

An event stream is plain text, and a blank line ends each event. The
response has the type `text/event-stream`, and a generator yields
its body piece by piece. The browser dispatches each event as soon
as its blank line arrives.

Notice: the first two events have no type, so they arrive as
`message`. The last one has the type `status`. When it arrives, the
page calls `close()`. Otherwise the browser would treat the end of
the response as a dropped connection, and reconnect.

Try: with `flask run --reload`, change `PAUSE_SECONDS = 0.7` to 2,
save, and press Start. The events now arrive two seconds apart.

    curl -N http://127.0.0.1:5000/stream/hello
"""

import time

from flask import Blueprint, Response

PAUSE_SECONDS = 0.7
HEADERS = {
    "Content-Type": "text/event-stream",
    # No cache and no proxy may hold the events back, nor may nginx.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "Access-Control-Allow-Origin": "*",  # other sites may read it
}

bp = Blueprint("hello", __name__)


@bp.get("/stream/hello")
def stream():
    return Response(hello(PAUSE_SECONDS), headers=HEADERS)


def hello(pause, sleep=time.sleep):
    yield "data: Hello\n\n"
    sleep(pause)
    yield "data: Are you there?\n\n"
    sleep(pause)
    yield 'event: status\ndata: {"msg": "hi"}\n\n'
