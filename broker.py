"""Pub/sub with replay: publish an event once, and every subscriber gets it.

    id = publish("news", Event("Hello"))

    last_event_id = request.headers.get("Last-Event-ID")
    return EventStream(subscribe("news", last_event_id))

The channels are in the memory of this process. If several processes serve your
app, set `broker.BROKER = RedisBroker(url)` at startup: see `redis_broker.py`.

The obvious design is a queue per client. But then each publish costs a `put`
per client, a slow client fills its queue, and a replay needs a copy of all
events. Here a channel is a linked list, node --event--> node --event--> tail. A
client holds one node, its position, follows `next`, and waits at the tail.
Publishing appends a node, and wakes the waiting clients. A replay starts at an
older node. When the list is full, the oldest node is cut off. A client that
still holds it notices, and gets a `reset`. Copy this file with `sse.py`.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from werkzeug.exceptions import PreconditionFailed, ServiceUnavailable

import sse
from sse import Event

BEGIN = "0-0"  # the id before the first event of any channel
MAX_EVENTS = 1000
MAX_EVENT_BYTES = 4 * 1024 * 1024
KEEP_SECONDS = 24 * 60 * 60
Events = Iterator["Event | PublishedEvent | None"]
GAP = "Earlier events have been discarded."


class Conflict(PreconditionFailed):  # 412
    """The channel's newest event is not the one that `after` names."""

    description = "Somebody else was faster: the channel has a newer event."


class Unavailable(ServiceUnavailable):  # 503
    """The broker uses Redis, which is down or rejects the command."""

    description = "Redis is not available. Try again in a few seconds."


class PublishedEvent:
    """An event with its id and its data as text, encoded once for all clients.

    Raises what `Event.encode` raises, and ValueError beyond MAX_EVENT_BYTES.
    """

    def __init__(self, id: str, event: Event, final: bool = False):
        text = event.data
        self.data = text if isinstance(text, str) else sse.to_json(text)
        self.id, self.event, self.final = id, event.event, final
        sent = Event(self.data, event=event.event, id=id, retry=event.retry)
        self.encoded = sent.encode()
        if len(self.encoded) > MAX_EVENT_BYTES:
            raise ValueError(f"The event is over {MAX_EVENT_BYTES} bytes long.")

    def encode(self) -> bytes:
        return self.encoded


def publish(
    channel: str,
    event: Event,
    *,
    after: str | None = None,
    max_events: int = MAX_EVENTS,
    final: bool = False,
) -> str:
    """Publish an event, and return its id.

    after: the id that the newest event must have; BEGIN for an empty channel.
    max_events: how many events the channel keeps from now on. All of them are
        discarded KEEP_SECONDS after the newest.
    final: the channel ends with this event; publishing more raises Conflict.

    Raises Conflict, Unavailable (the event may still have been published), and
    ValueError for an event that has an id or is too large.
    """
    if event.id is not None:
        raise ValueError(f"The broker assigns the id, got {event.id!r}.")
    return BROKER.publish(channel, event, after, max_events, final)


def subscribe(channel: str, last_event_id: str | None = None) -> Events:
    """Return an endless generator of the channel's events.

    It resumes after `last_event_id`; with BEGIN, at the first event. If that
    event has been discarded, or if the client is too slow, a `reset` event
    reports the gap, and all events that are still stored follow. Without an id,
    it starts with the next event; until then, a `begin` event carries the id to
    resume from. During silence, and while Redis is down, it yields None.
    """
    events = BROKER.subscribe(channel, last_event_id)
    next(events)  # take the position now, not at the first event
    return events


def newest(channel: str) -> PublishedEvent | None:
    """Return the newest event, or None if there is none. Raises Unavailable."""
    return BROKER.newest(channel)


def forget(channel: str) -> None:
    """Discard all events of a channel. Raises Unavailable."""
    BROKER.forget(channel)


class Node:
    """The position after an event and before the next one."""

    __slots__ = ("arrived", "event", "id", "next")

    def __init__(self, id: str, event: PublishedEvent | None = None):
        self.id, self.event, self.next = id, event, None
        self.arrived = threading.Event()  # clients wait for it


