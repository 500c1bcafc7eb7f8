"""Before SSE: polling, long polling and WebSocket compared

The page receives the same events in four ways, side by side. A poll
asks again and again. A long poll is answered when there is
something to report. A WebSocket speaks a protocol of its own, in
both directions. An event stream is one HTTP response that stays
open.

Notice: polled events arrive late, by half the interval on average,
and each poll, long or not, is a request and a response. The headers
take about a thousand bytes, the data only about forty. On an open
stream or socket, an event takes about sixty bytes, and no request.
If the connection drops, only the event stream reconnects by itself.

Try: set the events to every 0.1 s. A poll returns twenty of them, a
second late on average, and each long poll returns one. Then set the
events to every 2 s and the polls to every 0.1 s: nineteen polls in
twenty return none.

    curl -N "http://127.0.0.1:5000/stream/before_sse?interval=2"
"""

import json
import time
from contextlib import suppress
from itertools import islice
from socket import SHUT_RDWR

from flask import Blueprint, g, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed
from wsproto.utilities import ProtocolError

from checks import query_number, same_origin_only
from sse import Event, EventStream, last_event_number

INTERVAL_SECONDS = 1.0
MAX_EVENTS = 100
# Pings keep it alive, as comments keep a stream.
OPTIONS = {"ping_interval": 15, "max_message_size": 1}

bp = Blueprint("before_sse", __name__)
bp.record(
    lambda s: s.app.config.update(SOCK_SERVER_OPTIONS=OPTIONS)
)
sock = Sock()


@bp.before_request
def read_request():
    if request.path == "/socket":  # browsers let any site open one
        same_origin_only()
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    newest = int(time.time() / interval)
    after = query_number("after", newest, 0, 10**15)
    last = min(last_event_number() or after, newest)
    g.interval, g.after = interval, max(last, newest - MAX_EVENTS)


@bp.get("/poll")
def poll():
    now = time.time()
    newest = int(now / g.interval)
    ticks = islice(ticking(g.interval, g.after), newest - g.after)
    body = {"now": now, "newest": newest, "ticks": [*ticks]}
    return body, {"Cache-Control": "no-store"}


@bp.get("/long-poll")
def long_poll():
    next(ticking(g.interval, g.after))
    return poll()


@bp.get("/socket")
@bp.errorhandler(ConnectionError)
@bp.errorhandler(ProtocolError)
def no_socket(error=None):
    return {"error": "This URL expects a WebSocket handshake."}, 400


@sock.route("/socket", bp=bp)
def socket(ws):
    with suppress(ConnectionClosed, ProtocolError, OSError):
        for tick in ticking(g.interval, g.after, sleep=ws.receive):
            ws.send(json.dumps(tick))
    ws.thread.join()
    with suppress(OSError):  # or Werkzeug adds an HTTP response
        ws.sock.shutdown(SHUT_RDWR)


@bp.get("/stream/before_sse")
def stream():
    return EventStream(events(g.interval, g.after))


def events(interval, after):
    for tick in ticking(interval, after):
        yield Event(tick, id=tick["n"])


def ticking(interval, n, now=time.time, sleep=time.sleep):
    while True:
        n = max(n + 1, int(now() / interval) - MAX_EVENTS)
        while (seconds := n * interval - now()) > 0:
            sleep(seconds)
        yield {"n": n, "at": round(n * interval, 3)}
