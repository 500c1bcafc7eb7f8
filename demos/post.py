"""Post: stream the response to a POST

An EventSource can only GET, without a body or headers of yours;
`fetch` has both. The page sends a POST and reads the event stream
in its response with `event-stream.js`, a small module that is worth
copying.

Notice: the first event reports what arrived at the server: the
method, your header and the body. Leaving the loop, or aborting the
request, closes the connection. `fetch` does not reconnect; that is
up to your script.

Try: in the Wire panel, add `?interval=2` to the path and press
Send. The members of the JSON object arrive two seconds apart. Then
delete a brace: the response is a 400 with a sentence that a page
can show, not an event stream.

    curl -N --json '{"city": "Paris"}' http://127.0.0.1:5000/api/sse
"""

import time

from flask import Blueprint, request

from checks import json_object, query_number, same_origin_only
from sse import Event, EventStream

INTERVAL_SECONDS = 0.5
MAX_BODY_BYTES = 64 * 1024

bp = Blueprint("post", __name__)
bp.before_request(same_origin_only)


@bp.post("/api/sse")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    body = json_object(MAX_BODY_BYTES)
    own = {
        name: value
        for name, value in request.headers
        if name.lower().startswith("x-")
    }
    asked = {"method": request.method, "headers": own, "body": body}
    return EventStream(echo(asked, interval))


def echo(asked, interval, sleep=time.sleep):
    yield Event(asked, event="request")
    for key, value in asked["body"].items():
        sleep(interval)
        yield Event({"key": key, "value": value})
    yield Event({"members": len(asked["body"])}, event="done")
