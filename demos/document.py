"""Document: edit together without overwriting

Each save names the version that it is based on, and the slower of
two writers gets 412. Each change is an event with the whole text,
and its id is the version of the document: its ETag.

Notice: the If-Match header of a PUT names the version that was
edited. If somebody else was faster, nothing is overwritten, and the
page shows their text. The server compares and publishes in one
step.

Try: in two windows, press Start, change the text in both, and save
both. The second save fails: you see the text of the first. Then,
with `flask run --reload`, change `return stale(current)` to `pass`
and save. Now the second overwrites the first without a warning.

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
