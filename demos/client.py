"""Client: read a stream from Python

An EventSource for Python that reconnects like a browser's. Here the
server reads its own `/real-time-updates`, and reports each event
and each connection. The page reads the same URL. `keep_alive` reads
in a thread, so a silent source doesn't block this stream.

Notice: press "Cut both". The browser reconnects after 3 s. Python
waits a random 3 to 4.5 s, so that many clients don't all reconnect
at the same moment. Both send their Last-Event-ID, and each id
arrives exactly once. A client can send any Host header, so the
server takes its own address from its socket.

Try: with `flask run --reload`, change `SILENCE_SECONDS = 15` to
0.5, save, and press Start. Python now mistakes each pause of a
second for a dead connection. It reconnects for every event, and
still gets every id. In a terminal, `python -m event_source URL`
prints a stream.

    curl -N http://127.0.0.1:5000/stream/client
"""

import requests
from flask import Blueprint, abort, request

from checks import query_number, same_origin_only
from event_source import EventSource
from sse import Event, EventStream, keep_alive, last_event_number

INTERVAL_SECONDS = 1.0
SILENCE_SECONDS = 15
NOTICE_SECONDS = 5  # to notice a disconnect while Python reconnects

bp = Blueprint("client", __name__)
bp.before_request(same_origin_only)  # each opens another stream


@bp.get("/stream/client")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    session = requests.Session()
    session.trust_env = False  # send nothing through a proxy
    source = EventSource(
        f"{own_url()}/real-time-updates?interval={interval}",
        session=session,
        last_event_id=str(last_event_number() or ""),
        timeout=SILENCE_SECONDS,
    )
    events = keep_alive(read(source), NOTICE_SECONDS, source.close)
    return EventStream(events)


def own_url():
    # The Host header would let a client choose the address.
    environ = request.environ
    sock = environ.get("werkzeug.socket")  # of flask run
    sock = environ.get("gunicorn.socket", sock)
    address = sock.getsockname() if sock else None
    if not isinstance(address, tuple):
        abort(
            501,
            "This needs `flask run`, or gunicorn on a TCP port.",
        )
    host, port = address[:2]
    host = f"[{host}]" if ":" in host else host  # IPv6
    return f"http://{host}:{port}"


def read(source):
    response = None
    try:
        for event in source:
            if source.response is not response:
                response = source.response
                headers = response.request.headers
                sent = headers.get("Last-Event-ID", b"").decode()
                yield Event(sent, event="connected")
            yield Event(event.data, id=event.id)
    except requests.HTTPError as error:
        yield Event(str(error), event="failed")
