"""Broadcast: pub/sub from scratch

One class of 40 lines does fan-out and replay in bounded memory. The
obvious design gives each client a queue. Here, all clients share a
short list of the newest events, and each client is just a position
in it. A client that disconnects leaves nothing behind.

Notice: a client that missed too much, or is too slow, gets a
`reset` event, which reports the gap. After a restart, ids have a
new prefix, so an id from before counts as a gap, too. Two limits:
each process has its own events, and all clients take turns with one
lock. For several processes or thousands of clients, continue with
`broker.py`, which the next lesson uses.

Try: open a second window, press Start in both, and send a text:
both receive it immediately. Then, with `flask run --reload`, delete
the line `self.published.notify_all()` and save. A `reset` event
reports that the restart lost the events. Send again: the text now
arrives with the next heartbeat, up to 15 seconds later.

    curl -N http://127.0.0.1:5000/stream/broadcast
"""

import threading
from collections import deque
from secrets import token_hex

from flask import Blueprint, request

import sse
from checks import json_object, json_text, same_origin_only
from sse import Event, EventStream

MAX_EVENTS = 100
MAX_CHARACTERS = 500
MAX_BODY_BYTES = 16 * 1024
GAP = "Earlier events have been discarded."

bp = Blueprint("broadcast", __name__)
bp.before_request(same_origin_only)


@bp.post("/broadcast")
def send():
    body = json_object(MAX_BODY_BYTES)
    text = json_text(body, "text", 1, MAX_CHARACTERS)
    return {"id": channel.publish(text)}, 201


@bp.get("/stream/broadcast")
def stream():
    last_event_id = request.headers.get("Last-Event-ID")
    return EventStream(channel.subscribe(last_event_id))


class Channel:
    def __init__(self, max_events):
        self.prefix, self.count = token_hex(4), 0
        self.events = deque(maxlen=max_events)
        self.published = threading.Condition()

    def id(self, position):
        return f"{self.prefix}-{position}"

    def publish(self, text):
        with self.published:
            self.count += 1
            id = self.id(self.count)
            self.events.append(Event(text, id=id).encode())
            self.published.notify_all()
        return id

    def subscribe(self, last_event_id):
        with self.published:
            oldest = self.count - len(self.events)
            kept = range(oldest, self.count + 1)
        known = {self.id(number): number for number in kept}
        known[None] = oldest  # a new client gets all stored events
        return self.read(known.get(last_event_id, -1))  # -1: a gap

    def read(self, position):
        while True:
            with self.published:
                if position == self.count:
                    self.published.wait(sse.KEEP_ALIVE_SECONDS)
                oldest = self.count - len(self.events)
                if position < oldest:
                    position, id = oldest, self.id(oldest)
                    event = Event(GAP, event="reset", id=id)
                elif position == self.count:
                    event = None  # nothing new: send a heartbeat
                else:
                    event = self.events[position - oldest]
                    position += 1
            yield event  # outside the lock: a client may be slow


channel = Channel(MAX_EVENTS)
