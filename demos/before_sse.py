"""Before: the same events by poll, by WebSocket, by event stream

Every event comes to the page in four ways at once. Polling asks again and
again. Long polling asks, and is answered when there is something to say. A
WebSocket is a connection of another protocol, in both directions. An event
stream is one HTTP response that does not end.

Notice: every poll, long or not, costs a request and a response with all their
headers, for some forty bytes of data. Polls are late, too, by half their
interval on average. A WebSocket and an event stream are quick and lean; what
tells them apart stands in the table.

Try: set the events to every 0.1 s. A poll brings twenty of them at a time, a
second late on average, and each long poll brings one. Then set the events to
every 2 s and the polls to every 0.1 s: of twenty polls nineteen bring none.

    curl -N "http://127.0.0.1:5000/stream/before_sse?interval=2"
"""

import json
import time
from contextlib import suppress
from itertools import chain, islice
from socket import SHUT_RDWR

from flask import Blueprint, g, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from sse import Event, EventStream, last_event_number, query_number

INTERVAL_SECONDS = 1.0
MOST_EVENTS = 100

# Pings keep it alive, as comments do a stream. The browser has nothing to say.
OPTIONS = {"ping_interval": 15, "max_message_size": 1}

bp = Blueprint("before_sse", __name__)
bp.record(lambda state: state.app.config.update(SOCK_SERVER_OPTIONS=OPTIONS))
sock = Sock()


@bp.before_request
def read_request():
    g.interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    newest = int(time.time() / g.interval)
    after = last_event_number() or query_number("after", newest, 0, 10**15)
    g.after = max(newest - MOST_EVENTS, min(after, newest))
    line = f"{request.method} {request.full_path} HTTP/1.1\r\n"
    g.asked = {"asked_bytes": len(f"{line}{request.headers}")}
    # One way compressed and three not would be no comparison.
    request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)


@bp.get("/poll")
def poll():
    newest = int(time.time() / g.interval)
    due = islice(ticking(g.interval, g.after), newest - g.after)
    body = {"now": time.time(), "newest": newest, "ticks": [*due], **g.asked}
    return body, {"Cache-Control": "no-store"}


@bp.get("/long-poll")
def long_poll():
    next(ticking(g.interval, g.after))
    return poll()


@bp.get("/socket")
@bp.errorhandler(ConnectionError)
@bp.errorhandler(RemoteProtocolError)
def no_socket(error=None):
    return {"error": "Here a WebSocket handshake is expected."}, 400


@sock.route("/socket", bp=bp)
def socket(ws):
    with suppress(ConnectionClosed, LocalProtocolError, OSError):
        ws.send(json.dumps(g.asked))
        for tick in ticking(g.interval, g.after, sleep=ws.receive):
            ws.send(json.dumps(tick))
    ws.thread.join()
    with suppress(OSError):  # or Werkzeug sends an HTTP response as well
        ws.sock.shutdown(SHUT_RDWR)


@bp.get("/stream/before_sse")
def stream():
    ticks = ticking(g.interval, g.after)
    events = (Event(tick, id=tick["n"]) for tick in ticks)
    return EventStream(chain([Event(g.asked, event="asked")], events))


def ticking(interval, n, now=time.time, sleep=time.sleep):
    while True:
        n += 1
        while (seconds := n * interval - now()) > 0:
            sleep(seconds)
        yield {"n": n, "at": round(n * interval, 3)}
