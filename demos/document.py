"""Document: a shared text, and no change lost

Whoever changes the text puts the whole of it, and all who look at it see who
did it, what and when. Each change is an event, and the id of the newest one is
the version of the document: its ETag.

Notice: a write says in If-Match which version it started from. If somebody else
was faster, that is not the version any more: the answer is 412, nothing is
overwritten, and the page shows both texts. The server compares and publishes in
one step: when two people write at once, one of them wins.

Try: with `flask run --reload`, write `pass` for `return stale(current)` and
save. Then, in two windows, change the text in both and save in both: the second
overwrites the first, and nobody is told.

    curl -N http://127.0.0.1:5000/stream/document
"""

import json
from datetime import UTC, datetime

from flask import Blueprint, abort, request

from broker import BEGIN, Conflict, newest, publish, subscribe
from sse import Event, EventStream, json_object, json_text

HISTORY_EVENTS = 20
MAX_CHARACTERS = 2000
MAX_AUTHOR_CHARACTERS = 40
MAX_BODY_BYTES = 32 * 1024

bp = Blueprint("document", __name__)


@bp.put("/document")
def write():
    body = json_object(MAX_BODY_BYTES)
    change = {
        "text": json_text(body, "text", 0, MAX_CHARACTERS),
        "author": json_text(body, "author", 1, MAX_AUTHOR_CHARACTERS),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not request.if_match:
        abort(428, 'Say what you started from: If-Match: "version".')
    current = newest("document")
    version = current.id if current else BEGIN
    if not request.if_match.contains(version):
        return stale(current)
    try:
        id = publish(
            "document",
            Event(change),
            after=version,
            max_events=HISTORY_EVENTS,
        )
    except Conflict:
        return stale(newest("document"))
    return {"version": id}, 200, {"ETag": f'"{id}"'}


def stale(current):
    """Refuse a write with the version that it did not know, for both to see."""
    version = current.id if current else BEGIN
    answer = {
        "error": "Somebody else has changed the document meanwhile.",
        "version": version,
        "current": json.loads(current.data) if current else None,
    }
    return answer, 412, {"ETag": f'"{version}"'}


@bp.get("/stream/document")
def stream():
    last_event_id = request.headers.get("Last-Event-ID", BEGIN)
    return EventStream(subscribe("document", last_event_id))
