"""Publish and subscribe with replay: one event, many readers, nobody misses it.

    id = publish("news", Event("Hello"))

    events = subscribe("news", request.headers.get("Last-Event-ID"))
    return EventStream(events)

A channel is a log of its newest events, and every reader has a place in it. It
is in the memory of this process or, with REDIS_URL in the environment, in Redis
Streams: then any number of processes and machines publish to the same channels,
and a reader that was reading from one of them goes on at another.

Copy this file together with `sse.py`; it needs redis-py.
"""

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from itertools import islice

import redis
from flask import current_app
from redis.backoff import NoBackoff
from redis.retry import Retry
from werkzeug.exceptions import PreconditionFailed, ServiceUnavailable

from sse import KEEP_ALIVE, KEEP_ALIVE_SECONDS, Event, parse_events

BEGIN = "0-0"
"""The id before the first event of every channel."""

MAX_EVENTS = 1000
KEEP_SECONDS = 24 * 60 * 60

RESET = Event("Events before this one are no longer held.", event="reset")

BATCH_EVENTS = 100
LOAD_SECONDS = 2
BLOCK_MS = 100
TIMEOUT_SECONDS = 5
MAX_BACK_OFF_SECONDS = 5
MAX_CONNECTIONS = 20
KEY_PREFIX = "sse:"

PUBLISH = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local previous = newest and newest[1] or '0-0'
local lines, after, max_events, seconds = unpack(ARGV)
if after ~= '' and after ~= previous then return false end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', max_events, '*',
    'lines', lines, 'previous', previous, 'max_events', max_events)
