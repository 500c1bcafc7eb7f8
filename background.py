"""Background jobs: work that outlives the request that starts it.

    id = start("jobs", steps())     # a generator of events
    return follow("jobs", id)       # in the view of the stream
    stop("jobs", id)

A job publishes to its own channel, so clients of any process can join late and
resume. Its final event is `finished` or `failed`. The job publishes it, or
`stop`, or the job's process when it exits. If a job goes silent, a process with
a client ends it with `failed`. Copy this file with `sse.py` and `broker.py`.
"""

import atexit
import logging
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from itertools import chain

from flask import Response, abort, request

import broker
from broker import BEGIN, Conflict, Unavailable, newest
from sse import Event, EventStream, keep_alive

ENDS = ("finished", "failed")
END = "end"  # the id of every final event, recognized without Redis
MAX_AT_ONCE = 100  # running jobs of each kind
MAX_KEPT = 2 * MAX_AT_ONCE  # ended jobs of each kind, in this process
MAX_EVENTS = 10_000  # per job, because a late client gets all of them
PULSE_SECONDS = 1.0  # a silent job publishes `waiting` this often
LOST_SECONDS = 15.0  # after this much silence, the job's process has died
RETRY_SECONDS = 1.0  # between checks, and between attempts if Redis is down
LOST = "The job is lost: its server has stopped, or Redis has lost its events."

logger = logging.getLogger(__name__)
_interrupts: dict[str, Callable] = {}  # of the jobs that run here
_ended: defaultdict[str, deque] = defaultdict(deque)  # ended jobs, by kind
_watched: set[str] = set()  # the jobs that clients follow here
_lock = threading.Lock()  # held to add to `_interrupts` or `_watched`


def start(
    kind: str, events: Generator[Event], interrupt: Callable = lambda: None
) -> str:
    """Publish the events from a thread as they come. Return the job's id.

    The last event must have the type `finished` or `failed`. After a silence of
    PULSE_SECONDS, `waiting` repeats the newest data. When the job is stopped,
    `interrupt` is called, and `events` is closed at its next event. Aborts with
    503 if this process runs MAX_AT_ONCE jobs of this kind. Raises Unavailable.
    """
    id = secrets.token_urlsafe(12)
    channel = f"{kind}:{id}"
    with _lock:
        running = [one.partition(":")[0] for one in list(_interrupts)]
        if running.count(kind) >= MAX_AT_ONCE:
            seconds = 2 + secrets.randbelow(9)  # spreads out the retries
            abort(503, "Too many jobs are running.", retry_after=seconds)
        _interrupts[channel] = interrupt
    try:
        last_id = _publish_after(BEGIN, channel, Event("", event="started"))
        args = (channel, keep_alive(events, PULSE_SECONDS, interrupt), last_id)
        threading.Thread(target=_run, args=args, daemon=True).start()
    except BaseException:
        del _interrupts[channel]
        raise
    return id


def follow(kind: str, id: str, *, from_newest: bool = False) -> Response:
    """Return a stream of the job's events, up to the final one.

    It resumes after the request's Last-Event-ID. Without one, it starts at the
    first event or, with `from_newest`, at the newest. A client that already has
    the final event gets 204, which stops EventSource. Aborts with 404 for an
    unknown id; a client that followed the job before gets `failed` instead.
    """
    channel = f"{kind}:{id}"
    last_event_id = request.headers.get("Last-Event-ID")
    if last_event_id == END:
        return Response(status=204)
    try:
        last = newest(channel)
    except Unavailable:  # after a 503, EventSource would never reconnect
        return EventStream([], retry=2000 + secrets.randbelow(3000))
    if last is None:
        if last_event_id is None:
            abort(404, f"There is nothing with the id {id!r} in {kind}.")
        return EventStream([_failed(LOST, id=END)])
    first = [last] if from_newest and last_event_id is None else []
    after = last.id if first else last_event_id or BEGIN
    with _lock:
        if channel not in _watched:
            threading.Thread(target=_watch, args=[channel], daemon=True).start()
            _watched.add(channel)
    return EventStream(_until_end(first, broker.subscribe(channel, after)))


