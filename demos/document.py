"""Document: edit together without overwriting

Each change of the document is an event with its whole text, and all
clients see who changed it, and when. The id of the newest event is
the version of the document: its ETag.

Notice: a write names in If-Match the version that it started from.
If somebody else was faster, the answer is 412, nothing is
overwritten, and the page shows both texts. The server compares and
publishes in one step: of two people who write at the same moment,
one wins.

Try: with `flask run --reload`, change `return stale(current)` to
`pass` and save. Then, in two windows, change the text in both and
save in both: the second overwrites the first without a warning.

    curl -N http://127.0.0.1:5000/stream/document
"""

import json
from datetime import UTC, datetime
from random import randint

from flask import Blueprint, abort, request

from broker import BEGIN, Conflict, newest, publish, subscribe
from checks import json_object, json_text, same_origin_only
from sse import Event, EventStream

HISTORY_EVENTS = 20
MAX_CHARACTERS = 2000
MAX_AUTHOR_CHARACTERS = 40
MAX_BODY_BYTES = 32 * 1024

bp = Blueprint("document", __name__)
bp.before_request(same_origin_only)


@bp.put("/document")
def write():
    body = json_object(MAX_BODY_BYTES)
    change = {
        "text": json_text(body, "text", 0, MAX_CHARACTERS),
        "author": json_text(
            body, "author", 1, MAX_AUTHOR_CHARACTERS
        ),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not request.if_match:
        abort(428, 'Name the version you changed: If-Match: "id".')
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
    version = current.id if current else BEGIN
    answer = {
        "error": "Somebody else has changed the document.",
        "version": version,
        "current": json.loads(current.data) if current else None,
    }
    return answer, 412, {"ETag": f'"{version}"'}


@bp.get("/stream/document")
def stream():
    last_event_id = request.headers.get("Last-Event-ID", BEGIN)
    events = subscribe("document", last_event_id)
    # Spread out the reconnects that follow a restart.
    return EventStream(events, retry=randint(2000, 5000))
