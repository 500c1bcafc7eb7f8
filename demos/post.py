"""Post: stream the response to a POST

Read an event stream with `fetch`: body, headers, abort. An
EventSource sends only GET requests, without a body and without
headers of your own. With `fetch`, the page sends a POST. It reads
the response with `event-stream.js`, a small module to copy.

Notice: the first event reports what the server received: the
method, your header and the body. Leaving the loop, or aborting the
request, closes the connection. `fetch` does not reconnect: that is
up to your script.

Try: open the Wire panel, add `?interval=2` to the path, and press
Send. The member of the JSON object arrives two seconds after the
first event. Then delete a brace from the JSON and press Send: the
response is a 400 with a message, not an event stream.

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
