"""Work in the background, which goes on though nobody listens.

    id = start("jobs", steps())              # a generator of events
    return accepted(url_for(".stream", id=id))

    return follow("jobs", id)                # in the view of the stream
    stop("jobs", id)

What the work has to say it publishes in a channel of its own, so that readers
come late, go, and come back. It ends with an event `finished` or `failed`, and
whoever publishes one ends it: the work itself, `stop` in any process, or a
reader who has heard nothing for so long that its process must have died. That
holds because each event is published after a certain other one, or not at all.

Copy this file together with `sse.py` and `broker.py`.
"""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain

from flask import Response, abort, request
from werkzeug.exceptions import ServiceUnavailable

from broker import (
    BEGIN,
    Conflict,
    Unavailable,
    forget,
    newest,
    parts,
    publish,
    subscribe,
)
from sse import KEEP_ALIVE, Event, EventStream, keep_alive

ENDS = ("finished", "failed")

MAX_AT_ONCE = 20
MAX_KEPT = 100
MAX_EVENTS = 10_000
"""What would say more is ended as too long: a late reader needs all of it."""

PULSE_SECONDS = 1  # of silence, after which work says that it goes on
LOST_SECONDS = 15  # without any such word: its process has died
LISTEN_SECONDS = 2  # of silence, after which a reader looks for that
RETRY_SECONDS = 1  # between two tries to publish while Redis is away
RETRY_AFTER_SECONDS = 5
RECONNECT_MS = 3000

STOPPED = "It was stopped."
LOST = "Nothing is left of it: the server that worked on it has gone."
TOO_LONG = "It became too long."
FAILED = "It failed. The log of the server says why."

GONE = "gone"
"""The last event ID of a reader that was told that there is nothing left."""

logger = logging.getLogger(__name__)
_slots = threading.BoundedSemaphore(MAX_AT_ONCE)
_ended: deque[str] = deque()
_interrupts: dict[str, Callable[[], object]] = {}
_newest_seen: dict[str, tuple[str, float]] = {}  # its id, and since when


def start(
    kind: str,
    events: Iterable[Event],
    *,
    interrupt: Callable[[], object] = lambda: None,
) -> str:
    """Publish the events, in a thread, as they come; return the work's id.

    The last event must have the type `finished` or `failed`. Whenever none came
    for PULSE_SECONDS, `waiting` is published, with the data of the newest. When
    others end the work, `interrupt` is called, and `events` is closed at its
    next event.

    Raises ServiceUnavailable (503) while MAX_AT_ONCE are under way in this
    process, and Unavailable without Redis.
    """
    if not _slots.acquire(blocking=False):
        raise ServiceUnavailable(
            "Too much work is under way. Try again in a few seconds.",
            retry_after=RETRY_AFTER_SECONDS,
        )
    id = secrets.token_urlsafe(12)
    channel = f"{kind}:{id}"
    try:
        begun = Event("", event="started")
        last_id = publish(channel, begun, max_events=MAX_EVENTS)
        items = keep_alive(events, PULSE_SECONDS, interrupt=interrupt)
        _interrupts[channel] = interrupt
        arguments = (channel, items, last_id)
        threading.Thread(target=_work, args=arguments, daemon=True).start()
    except BaseException:
        _interrupts.pop(channel, None)
        _slots.release()
        raise
    return id


def accepted(path: str) -> tuple[str, int, dict[str, str]]:
    """Return 202 with the place to follow the work, for a view to return."""
    url = f"{request.host_url.rstrip('/')}{path}\n"
    return url, 202, {"Location": path, "Content-Type": "text/plain"}


def follow(kind: str, id: str, *, from_newest: bool = False) -> Response:
    """Return the stream of the work's events, up to its end.

    It begins after the request's Last-Event-ID; without one at the first event
    or, with `from_newest`, at the newest. Who has had the end gets 204. Aborts
    with 404 for an unknown id; but who was reading it before is told that it
    `failed`, because then its process has died and nothing is left of it.
    Raises Unavailable without Redis.
    """
    channel = f"{kind}:{id}"
    last_event_id = request.headers.get("Last-Event-ID")
    try:
        last = newest(channel)
    except Unavailable:
        if last_event_id is None:
            raise
        # A browser that comes back would take 503 as final: let it come again.
        return EventStream([], retry=RECONNECT_MS)
    has_ended = last is not None and last.event in ENDS
    if last_event_id == GONE or (has_ended and last_event_id == last.id):
        return Response(status=204)
    if last is None and last_event_id is None:
        abort(404, f"{kind} has nothing with the id {id!r}.")
    if last is None:
        failed = Event({"error": LOST}, event="failed", id=GONE)
        return EventStream([failed])
    first = []
    if last_event_id is None:
        first = [last] if from_newest else []
        last_event_id = last.id if from_newest else BEGIN
    events = subscribe(channel, last_event_id, LISTEN_SECONDS)
    return EventStream(_until_end(channel, last_event_id, first, events))