class Log:
    """The events of a channel. One thread at a time may change it."""

    def __init__(self):
        self.head = self.tail = Node(BEGIN)
        self.nodes = {BEGIN: self.tail}  # by id
        self.readers, self.used_at = 0, time.monotonic()

    def append(self, event: PublishedEvent, max_events: int) -> None:
        end, self.tail = self.tail, Node(event.id, event)
        self.nodes[event.id] = end.next = self.tail
        while len(self.nodes) > max_events + 1:
            oldest, self.head = self.head, self.head.next
            del self.nodes[oldest.id]
            oldest.next = None
        self.used_at = time.monotonic()
        end.arrived.set()

    def start_over(self, id: str = BEGIN) -> None:
        """Discard all events. All current subscribers get `reset`."""
        end, self.head = self.tail, Node(id)
        self.tail, self.nodes = self.head, {id: self.head}
        end.arrived.set()

    def read(self, last_event_id: str | None, place: str) -> Events:
        """Yield what follows `last_event_id` or, without one, `place`."""
        if last_event_id is None:
            yield Event(place, event="begin", id=place)
            last_event_id = place
        node = self.nodes.get(last_event_id)
        while True:
            if node is None:
                node = self.head
                yield Event(GAP, event="reset", id=node.id)
            arrived = node.arrived  # before `next`: a later event sets it
            if following := node.next:
                node = following
                yield node.event
            elif self.nodes.get(node.id) is not node:
                node = None  # the node was cut off
            elif arrived.wait() and node is self.tail:
                yield None  # the pulse set it


class Channels:
    """The logs of a process. One pulse wakes all silent subscribers, which is
    cheaper than a timer for each.
    """

    def __init__(self, *, keep_unread: bool):
        self.lock = threading.RLock()  # garbage collection may re-enter
        self.logs: dict[str, Log] = {}
        self._keep_unread, self._has_pulse = keep_unread, False

    @contextmanager
    def reading(self, channel: str) -> Iterator[Log]:
        with self.lock:
            if not self._has_pulse:
                threading.Thread(target=self._pulse, daemon=True).start()
                self._has_pulse = True
            log = self.logs.get(channel) or Log()
            log.readers += 1
            self.logs[channel] = log
        try:
            yield log
        finally:
            with self.lock:
                log.readers, log.used_at = log.readers - 1, time.monotonic()
                is_kept = self._keep_unread and log.tail.event
                if not log.readers and not is_kept:
                    self.logs.pop(channel, None)

    def _pulse(self) -> None:
        while True:
            time.sleep(sse.KEEP_ALIVE_SECONDS)
            with self.lock:
                logs = [log for log in self.logs.values() if log.readers]
                self._has_pulse = bool(logs)
                if not logs:
                    return
            for tail in [log.tail for log in logs]:
                arrived, tail.arrived = tail.arrived, threading.Event()
                arrived.set()


class MemoryBroker:
    """The channels of one process."""

    def __init__(self):
        self._channels = Channels(keep_unread=True)
        self._newest = 0, 0  # the id, for all channels: none is used twice

    def publish(self, channel, event, after, max_events, final) -> str:
        logs, oldest = self._channels.logs, time.monotonic() - KEEP_SECONDS
        with self._channels.lock:
            for name, log in list(logs.items()):
                if not log.readers and log.used_at < oldest:
                    logs.pop(name, None)
            log = logs.get(channel, Log())
            has_ended = log.tail.event and log.tail.event.final
            if has_ended or after not in (None, log.tail.id):
                raise Conflict
            ms, number = self._newest
            now = time.time_ns() // 1_000_000
            self._newest = max((now, 0), (ms, number + 1))  # as Redis does
            id = "{}-{}".format(*self._newest)
            log.append(PublishedEvent(id, event, final), max_events)
            logs[channel] = log
        return id

    def newest(self, channel: str) -> PublishedEvent | None:
        return self._channels.logs.get(channel, Log()).tail.event

    def forget(self, channel: str) -> None:
        with self._channels.reading(channel) as log, self._channels.lock:
            log.start_over()

    def subscribe(self, channel: str, last_event_id: str | None) -> Events:
        with self._channels.reading(channel) as log:
            place = log.tail.id
            yield None
            yield from log.read(last_event_id, place)


BROKER = MemoryBroker()