def stop(kind: str, id: str) -> None:
    """Stop the job, whichever process runs it. Do nothing if it has ended.

    Aborts with 404 for an unknown id. Raises Unavailable.
    """
    channel = f"{kind}:{id}"
    try:
        if newest(channel) is None:
            abort(404, f"There is nothing with the id {id!r} in {kind}.")
        _end(channel, "The job was stopped.")
    except Unavailable:  # the job may cost money: stop it if it runs here
        _interrupts.get(channel, lambda: None)()
        raise


def _until_end(first: list, events: Iterator) -> Iterator:
    with closing(events):
        for event in chain(first, events):
            if event is not None and event.event in ENDS:
                yield Event(event.data, event=event.event, id=END)
                return
            yield event


def _run(channel: str, items: Iterator[Event | None], last_id: str) -> None:
    data = ""
    try:
        with closing(items):
            for count, event in enumerate(items):
                if count > MAX_EVENTS - 10:  # leave room for start and end
                    event = _failed("The job published too many events.")
                event = event or Event(data, event="waiting")
                data = event.data
                if (last_id := _publish(channel, event, last_id)) is None:
                    return
        raise RuntimeError("the job did not publish `finished` or `failed`")
    except Exception:
        logger.exception("%s failed", channel)
        if last_id is not None:
            _publish(channel, _failed("The job failed. See the log."), last_id)
    finally:
        del _interrupts[channel]
        ended = _ended[channel.partition(":")[0]]
        ended.append(channel)
        if len(ended) > MAX_KEPT:
            with suppress(Unavailable):
                broker.forget(ended.popleft())


def _publish(channel: str, event: Event, last_id: str) -> str | None:
    """Return its id, or None if the job has ended or Redis has lost it all."""
    while True:
        try:
            id = _publish_after(last_id, channel, event)
            return None if event.event in ENDS else id
        except Unavailable:
            time.sleep(RETRY_SECONDS)
        except Conflict:
            with suppress(Unavailable):
                last = newest(channel)
                if last is None or last.event in ENDS:
                    return None
                ids = (last.id.split("-"), last_id.split("-"))
                newest_id, mine = (tuple(map(int, id)) for id in ids)
                if newest_id > mine:
                    return last.id  # it was published: only the reply was lost
                _end(channel, LOST)


def _publish_after(last_id: str | None, channel: str, event: Event) -> str:
    options = {"max_events": MAX_EVENTS, "final": event.event in ENDS}
    return broker.publish(channel, event, after=last_id, **options)


def _failed(error: str, id: str | None = None) -> Event:
    return Event({"error": error}, event="failed", id=id)


def _end(channel: str, error: str) -> None:
    """End the job unless it has already ended."""
    with suppress(Conflict):
        _publish_after(None, channel, _failed(error))


def _watch(channel: str) -> None:
    """End the job if it goes silent, because then its process has died."""
    seen_id, checks = None, 0  # not seconds: this process may be paused
    while True:
        time.sleep(RETRY_SECONDS)
        with suppress(Conflict, Unavailable):  # a failed check doesn't count
            last = newest(channel)
            if last and last.event in ENDS:
                break
            last_id = last.id if last else BEGIN
            seen_id, checks = last_id, checks + 1 if last_id == seen_id else 0
            if checks * RETRY_SECONDS >= LOST_SECONDS:
                checks = 0  # if this is rejected, the job can't publish either
                _publish_after(last_id, channel, _failed(LOST))
    with _lock:  # `follow` may not have added it yet
        _watched.discard(channel)


@atexit.register
def _end_all() -> None:
    """End the jobs of this process, unless Redis is down."""
    with suppress(Unavailable):
        for channel in list(_interrupts):
            _end(channel, LOST)
