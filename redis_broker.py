"""The channels of `broker.py`, shared by processes and machines through Redis.

    broker.BROKER = RedisBroker("redis://localhost:6379/0")

Theory of operation:

1. A channel is a Redis stream, and its entry ids are the event ids. So a client
   can lose one server and resume at another, right after its Last-Event-ID.
   Redis' own pub/sub would silently lose whatever is published while a process
   is disconnected.
2. Each process copies the channels of its own clients into `Log`s in memory.
   One thread with one connection does this for all channels. Only that thread
   changes the logs. From there on, everything works as in `broker.py`.
3. Each entry names the entry before it. If that is not the newest in the copy,
   there is a gap: the stream was trimmed, emptied, or restored from a backup,
   for example. Then the log starts over, and clients get `reset`.
4. Redis can also lose its newest entries. Then it may assign lower ids than
   those in the copy, and XREAD would wait for higher ones forever. So the
   thread compares the newest ids every CHECK_SECONDS. It skips channels that it
   cannot read, because one of them would make the XREAD fail for all.
5. While Redis is down, clients stay connected, and the thread retries with
   backoff. Publishing raises Unavailable. It is never retried, because the
   first attempt may have succeeded.

Copy this file together with `broker.py`. It needs redis-py and Redis 7.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import broker
import sse
from broker import BEGIN, KEEP_SECONDS, Conflict, Events, Log, PublishedEvent
from sse import Event

KEY_PREFIX = "sse:"
MAX_CONNECTIONS = 20
TIMEOUT_SECONDS = 5
LOAD_SECONDS = 2  # how long a new stream waits for the copy
BLOCK_MS = 100  # until the thread notices a new channel
CHECK_SECONDS = 1
FORGET_SECONDS = 60  # until an empty channel is deleted
LOG_SECONDS = 30  # between log lines about the same problem
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.1, 5

# A script is atomic: nobody can publish between the comparison and the XADD.
PUBLISH = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local previous = newest and newest[1] or '0-0'
local has_ended = newest and newest[2][2] == '1'
local event, max_events, seconds, final, after = unpack(ARGV)
if has_ended or after and after ~= previous then return false end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', max_events, '*',
    'final', final, 'event', event, 'previous', previous,
    'max_events', max_events)
redis.call('EXPIRE', KEYS[1], seconds)
return id
"""

logger = logging.getLogger(__name__)


