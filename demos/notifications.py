"""Notifications: publish once, reach every client

A POST publishes to a channel, and every browser that has subscribed
receives it. The view that publishes and the view that streams know
nothing about each other. Each event has an id, so a client that was
disconnected gets what it missed.

Notice: the first event, `begin`, carries an id, so a connection
that drops before the first notification loses nothing. Pressing
Stop and Start makes a new client: it gets only new notifications.

Try: open a second window, press Start in both, and send a text:
both receive it. Then, with `flask run --reload`, delete "alert"
from `LEVELS` and save. A `reset` event reports that the events in
memory are lost, and the server now rejects alerts.

    curl -N http://127.0.0.1:5000/stream/notifications
"""

from random import randint

from flask import Blueprint, abort, request

from broker import publish, subscribe
from checks import json_object, json_text, same_origin_only
from sse import Event, EventStream

LEVELS = ("info", "warning", "alert")
MAX_CHARACTERS = 500
MAX_BODY_BYTES = 16 * 1024

bp = Blueprint("notifications", __name__)
bp.before_request(same_origin_only)


@bp.post("/notifications")
def send():
    body = json_object(MAX_BODY_BYTES)
    text = json_text(body, "text", 1, MAX_CHARACTERS)
    level = body.get("level")
    if level not in LEVELS:
        abort(400, f"level must be one of {', '.join(LEVELS)}.")
    event = Event({"text": text, "level": level})
    return {"id": publish("notifications", event)}, 201


@bp.get("/stream/notifications")
def stream():
    last_event_id = request.headers.get("Last-Event-ID")
    events = subscribe("notifications", last_event_id)
    return EventStream(events, retry=randint(2000, 5000))