redis.call('EXPIRE', KEYS[1], seconds)
return id
"""
"""In one step, so that nobody publishes between the look and the writing."""

logger = logging.getLogger(__name__)


class Conflict(PreconditionFailed):
    """The newest event of the channel is not the one that was named."""

    description = "Somebody else was faster: the channel has a newer event."


class Unavailable(ServiceUnavailable):
    """Redis does not answer, or refuses. As a response: 503."""

    description = "Redis is not available. Try again in a few seconds."

    def __init__(self):
        super().__init__(retry_after=TIMEOUT_SECONDS)


def publish(
    channel: str,
    event: Event,
    *,
    after: str | None = None,
    max_events: int = MAX_EVENTS,
) -> str:
    """Publish an event and return the id that it gets.

    after: publish only if this is the id of the channel's newest event, BEGIN
        if it has none.
    max_events: how many events the channel holds from now on. All of them are
        forgotten KEEP_SECONDS after the newest.

    Raises Conflict if `after` is not the newest, Unavailable without Redis (the
    event may have been published all the same if it went away just then), and
    ValueError for an event that has an id or is larger than `parse_events`
    takes.
    """
    if event.id is not None:
        raise ValueError(f"The broker gives the id, not you: {event.id!r}")
    lines = event.encode()
    list(parse_events([lines]))  # raises for what no reader would take
    return _broker().publish(channel, lines, after, max_events)


def subscribe(
    channel: str,
    last_event_id: str | None = None,
    keep_alive_seconds: float | None = None,
) -> Iterator[Event | bytes]:
    """Return a generator of the channel's events, which never ends by itself.

    It begins right after `last_event_id`; with BEGIN at the first event. Where
    that id is no longer held, or the reader is so slow that the channel has
    moved past it, an event `reset` tells that there is a gap, and it goes on
    with all that is held. Without an id it begins with the next event: whatever
    is published after this call. So that a connection that is lost before that
    loses nothing either, an event `begin` then tells the id to go on from.

    Whenever no event came for `keep_alive_seconds`, by default the app's
    KEEP_ALIVE_SECONDS, it yields a comment. Also while Redis is away: when it
    is back, the events go on.
    """
    if keep_alive_seconds is None:
        config = current_app.config if current_app else {}
        keep_alive_seconds = config.get(
            "KEEP_ALIVE_SECONDS", KEEP_ALIVE_SECONDS
        )
    events = _broker().subscribe(channel, last_event_id, keep_alive_seconds)
    next(events)  # takes the place in the log now, not at the first event
    return events


def newest(channel: str) -> Event | None:
    """Return the newest event of a channel, None if it holds none.

    Raises Unavailable without Redis.
    """
    return _broker().newest(channel)


def forget(channel: str) -> None:
    """Forget all events of a channel. Raises Unavailable without Redis."""
    _broker().forget(channel)


def silent_seconds(channel: str) -> float:
    """Return for how long no event came to the readers of this process.

    While Redis is away, nobody can say, and it is 0.
    """
    return _broker().silent_seconds(channel)


class _PublishedEvent(Event):
    """An event with its id, encoded once however many receive it."""

    __slots__ = ("_encoded",)

    def __init__(self, id: str, lines: bytes):
        self._encoded = f"id: {id}\n".encode() + lines
        (event,) = parse_events([self._encoded])
        super().__init__(event.data, event=event.event, id=id)

    def encode(self) -> bytes:
        return self._encoded


class _Log:
    """The newest events of a channel, numbered on from 0, and who waits."""

    def __init__(self):
        self.events: deque[_PublishedEvent] = deque()
        self.first = 0  # the number of the first event that is held
        self.before = BEGIN  # the id of the event before it
        self.heard_at = time.monotonic()
        self.loaded = threading.Event()
        self.grown = threading.Event()
        self.lock = threading.Lock()
        self.readers = 0

    @property
    def newest_id(self) -> str:
        return self.events[-1].id if self.events else self.before

    def append(
        self, event: _PublishedEvent, previous: str, max_events: int
    ) -> None:
        """Add an event and wake the readers. `previous` is the id before it:
        if that is not the newest here, there is a gap, which all must notice.
        """
        with self.lock:
            if previous != self.newest_id:
                self.first += len(self.events) + 1
                self.events.clear()
                self.before = previous
            self.events.append(event)
            while len(self.events) > max_events:
                self.before = self.events.popleft().id
                self.first += 1
            self.heard_at = time.monotonic()
            grown, self.grown = self.grown, threading.Event()
        grown.set()

    def number_after(self, id: str) -> int | None:
        """Return the number of the event after that id, None if unknown."""
        with self.lock:
            if id == self.before:
                return self.first
            for number, event in enumerate(self.events, self.first + 1):
                if event.id == id:
                    return number
        return None

    def read_after(
        self, last_event_id: str, keep_alive_seconds: float
    ) -> Iterator[Event | bytes]:
        number = self.number_after(last_event_id)
        while True:
            with self.lock:
                grown, first = self.grown, self.first
                has_gap = number is None or number < first
                number = first if has_gap else number
                start = number - first
                events = list(islice(self.events, start, start + BATCH_EVENTS))
            if has_gap:
                yield RESET
            yield from events
            number += len(events)
            if not events and not grown.wait(keep_alive_seconds):
                yield KEEP_ALIVE


class _MemoryBroker:
    """The channels of one process."""

    def __init__(self):
        self._logs: dict[str, _Log] = {}
        self._lock = threading.Lock()

    def publish(
        self, channel: str, lines: bytes, after: str | None, max_events: int
    ) -> str:
        with self._lock:
            self._forget_old()
            log = self._logs.get(channel) or self._new_log()
            previous = log.newest_id
            if after is not None and after != previous:
                raise Conflict
            event = _PublishedEvent(_id_after(previous), lines)
            self._logs[channel] = log
            log.append(event, previous, max_events)
        return event.id

    def newest(self, channel: str) -> Event | None:
        with self._lock:
            log = self._logs.get(channel)
            return log.events[-1] if log and log.events else None

    def forget(self, channel: str) -> None:
        with self._lock:
            self._logs.pop(channel, None)

    def silent_seconds(self, channel: str) -> float:
        log = self._logs.get(channel)
        return time.monotonic() - log.heard_at if log else 0

    def subscribe(
        self,
        channel: str,
        last_event_id: str | None,
        keep_alive_seconds: float,
    ) -> Iterator[Event | bytes | None]:
        with self._opened(channel) as log:
            is_placed = log.loaded.wait(LOAD_SECONDS)
            place = log.newest_id
            yield None
            while not log.loaded.wait(keep_alive_seconds):
                yield KEEP_ALIVE
            if last_event_id is None:
                last_event_id = place if is_placed else log.newest_id
                yield Event(last_event_id, event="begin", id=last_event_id)
            yield from log.read_after(last_event_id, keep_alive_seconds)

    @contextmanager
    def _opened(self, channel: str) -> Iterator[_Log]:
        with self._lock:
            if channel not in self._logs:
                self._logs[channel] = self._new_log()
            log = self._logs[channel]
            log.readers += 1
        try:
            yield log
        finally:
            with self._lock:
                log.readers -= 1
                if self._is_done_with(log) and self._logs.get(channel) is log:
                    del self._logs[channel]

    def _new_log(self) -> _Log:
        log = _Log()
        log.loaded.set()
        return log

    def _is_done_with(self, log: _Log) -> bool:
        return not log.readers and not log.events

    def _forget_old(self) -> None:
        oldest = time.monotonic() - KEEP_SECONDS
        for channel, log in list(self._logs.items()):
            if not log.readers and log.heard_at < oldest:
                del self._logs[channel]


class _RedisBroker(_MemoryBroker):
    """The channels of all processes that use one Redis.

    A channel that has readers here is copied from there into memory, event by
    event, by one thread and over one connection for all channels.
    """

    def __init__(self, url: str):
        super().__init__()
        self._url = url
        self._redis = _connected_to(url, MAX_CONNECTIONS)
        self._is_copying = False
        self._copied_since = None
        self._script = self._redis.register_script(PUBLISH)

    def publish(
        self, channel: str, lines: bytes, after: str | None, max_events: int
    ) -> str:
        arguments = [lines, after or "", max_events, KEEP_SECONDS]
        with _available():
            id = self._script([KEY_PREFIX + channel], arguments)
        if id is None:
            raise Conflict
        return id.decode()

    def newest(self, channel: str) -> Event | None:
        with _available():
            entries = self._redis.xrevrange(KEY_PREFIX + channel, count=1)
        for id, fields in entries:
            return _PublishedEvent(id.decode(), fields[b"lines"])
        return None

    def forget(self, channel: str) -> None:
        with _available():
            self._redis.delete(KEY_PREFIX + channel)

    def silent_seconds(self, channel: str) -> float:
        log, since = self._logs.get(channel), self._copied_since
        if log is None or since is None:
            return 0
        return time.monotonic() - max(log.heard_at, since)

    @contextmanager
    def _opened(self, channel: str) -> Iterator[_Log]:
        with super()._opened(channel) as log:
            with self._lock:
                must_start, self._is_copying = not self._is_copying, True
            if must_start:
                threading.Thread(target=self._copy, daemon=True).start()
            yield log

    def _new_log(self) -> _Log:
        return _Log()

    def _is_done_with(self, log: _Log) -> bool:
        return not log.readers

    def _copy(self) -> None:
        """Copy as long as there are readers, whatever happens to Redis."""
        failures = 0
        with closing(_connected_to(self._url, 1)) as connection:
            while logs := self._logs_to_copy():
                try:
                    _copy_once(connection, logs)
                except Exception as error:  # without a copy all would wait
                    if not failures:
                        logger.warning("Redis is away: %s", error)
                    failures += 1
                    self._copied_since = None
                    longest = min(0.1 * 2**failures, MAX_BACK_OFF_SECONDS)
                    time.sleep(longest * random.uniform(0.5, 1))
                    continue
                if self._copied_since is None:
                    self._copied_since = time.monotonic()
                if failures:
                    logger.warning("Redis is back.")
                failures = 0

    def _logs_to_copy(self) -> dict[str, _Log]:
        with self._lock:
            self._is_copying = bool(self._logs)
            return dict(self._logs)


def _copy_once(connection: redis.Redis, logs: dict[str, _Log]) -> None:
    """Copy what is new, or wait for it for a moment: logs come and go."""
    places = {
        KEY_PREFIX + channel: log.newest_id for channel, log in logs.items()
    }
    is_new = not all(log.loaded.is_set() for log in logs.values())
    block = None if is_new else BLOCK_MS
    for key, entries in connection.xread(places, block=block):
        log = logs[key.decode().removeprefix(KEY_PREFIX)]
        for id, fields in entries:
            log.append(
                _PublishedEvent(id.decode(), fields[b"lines"]),
                fields[b"previous"].decode(),
                int(fields[b"max_events"]),
            )
    for log in logs.values():
        log.loaded.set()


def _connected_to(url: str, max_connections: int) -> redis.Redis:
    """Return a client of Redis. It tries once: a publish that is tried again
    could come twice.
    """
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.Redis.from_pool(pool)


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        logger.warning("Redis is away: %s", error)
        raise Unavailable from None


def _id_after(id: str) -> str:
    """Return a new id in the way of Redis: a time in ms, and a number."""
    ms, number = map(int, id.split("-"))
    now = time.time_ns() // 1_000_000
    return f"{now}-0" if now > ms else f"{ms}-{number + 1}"


def _broker() -> _MemoryBroker:
    return _broker_at(os.environ.get("REDIS_URL", ""))


@cache
def _broker_at(url: str) -> _MemoryBroker:
    return _RedisBroker(url) if url else _MemoryBroker()
