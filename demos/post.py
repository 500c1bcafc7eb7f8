"""Post: an event stream in answer to a POST

An EventSource can only GET: it sends no body and no header of yours. With
`fetch` the page sends all that and reads the same event stream from the
response, through a small module, `event-stream.js`, that is worth copying.

Notice: the first event says what arrived here, with the method, your header
and the body. Leaving the loop, or aborting the request, closes the connection.
What `fetch` does not do is reconnect: that is left to the page.

Try: in the Wire panel, add `?interval=2` to the path and press Send: the member
of the JSON comes two seconds after the first event. Then delete a brace: the
answer is no event stream but a 400, with a sentence that a page can show.

    curl -N --json '{"city": "Paris"}' http://127.0.0.1:5000/api/sse
"""

import time

from flask import Blueprint, request

from sse import Event, EventStream, json_object, query_number

INTERVAL_SECONDS = 0.5
MAX_BODY_BYTES = 64 * 1024

bp = Blueprint("post", __name__)


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
