"""Notifications: one event for everybody

Whoever sends a notification publishes it in a channel, and every browser that
reads the channel gets it: the view that posts and the views that stream know
nothing of each other. Each event has an id, so who was away catches up.

Notice: both lists have a connection of their own and show the same. The first
event, `begin`, carries an id, so that a connection that is lost before the
first notification loses none. A text that is refused stays in its field.

Try: with `flask run --reload`, press Start and send a text. Then delete "alert"
from LEVELS and save. What the server held in memory is gone, and an event
`reset` says so; with Redis nothing would be. An alert is refused from now on.

    curl -N http://127.0.0.1:5000/stream/notifications
"""

from flask import Blueprint, abort, request

from broker import publish, subscribe
from sse import Event, EventStream, json_object, json_text

LEVELS = ("info", "warning", "alert")
MAX_CHARACTERS = 500
MAX_BODY_BYTES = 16 * 1024

bp = Blueprint("notifications", __name__)


@bp.post("/notifications")
def send():
    body = json_object(MAX_BODY_BYTES)
    text = json_text(body, "text", 1, MAX_CHARACTERS)
    level = body.get("level")
    if level not in LEVELS:
        abort(400, f"level must be one of {', '.join(LEVELS)}.")
    id = publish("notifications", Event({"text": text, "level": level}))
    return {"id": id}, 201


@bp.get("/stream/notifications")
def stream():
    last_event_id = request.headers.get("Last-Event-ID")
    return EventStream(subscribe("notifications", last_event_id))