def stop(kind: str, id: str) -> None:
    """End the work, in whatever process it is. Where it has ended: do nothing.

    Aborts with 404 for an unknown id. Raises Unavailable without Redis.
    """
    channel = f"{kind}:{id}"
    try:
        is_known = _end(channel, STOPPED)
    except Unavailable:
        # What costs money must end all the same, if it is here.
        _interrupts.get(channel, lambda: None)()
        raise
    if not is_known:
        abort(404, f"{kind} has nothing with the id {id!r}.")


def _until_end(
    channel: str,
    last_id: str,
    first: list[Event],
    events: Iterator[Event | bytes],
) -> Iterator[Event | bytes]:
    _silent_seconds(channel)
    with closing(events):
        for event in chain(first, events):
            yield event
            if event is KEEP_ALIVE:
                if _silent_seconds(channel) > LOST_SECONDS:
                    _give_up(channel, last_id)
                continue
            if event.event in ENDS:
                return
            last_id = event.id


def _silent_seconds(channel: str) -> float:
    """Return for how long the newest event has been the newest, seen from here.

    While Redis is away nobody can say, and it is 0. It is kept for all readers:
    one whose connection is lost every few seconds must learn of it, too.
    """
    try:
        last = newest(channel)
    except Unavailable:
        _newest_seen.clear()
        return 0
    last_id = last.id if last else BEGIN
    if len(_newest_seen) > MAX_EVENTS:
        _newest_seen.clear()
    seen_id, since = _newest_seen.get(channel, (None, 0))
    if seen_id != last_id:
        since = time.monotonic()
        _newest_seen[channel] = (last_id, since)
    return time.monotonic() - since


def _give_up(channel: str, last_id: str) -> None:
    with suppress(Unavailable):
        if not _end_after(channel, last_id, LOST) and newest(channel) is None:
            _end_after(channel, BEGIN, LOST)  # Redis, too, has lost it all


def _work(
    channel: str, items: Iterator[Event | bytes], last_id: str | None
) -> None:
    event = None
    try:
        with closing(items):
            for count, item in enumerate(items):
                said = event.data if event else ""
                is_silent = item is KEEP_ALIVE
                event = Event(said, event="waiting") if is_silent else item
                if count > MAX_EVENTS - 10:  # room for how it began and ends
                    event = Event({"error": TOO_LONG}, event="failed")
                last_id = _publish(channel, event, last_id)
                if last_id is None or event.event in ENDS:
                    return
        raise RuntimeError("the work has not said how it ended")
    except Exception:
        logger.exception("%s has failed", channel)
        while not _try_to_end(channel, FAILED):
            time.sleep(RETRY_SECONDS)
    finally:
        _slots.release()
        del _interrupts[channel]
        _ended.append(channel)
        if len(_ended) > MAX_KEPT:
            with suppress(Unavailable):
                forget(_ended.popleft())


def _publish(channel: str, event: Event, last_id: str) -> str | None:
    """Return the id that the event got, None if others have ended the work."""
    while True:
        try:
            return publish(channel, event, after=last_id, max_events=MAX_EVENTS)
        except Unavailable:
            time.sleep(RETRY_SECONDS)
        except Conflict:
            with suppress(Unavailable):
                last = newest(channel)
                if last is None or last.event in ENDS:
                    return None
                if parts(last.id) <= parts(last_id):
                    raise RuntimeError("Redis has lost events") from None
                return last.id  # it had been published, though nobody said so


def _end(channel: str, error: str) -> bool:
    """End the work, unless it has ended. Return whether there is any."""
    while last := newest(channel):
        if last.event in ENDS or _end_after(channel, last.id, error):
            return True
    return False


def _try_to_end(channel: str, error: str) -> bool:
    try:
        _end(channel, error)
    except Unavailable:
        return False
    return True


def _end_after(channel: str, last_id: str, error: str) -> bool:
    failed = Event({"error": error}, event="failed")
    try:
        publish(channel, failed, after=last_id, max_events=MAX_EVENTS)
    except Conflict:
        return False
    return True