class RedisBroker:
    """The channels in Redis. `redis.Redis.from_url` must accept `url`."""

    def __init__(self, url: str):
        self._new_pool = partial(
            redis.BlockingConnectionPool.from_url,
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = redis.Redis.from_pool(self._new_pool())
        self._script = self._redis.register_script(PUBLISH)
        self._channels = broker.Channels(keep_unread=False)
        self._is_copying, self._asked = False, []
        self._unreadable: set[str] = set()
        self._is_down, self._quiet_until = False, {}

    def refuse_cluster(self) -> None:
        """Raise SystemExit for a cluster: one connection can't read it all."""
        with suppress(broker.Unavailable), self._available():  # may start later
            if self._redis.info("cluster").get("cluster_enabled"):
                logger.error("REDIS_URL must not be a Redis Cluster.")
                raise SystemExit(3)  # with 1, gunicorn would restart the worker

    def publish(self, channel, event, after, max_events, final) -> str:
        text = PublishedEvent(41 * "9", event).data  # the longest id; may raise
        fields = {"data": text, "event": event.event, "retry": event.retry}
        arguments = [json.dumps(fields), max_events, KEEP_SECONDS, int(final)]
        if after is not None:
            arguments.append(after)
        with self._available():
            id = self._script([KEY_PREFIX + channel], arguments)
        if id is None:
            raise Conflict
        return id.decode()

    def newest(self, channel: str) -> PublishedEvent | None:
        with self._available():
            entries = self._redis.xrevrange(KEY_PREFIX + channel, count=1)
        return _event(entries[0]) if entries else None

    def forget(self, channel: str) -> None:
        # Don't delete it yet: until the clock moves on, an id could be reused.
        pipeline = self._redis.pipeline()
        pipeline.xtrim(KEY_PREFIX + channel, 0, approximate=False)
        pipeline.expire(KEY_PREFIX + channel, FORGET_SECONDS)
        with self._available():
            pipeline.execute()

    def subscribe(self, channel: str, last_event_id: str | None) -> Events:
        with self._channels.reading(channel) as log:
            is_copied = self._ask_for_copy()
            in_time = is_copied.wait(LOAD_SECONDS)
            place = log.tail.id
            yield None
            while not is_copied.wait(sse.KEEP_ALIVE_SECONDS):
                yield None
            place = place if in_time else log.tail.id
            yield from log.read(last_event_id, place)

    @contextmanager
    def _available(self) -> Iterator[None]:
        """Turn every Redis error into Unavailable, and log it."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if not self._is_down:
                self._is_down = self._log("Redis is down: %s", error)
            raise broker.Unavailable(retry_after=TIMEOUT_SECONDS) from None
        except redis.RedisError as error:
            if isinstance(error, redis.ReadOnlyError):  # after a failover
                self._redis.connection_pool = self._new_pool()
            self._log("Redis rejected a command: %s", error)
            raise broker.Unavailable(retry_after=TIMEOUT_SECONDS) from None
        if self._is_down:
            self._is_down = False
            logger.warning("Redis is available again.")

    def _log(self, sentence: str, *values: object) -> bool:
        """Log it at most once in LOG_SECONDS. Return whether it was logged."""
        now = time.monotonic()
        if is_due := now >= self._quiet_until.get(sentence, now):
            self._quiet_until[sentence] = now + LOG_SECONDS
            logger.warning(sentence, *values)
        return is_due

    def _ask_for_copy(self) -> threading.Event:
        """Return a flag that is set once the logs hold what Redis holds now."""
        is_copied = threading.Event()
        with self._channels.lock:
            if not self._is_copying:
                threading.Thread(target=self._copy, daemon=True).start()
                self._is_copying = True
            self._asked.append(is_copied)
        return is_copied

    def _copy(self) -> None:
        """Copy while there are clients, whatever happens to Redis."""
        backoff, checked_at = MIN_BACKOFF_SECONDS, 0
        while True:
            with self._channels.lock:
                logs, asked = dict(self._channels.logs), list(self._asked)
                self._is_copying = bool(logs)
                if not logs:
                    self._asked.clear()
                    return
            try:
                with self._available():
                    if time.monotonic() - checked_at > CHECK_SECONDS:
                        self._check(logs)
                        checked_at = time.monotonic()
                    self._copy_once(logs, block=None if asked else BLOCK_MS)
            except Exception as error:  # else all clients would wait forever
                if not isinstance(error, broker.Unavailable):
                    logger.exception("Copying from Redis failed")
                checked_at = 0
                time.sleep(backoff * random.uniform(0.5, 1))
                backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
                continue
            backoff = MIN_BACKOFF_SECONDS
            with self._channels.lock:
                del self._asked[: len(asked)]
            for is_copied in asked:
                is_copied.set()

    def _copy_once(self, logs: dict[str, Log], block: int | None) -> None:
        """Copy new events. Wait up to `block` ms for one; None: don't wait."""
        channels = logs.keys() - self._unreadable
        places = {KEY_PREFIX + name: logs[name].tail.id for name in channels}
        if not places:
            time.sleep((block or 0) / 1000)
            return
        for key, entries in self._redis.xread(places, block=block):
            channel = key.decode().removeprefix(KEY_PREFIX)
            if _previous(entries[0]) == logs[channel].tail.id:
                self._append(channel, entries, logs[channel])
            else:
                self._reload(channel, logs[channel])

    def _reload(self, channel: str, log: Log) -> None:
        entries = self._redis.xrange(KEY_PREFIX + channel)
        log.start_over(_previous(entries[0]) if entries else BEGIN)
        self._append(channel, entries, log)

    def _append(self, channel: str, entries: list, log: Log) -> None:
        for entry in entries:
            if _previous(entry) != log.tail.id:
                log.start_over(_previous(entry))
            try:
                max_events = max(0, int(entry[1][b"max_events"]))
                log.append(_event(entry), max_events)
            except Exception as error:  # another program may write anything
                self._log("%s contains an invalid entry: %r", channel, error)
                log.start_over(entry[0].decode())

    def _check(self, logs: dict[str, Log]) -> None:
        """Find unreadable channels. Reload those that lost new entries."""
        pipeline = self._redis.pipeline(transaction=False)
        for channel in logs:
            pipeline.xrevrange(KEY_PREFIX + channel, count=1)
        answers = pipeline.execute(raise_on_error=False)
        known, self._unreadable = self._unreadable, set()
        for (channel, log), answer in zip(logs.items(), answers, strict=True):
            if isinstance(answer, Exception):
                self._unreadable.add(channel)
                if channel not in known:
                    logger.warning("Cannot read %s: %s", channel, answer)
                continue
            newest_id = answer[0][0].decode() if answer else BEGIN
            if id_parts(newest_id) < id_parts(log.tail.id):
                self._reload(channel, log)


def _event(entry: tuple[bytes, dict]) -> PublishedEvent:
    id, fields = entry
    return PublishedEvent(id.decode(), Event(**json.loads(fields[b"event"])))


def _previous(entry: tuple[bytes, dict]) -> str:
    return entry[1].get(b"previous", b"0-0").decode(errors="replace")


def id_parts(id: str) -> tuple[int, ...]:
    """Return the two numbers by which Redis orders ids."""
    return tuple(map(int, id.split("-")))
