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
from contextlib import contextmanager
from functools import cache

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

GAP = "Events before this one are no longer held."

LOAD_SECONDS = 2  # to wait for a place in the log before a stream opens
BLOCK_MS = 100  # until a channel that is new here is looked at
CHECK_SECONDS = 1  # between two looks for what Redis has lost
TIMEOUT_SECONDS = 5
MIN_BACK_OFF_SECONDS, MAX_BACK_OFF_SECONDS = 0.1, 5
MAX_CONNECTIONS = 20
KEY_PREFIX = "sse:"

PUBLISH = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local previous = newest and newest[1] or '0-0'
local lines, max_events, seconds, after = unpack(ARGV)
if after and after ~= previous then return false end
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
    is published after this call or, if Redis is away now, after it is back. An
    event `begin` then tells the id to go on from, so that a connection that is
    lost before the next event loses nothing either; `reset` has such an id too.

    Whenever no event came for `keep_alive_seconds`, by default the app's
    KEEP_ALIVE_SECONDS, it yields a comment. Also while Redis is away: when it
    is back, the events go on.
    """
    alone = keep_alive_seconds is not None
    if not alone:
        config = current_app.config if current_app else {}
        keep_alive_seconds = config.get(
            "KEEP_ALIVE_SECONDS", KEEP_ALIVE_SECONDS
        )
    events = _broker().subscribe(
        channel, last_event_id, keep_alive_seconds, alone
    )
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


def parts(id: str) -> tuple[int, int]:
    """Return the two numbers of an id, by which ids are ordered."""
    ms, number = id.split("-")
    return int(ms), int(number)


class _PublishedEvent(Event):
    """An event with its id, encoded once however many receive it."""

    __slots__ = ("_encoded",)

    def __init__(self, id: str, lines: bytes):
        self._encoded = f"id: {id}\n".encode() + lines
        (event,) = parse_events([self._encoded])
        super().__init__(
            event.data, event=event.event, id=id, retry=event.retry
        )

    def encode(self) -> bytes:
        return self._encoded


class _Place:
    """A place in a log: behind the event of its id, and before the next."""

    __slots__ = ("id", "is_watched", "passed", "then")

    def __init__(self, id: str):
        self.id = id
        self.then: tuple[_PublishedEvent | bytes, _Place] | None = None
        self.passed = threading.Event()  # there is a `then`, or it is given up
        self.is_watched = False


class _Log:
    """The newest events of a channel, and the places that readers wait at.

    Each event has the next place beside it, so that a reader goes on by itself.
    Who stands at a place that was given up has missed something.
    """

    def __init__(self):
        self.places = deque([_Place(BEGIN)])
        self.used_at = time.monotonic()
        self.lock = threading.Lock()
        self.readers = 0
        self.is_copied = False

    @property
    def newest_id(self) -> str:
        return self.places[-1].id

    @property
    def newest(self) -> _PublishedEvent | None:
        with self.lock:
            return self.places[-2].then[0] if len(self.places) > 1 else None

    def append(
        self, event: _PublishedEvent, previous: str, max_events: int
    ) -> None:
        """Add an event and wake the readers. `previous` is the id before it:
        if that is not the newest here, there is a gap, which all must notice.
        """
        with self.lock:
            if previous != self.newest_id:
                self._begin_at(previous)
            end = self.places[-1]
            end.then = event, _Place(event.id)
            self.places.append(end.then[1])
            while len(self.places) > max_events + 1:
                self.places.popleft().then = None
            self.used_at = time.monotonic()
        end.passed.set()

    def clear(self) -> None:
        with self.lock:
            self._begin_at(BEGIN)

    def _begin_at(self, id: str) -> None:
        given_up, self.places = self.places, deque([_Place(id)])
        for place in given_up:
            place.then = None
        given_up[-1].passed.set()  # who wakes looks at the new places

    def keep_alive(self, place: _Place) -> None:
        """Let all who wait at the end, if that is this place, send a comment.

        The log keeps no trace of it: they find themselves at the end again.
        """
        with self.lock:
            if place is not self.places[-1]:
                return
            place.then = KEEP_ALIVE, _Place(place.id)
            self.places[-1] = place.then[1]
            if len(self.places) > 1:
                before = self.places[-2]
                before.then = before.then[0], self.places[-1]
        place.passed.set()

    def place_behind(self, id: str) -> _Place | None:
        """Return the place behind the event of that id, None if unknown."""
        with self.lock:
            for place in self.places:
                if place.id == id:
                    return place
        return None

    def read_behind(
        self, last_event_id: str, keep_alive_seconds: float, alone: bool
    ) -> Iterator[Event | bytes]:
        """Yield what follows, and a comment after each silence.

        Of all who wait at a place the first looks at the clock for the others:
        a timer each would be a third of the work that an event makes. Who waits
        for another time than they does so `alone`.
        """
        place = self.place_behind(last_event_id)
        while True:
            if place is None:
                place = self.places[0]
                yield Event(GAP, event="reset", id=place.id)
            if not place.then:
                seconds = keep_alive_seconds
                if not alone:
                    seconds = None if place.is_watched else seconds
                    place.is_watched = True
                if not place.passed.wait(seconds):
                    if alone:
                        yield KEEP_ALIVE
                    else:
                        self.keep_alive(place)
                    continue
            if then := place.then:
                event, place = then
                yield event
            else:
                place = None


class _MemoryBroker:
    """The channels of one process."""

    def __init__(self):
        self._logs: dict[str, _Log] = {}
        self._lock = threading.Lock()
        self._newest_id = BEGIN  # of all channels
        self._is_known = threading.Event()
        self._is_known.set()

    def publish(
        self, channel: str, lines: bytes, after: str | None, max_events: int
    ) -> str:
        with self._lock:
            self._forget_old()
            log = self._logs.get(channel) or _Log()
            previous = log.newest_id
            if after is not None and after != previous:
                raise Conflict
            self._newest_id = _id_after(self._newest_id)
            event = _PublishedEvent(self._newest_id, lines)
            self._logs[channel] = log
            log.append(event, previous, max_events)
        return event.id

    def newest(self, channel: str) -> Event | None:
        with self._lock:
            log = self._logs.get(channel)
            return log.newest if log else None

    def forget(self, channel: str) -> None:
        with self._lock:
            if log := self._logs.get(channel):
                log.clear()
                self._drop_if_unused(channel, log)

    def subscribe(
        self,
        channel: str,
        last_event_id: str | None,
        keep_alive_seconds: float,
        alone: bool,
    ) -> Iterator[Event | bytes | None]:
        log = self._open(channel)
        try:
            known = self._known(log, last_event_id)
            in_time = known.wait(LOAD_SECONDS)
            place = log.newest_id
            yield None
            while not known.wait(keep_alive_seconds):
                yield KEEP_ALIVE
            if last_event_id is None:
                last_event_id = place if in_time else log.newest_id
                yield Event(last_event_id, event="begin", id=last_event_id)
            yield from log.read_behind(last_event_id, keep_alive_seconds, alone)
        finally:
            with self._lock:
                log.readers -= 1
                log.used_at = time.monotonic()
                self._drop_if_unused(channel, log)

    def _open(self, channel: str) -> _Log:
        with self._lock:
            log = self._logs.setdefault(channel, _Log())
            log.readers += 1
        return log

    def _known(self, log: _Log, id: str | None) -> threading.Event:
        """Return what is set when the log is able to tell where an id is."""
        return self._is_known

    def _drop_if_unused(self, channel: str, log: _Log) -> None:
        if not log.readers and log.newest is None:
            del self._logs[channel]

    def _forget_old(self) -> None:
        oldest = time.monotonic() - KEEP_SECONDS
        for channel, log in list(self._logs.items()):
            if not log.readers and log.used_at < oldest:
                del self._logs[channel]


class _RedisBroker(_MemoryBroker):
    """The channels of all processes that use one Redis.

    A channel that has readers here is copied from there into memory, event by
    event, by one thread for all channels.
    """

    def __init__(self, url: str):
        super().__init__()
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            # A publish that is tried again could come twice.
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = redis.Redis.from_pool(pool)
        self._script = self._redis.register_script(PUBLISH)
        self._asked: list[threading.Event] = []
        self._is_copying = False
        self._is_away = False
        self._refusal = None

    def publish(
        self, channel: str, lines: bytes, after: str | None, max_events: int
    ) -> str:
        arguments = [lines, max_events, KEEP_SECONDS]
        if after is not None:
            arguments.append(after)
        with self._available():
            id = self._script([KEY_PREFIX + channel], arguments)
        self._refusal = None
        if id is None:
            raise Conflict
        return id.decode()

    def newest(self, channel: str) -> Event | None:
        with self._available():
            entries = self._redis.xrevrange(KEY_PREFIX + channel, count=1)
        for id, fields in entries:
            return _PublishedEvent(id.decode(), fields[b"lines"])
        return None

    def forget(self, channel: str) -> None:
        with self._available():
            # Not deleted: it must not give the same ids again.
            self._redis.xtrim(KEY_PREFIX + channel, 0, approximate=False)

    @contextmanager
    def _available(self) -> Iterator[None]:
        """Turn the errors of Redis into one, and log each trouble once."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if not self._is_away:
                logger.warning("Redis is away: %s", error)
            self._is_away = True
            raise Unavailable from None
        except redis.RedisError as error:
            if str(error) != self._refusal:
                logger.warning("Redis refuses: %s", error)
            self._refusal = str(error)
            raise Unavailable from None
        if self._is_away:
            logger.warning("Redis is back.")
        self._is_away = False

    def _open(self, channel: str) -> _Log:
        log = super()._open(channel)
        with self._lock:
            must_start, self._is_copying = not self._is_copying, True
        if must_start:
            threading.Thread(target=self._copy, daemon=True).start()
        return log

    def _known(self, log: _Log, id: str | None) -> threading.Event:
        known = threading.Event()
        if log.is_copied and (id is None or log.place_behind(id)):
            known.set()
        else:  # it may be newer than the copy: look again
            with self._lock:
                self._asked.append(known)
        return known

    def _drop_if_unused(self, channel: str, log: _Log) -> None:
        if not log.readers:
            del self._logs[channel]

    def _copy(self) -> None:
        """Copy as long as there are readers, whatever happens to Redis."""
        back_off, checked_at = MIN_BACK_OFF_SECONDS, 0
        while True:
            with self._lock:
                logs, asked = dict(self._logs), list(self._asked)
                self._is_copying = bool(logs)
                if not self._is_copying:
                    self._asked.clear()
                    return
            try:
                with self._available():
                    if time.monotonic() - checked_at > CHECK_SECONDS:
                        self._check(logs)
                        checked_at = time.monotonic()
                    self._copy_once(logs, block=None if asked else BLOCK_MS)
            except Exception as error:  # without a copy all would wait for ever
                if not isinstance(error, Unavailable):
                    logger.exception("Redis holds what is no event")
                checked_at = 0
                time.sleep(back_off * random.uniform(0.5, 1))
                back_off = min(2 * back_off, MAX_BACK_OFF_SECONDS)
                continue
            back_off = MIN_BACK_OFF_SECONDS
            with self._lock:
                del self._asked[: len(asked)]
            for known in asked:
                known.set()

    def _copy_once(self, logs: dict[str, _Log], block: int | None) -> None:
        """Copy what is new; wait for it at most `block` ms, None for not."""
        places = {
            KEY_PREFIX + name: log.newest_id for name, log in logs.items()
        }
        for key, entries in self._redis.xread(places, block=block):
            name = key.decode().removeprefix(KEY_PREFIX)
            if _previous(entries[0]) == logs[name].newest_id:
                _append(entries, logs[name])
            else:  # there is a gap
                self._copy_anew(name, logs[name])
        for log in logs.values():
            log.is_copied = True

    def _copy_anew(self, channel: str, log: _Log) -> None:
        entries = self._redis.xrange(KEY_PREFIX + channel)
        if entries:
            _append(entries, log)
        else:
            log.clear()

    def _check(self, logs: dict[str, _Log]) -> None:
        """Copy anew what Redis has lost: it may give lower ids from now on, and
        who waits for higher ones would not see them.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for channel in logs:
            pipeline.xrevrange(KEY_PREFIX + channel, count=1)
        for channel, entries in zip(logs, pipeline.execute(), strict=True):
            newest_id = entries[0][0].decode() if entries else BEGIN
            if parts(newest_id) < parts(logs[channel].newest_id):
                self._copy_anew(channel, logs[channel])


def _append(entries: list[tuple[bytes, dict]], log: _Log) -> None:
    for entry in entries:
        id, fields = entry
        event = _PublishedEvent(id.decode(), fields[b"lines"])
        log.append(event, _previous(entry), int(fields[b"max_events"]))


def _previous(entry: tuple[bytes, dict]) -> str:
    return entry[1][b"previous"].decode()


def _id_after(id: str) -> str:
    """Return a new id in the way of Redis: a time in ms, and a number."""
    ms, number = parts(id)
    now = time.time_ns() // 1_000_000
    return f"{now}-0" if now > ms else f"{ms}-{number + 1}"


_memory_broker = _MemoryBroker()
_redis_broker = cache(_RedisBroker)
_only_one = threading.Lock()


def _broker() -> _MemoryBroker:
    url = os.environ.get("REDIS_URL")
    if not url:
        return _memory_broker
    with _only_one:
        return _redis_broker(url)
