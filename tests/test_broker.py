"""Publish and subscribe: in memory, over Redis, and while Redis is away."""

import gc
import http.client
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from conftest import PROJECT, Client, RedisServer, free_port, lack, wait_until

import broker
from broker import (
    BEGIN,
    Conflict,
    Unavailable,
    forget,
    newest,
    publish,
    subscribe,
)
from settings import read_settings
from sse import KEEP_ALIVE, MAX_EVENT_BYTES, Event, EventTooLarge, parse_events


def copiers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "_copy" in one.name]


@pytest.fixture(autouse=True)
def _fresh_brokers(monkeypatch) -> Iterator[None]:
    """As in a process that has just started. Nobody reads when it ends."""
    monkeypatch.setattr(broker, "BLOCK_MS", 10)  # not to wait for that end
    monkeypatch.setattr(broker, "_memory_broker", broker._MemoryBroker())
    yield
    wait_until(lambda: not copiers())
    broker._redis_broker.cache_clear()


@pytest.fixture
def use(monkeypatch):
    """Return what sets REDIS_URL, as if the process had started with it."""
    return lambda url: monkeypatch.setenv("REDIS_URL", url)


@pytest.fixture(params=["memory", "redis"])
def backend(request, use) -> str:
    """Run the test against both: it is the same interface."""
    if request.param == "redis":
        use(request.getfixturevalue("redis_server").url)
    return request.param


@pytest.fixture
def channel() -> str:
    return secrets.token_hex(4)


@pytest.fixture
def read(channel, monkeypatch):
    """Subscribe to the channel; what is open ends with the test."""
    monkeypatch.setattr(broker, "KEEP_ALIVE_SECONDS", 0.02)
    with ExitStack() as opened:

        def read(last_event_id=None, keep_alive_seconds=None):
            events = subscribe(channel, last_event_id, keep_alive_seconds)
            return opened.enter_context(closing(events))

        yield read


def take(events, count, seconds=30) -> list[Event]:
    """Return the next events, without the comments between them."""
    taken, deadline = [], time.monotonic() + seconds
    while len(taken) < count:
        event = next(events)
        if event is not KEEP_ALIVE:
            taken.append(event)
        assert time.monotonic() < deadline, f"only {taken} came"
    return taken


def told(events, count) -> list[str]:
    """Return the data of the next events, of a type of their own the type."""
    return [
        event.data if event.event == "message" else event.event
        for event in take(events, count)
    ]


def publish_all(channel, *texts, **options) -> list[str]:
    return [publish(channel, Event(text), **options) for text in texts]


def parts(id: str) -> list[int]:
    return [int(part) for part in id.split("-")]


def let_the_clock_go_on() -> None:
    """Two events get ids of different times, if this is between them."""
    now = time.time_ns()
    wait_until(lambda: time.time_ns() > now + 2_000_000)


# What a channel is, the same in memory and in Redis.


def test_an_event_goes_to_all_readers_and_is_encoded_once(
    backend, channel, read
):
    readers = [read() for _ in range(3)]
    event = Event({"a": "ä\nb"}, event="greeting", retry=0)
    id = publish(channel, event)
    received = [take(events, 2)[1].encode() for events in readers]
    assert received[0] == (
        f"id: {id}\nevent: greeting\nretry: 0\n".encode()
        + b'data: {"a":"\xc3\xa4\\nb"}\n\n'
    )
    assert all(encoded is received[0] for encoded in received)


def test_begins_with_the_next_event(backend, channel, read):
    (id,) = publish_all(channel, "before")
    events = read()
    publish_all(channel, "after")
    begin, event = take(events, 2)
    assert begin.encode() == f"id: {id}\nevent: begin\ndata: {id}\n\n".encode()
    assert event.data == "after"


def test_its_place_is_that_of_the_call_and_not_of_the_first_event(
    backend, channel, read
):
    events = read()
    publish_all(channel, "a", "b")
    begin, *others = take(events, 3)
    assert begin.encode() == b"id: 0-0\nevent: begin\ndata: 0-0\n\n"
    assert [event.data for event in others] == ["a", "b"]


def test_who_comes_back_with_the_id_of_begin_has_lost_nothing(
    backend, channel, read
):
    publish_all(channel, "before")
    events = read()
    (begin,) = take(events, 1)
    events.close()
    publish_all(channel, "a", "b")
    assert told(read(begin.id), 2) == ["a", "b"]


def test_resumes_after_last_event_id(backend, channel, read):
    texts = ["a", "b", "c", "d"]
    ids = [BEGIN, *publish_all(channel, *texts)]
    open_readers = [read(id) for id in ids]
    publish_all(channel, "e")
    for number, events in enumerate(open_readers):
        assert told(events, 5 - number) == [*texts[number:], "e"]


def test_reads_more_than_a_batch(backend, channel, read):
    texts = [str(number) for number in range(201)]
    publish_all(channel, *texts)
    assert told(read(BEGIN), len(texts)) == texts


@pytest.mark.parametrize(
    "last_event_id", ["", "x", "1-1", "0-1", "99999999999999-0", "١-١"]
)
def test_an_id_that_was_never_given_is_a_gap(
    backend, channel, read, last_event_id
):
    publish_all(channel, "a", "b")
    events = read(last_event_id)
    reset = take(events, 1)[0]
    assert reset.encode() == (
        b"id: 0-0\nevent: reset\n"
        b"data: Events before this one are no longer held.\n\n"
    )
    assert told(events, 2) == ["a", "b"]


def test_a_channel_is_bounded_and_says_so(backend, channel, read):
    ids = publish_all(channel, "0", "1", "2", "3", "4", max_events=2)
    for last_event_id, expected in [
        (BEGIN, ["reset", "3", "4"]),
        (ids[1], ["reset", "3", "4"]),
        (ids[2], ["3", "4"]),
        (ids[3], ["4"]),
    ]:
        assert told(read(last_event_id), len(expected)) == expected


def test_who_comes_back_with_the_id_of_reset_gets_all_once(
    backend, channel, read
):
    ids = publish_all(channel, "0", "1", "2", "3", max_events=2)
    events = read(ids[0])
    (reset,) = take(events, 1)
    assert (reset.event, reset.id) == ("reset", ids[1])
    events.close()
    assert told(read(reset.id), 2) == ["2", "3"]


def test_the_newest_publish_says_how_many_are_held(backend, channel, read):
    publish_all(channel, *map(str, range(5)))
    publish_all(channel, "5", max_events=2)
    assert told(read(BEGIN), 3) == ["reset", "4", "5"]


def test_who_is_too_slow_costs_a_bounded_log_and_slows_nobody(
    backend, channel, read
):
    slow, fast = read(), read()
    assert told(slow, 1) == told(fast, 1) == ["begin"]
    for number in range(20):
        publish_all(channel, str(number), max_events=3)
        assert told(fast, 1) == [str(number)]
        assert len(broker._broker()._logs[channel].places) <= 4
    assert told(slow, 4) == ["reset", "17", "18", "19"]


def test_who_is_too_slow_before_its_first_event_is_told_so(
    backend, channel, read
):
    slow, fast = read(), read(BEGIN)
    for text in ("a", "b", "c"):
        publish_all(channel, text, max_events=2)
        assert told(fast, 1) == [text]
    assert told(slow, 4) == ["begin", "reset", "b", "c"]


def test_publishes_after_a_certain_event_or_not_at_all(backend, channel):
    def publish_after(id):
        return publish(channel, Event("x"), after=id)

    first = publish_after(BEGIN)
    second = publish_after(first)
    for stale in (BEGIN, first, "", "x", "*", f"{second} "):
        with pytest.raises(Conflict):
            publish_after(stale)
    assert newest(channel).id == second


@pytest.fixture
def _hasty_threads():
    """Interrupt threads wherever they are, and not now and then."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_hasty_threads")
def test_of_many_who_publish_after_the_same_event_one_wins(backend, channel):
    threads = 8
    barrier = threading.Barrier(threads)

    def race(after):
        barrier.wait(10)
        try:
            return publish(channel, Event("x"), after=after)
        except Conflict:
            return None

    last = BEGIN
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(10):
            ids = list(filter(None, pool.map(race, [last] * threads)))
            assert ids == [newest(channel).id]
            (last,) = ids


@pytest.mark.usefixtures("_hasty_threads")
def test_all_readers_get_the_same_of_many_who_publish_at_once(
    backend, channel, read
):
    texts = [str(number) for number in range(100)]
    readers = [read() for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(told, events, 101) for events in readers]
        list(pool.map(lambda text: publish_all(channel, text), texts))
        received = [job.result() for job in jobs]
    in_order = told(read(BEGIN), 100)
    assert received == [["begin", *in_order]] * 3
    assert sorted(in_order, key=int) == texts


def test_ids_are_two_numbers_and_grow(backend, channel):
    ids = publish_all(channel, *map(str, range(50)))
    assert all(re.fullmatch(r"\d+-\d+", id) for id in ids)
    assert all(parts(one) < parts(next) for one, next in pairwise(ids))
    assert parts(ids[0]) > parts(BEGIN)


def test_ids_grow_though_the_clock_is_set_back(channel, monkeypatch):
    times = iter([2_000_000, 1_000_000, 2_000_000, 3_000_000])
    monkeypatch.setattr(broker.time, "time_ns", lambda: next(times))
    ids = publish_all(channel, "a", "b", "c", "d")
    assert ids == ["2-0", "2-1", "2-2", "3-0"]


def test_an_id_is_not_given_again_when_its_event_is_forgotten(backend, channel):
    ids = []
    for _ in range(20):
        ids += publish_all(channel, "a", "b")
        forget(channel)
    assert all(parts(one) < parts(next) for one, next in pairwise(ids))


def test_tells_the_newest_event(backend, channel):
    assert newest(channel) is None
    _, id = publish_all(channel, "a", "b")
    assert newest(channel).encode() == f"id: {id}\ndata: b\n\n".encode()
    forget(channel)
    assert newest(channel) is None


def test_what_is_forgotten_is_a_gap(backend, channel, read):
    (id,) = publish_all(channel, "a")
    forget(channel)
    let_the_clock_go_on()
    publish(channel, Event("b"), after=BEGIN)
    assert told(read(id), 2) == ["reset", "b"]
    assert told(read(BEGIN), 1) == ["b"]


def test_who_is_reading_goes_on_when_events_are_forgotten(
    backend, channel, read
):
    events = read()
    publish_all(channel, "a")
    assert told(events, 2) == ["begin", "a"]
    forget(channel)
    let_the_clock_go_on()
    publish_all(channel, "b")
    assert told(events, 2) == ["reset", "b"]


def test_channels_have_nothing_to_do_with_each_other(backend, channel, read):
    events = read()
    publish_all(f"{channel}:2", "other")
    publish_all(channel, "own")
    assert told(events, 2) == ["begin", "own"]


@pytest.mark.parametrize(
    ("event", "error", "sentence"),
    [
        (
            Event("a", id="7"),
            ValueError,
            "The broker gives the id, not you: '7'",
        ),
        (
            Event("a" * (MAX_EVENT_BYTES + 1)),
            EventTooLarge,
            f"The stream holds an event of over {MAX_EVENT_BYTES} bytes.",
        ),
        (Event({1}), TypeError, "Object of type set is not JSON serializable"),
    ],
    ids=["has an id", "too large", "no JSON"],
)
def test_refuses_what_it_cannot_pass_on(
    backend, channel, event, error, sentence
):
    with pytest.raises(error) as refused:
        publish(channel, event)
    assert str(refused.value) == sentence
    assert newest(channel) is None


def test_passes_on_the_largest_event_that_readers_take(backend, channel, read):
    largest = "a" * MAX_EVENT_BYTES
    publish_all(channel, largest)
    (event,) = take(read(BEGIN), 1)
    assert event.data == largest
    (parsed,) = parse_events([event.encode()])
    assert parsed.data == largest


def test_speaks_while_no_event_comes(backend, channel, read):
    events = read(keep_alive_seconds=0.01)
    assert told(events, 1) == ["begin"]
    assert [next(events) for _ in range(3)] == [KEEP_ALIVE] * 3
    publish_all(channel, "a")
    assert told(events, 1) == ["a"]


def test_speaks_as_often_as_the_app_is_told(backend, channel, app):
    app.config["KEEP_ALIVE_SECONDS"] = 0.01
    with app.app_context(), closing(subscribe(channel)) as events:
        assert told(events, 1) == ["begin"]
        assert next(events) is KEEP_ALIVE


def test_speaks_as_other_streams_do_without_an_app(
    backend, channel, monkeypatch
):
    monkeypatch.setattr(broker, "KEEP_ALIVE_SECONDS", 0.01)
    with closing(subscribe(channel)) as events:
        assert told(events, 1) == ["begin"]
        assert next(events) is KEEP_ALIVE


def never_start(channel, client):
    subscribe(channel).close()


def lose_before_the_start(channel, client):
    subscribe(channel)
    gc.collect()


def close_after_begin(channel, client):
    with closing(subscribe(channel)) as events:
        next(events)


def close_after_a_comment(channel, client):
    with closing(subscribe(channel, BEGIN, 0.01)) as events:
        assert next(events) is KEEP_ALIVE


def close_after_an_event(channel, client):
    with closing(subscribe(channel)) as events:
        publish_all(channel, "a")
        assert told(events, 2) == ["begin", "a"]
    forget(channel)


def throw_into_it(channel, client):
    with closing(subscribe(channel)) as events:
        next(events)
        with pytest.raises(KeyboardInterrupt):
            events.throw(KeyboardInterrupt)


def ask_for_the_head(channel, client):
    assert client.head("/stream/notifications").status_code == 200


@pytest.mark.parametrize(
    "leave",
    [
        never_start,
        lose_before_the_start,
        close_after_begin,
        close_after_a_comment,
        close_after_an_event,
        throw_into_it,
        ask_for_the_head,
    ],
)
def test_nothing_is_left_of_a_reader(backend, leave, channel, client):
    leave(channel, client)
    assert broker._broker()._logs == {}
    wait_until(lambda: not copiers())


def test_events_stay_though_nobody_reads(backend, channel, read):
    for text in ("a", "b"):
        events = read()
        publish_all(channel, text)
        assert told(events, 2) == ["begin", text]
        events.close()
        wait_until(lambda: not copiers())
    assert told(read(BEGIN), 2) == ["a", "b"]


@pytest.mark.parametrize("keep_alive_seconds", [None, 0.03])
def test_all_readers_of_a_silent_channel_get_comments_and_none_is_kept(
    backend, channel, read, keep_alive_seconds
):
    publish(channel, Event("a"))
    readers = [read(BEGIN, keep_alive_seconds) for _ in range(20)]

    def comments(events):
        assert next(events).data == "a"
        return [next(events) for _ in range(5)]

    with ThreadPoolExecutor(len(readers)) as threads:
        for silence in threads.map(comments, readers):
            assert silence == 5 * [KEEP_ALIVE]
    publish(channel, Event("b"))
    for events in readers:
        assert told(events, 1) == ["b"]
    late = read(BEGIN)
    assert [next(late).data, next(late).data] == ["a", "b"]


def test_memory_forgets_a_channel_that_has_been_silent_and_has_no_reader(
    channel, read, monkeypatch
):
    monkeypatch.setattr(broker, "KEEP_SECONDS", 0)
    publish_all(channel, "a")
    events = read(BEGIN)
    publish_all("another", "x")
    assert newest(channel).data == "a"
    assert told(events, 1) == ["a"]
    events.close()
    publish_all("another", "y")
    assert newest(channel) is None


def test_memory_tells_who_comes_back_after_that(channel, read, monkeypatch):
    (id,) = publish_all(channel, "a")
    let_the_clock_go_on()
    monkeypatch.setattr(broker, "KEEP_SECONDS", 0)
    publish_all(channel, "b")
    assert told(read(id), 2) == ["reset", "b"]


def test_redis_holds_no_more_than_it_is_told(redis_server, use, channel):
    use(redis_server.url)
    publish_all(channel, *map(str, range(5)), max_events=2)
    assert redis_server.client().xlen(f"sse:{channel}") == 2


def test_redis_forgets_a_channel_that_has_been_silent(
    redis_server, use, channel, read
):
    use(redis_server.url)
    client = redis_server.client()
    key = f"sse:{channel}"
    publish_all(channel, "a")
    assert broker.KEEP_SECONDS - 10 < client.ttl(key) <= broker.KEEP_SECONDS
    client.expire(key, 5)
    (id,) = publish_all(channel, "b")
    assert client.ttl(key) > broker.KEEP_SECONDS - 10
    client.delete(key)  # as Redis does when the time is over
    let_the_clock_go_on()
    publish(channel, Event("c"), after=BEGIN)
    assert told(read(id), 2) == ["reset", "c"]


def test_threads_that_are_first_at_once_share_one_broker(backend, monkeypatch):
    create = broker._MemoryBroker.__init__

    def take_time(self):
        time.sleep(0.05)
        create(self)

    monkeypatch.setattr(broker._MemoryBroker, "__init__", take_time)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: broker._broker(), range(4)))
    assert {id(one) for one in found} == {id(broker._broker())}


def test_errors_are_answers_to_a_request():
    conflict, unavailable = Conflict(), Unavailable()
    assert (conflict.code, conflict.description) == (
        412,
        "Somebody else was faster: the channel has a newer event.",
    )
    assert (unavailable.code, unavailable.description) == (
        503,
        "Redis is not available. Try again in a few seconds.",
    )
    assert ("Retry-After", "5") in unavailable.get_headers()


# Redis, and the way to it.


class Line:
    """A way to Redis that can be cut, frozen, and made to lose an answer."""

    def __init__(self, port: int):
        self.port = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        own_port = self.listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{own_port}/0"
        self.is_cut = False
        self.loses_next_answer = False
        self.flows = threading.Event()
        self.flows.set()
        self.open: set[socket.socket] = set()
        self.threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, *work) -> None:
        self.threads.append(threading.Thread(target=work[0], args=work[1:]))
        self.threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                there, _ = self.listener.accept()
                try:
                    if self.is_cut:
                        raise OSError
                    back = socket.create_connection(("127.0.0.1", self.port))
                except OSError:
                    there.close()
                    continue
                self.open |= {there, back}
                self._run(self._pump, there, back, False)
                self._run(self._pump, back, there, True)

    def _pump(self, source, target, is_answer) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                if is_answer and self.loses_next_answer:
                    self.loses_next_answer = False
                    break
                target.sendall(data)
        hang_up(source)
        hang_up(target)

    def cut(self) -> None:
        self.is_cut = True
        for one in list(self.open):
            hang_up(one)

    def freeze(self) -> None:
        self.flows.clear()

    def mend(self) -> None:
        self.is_cut = False
        self.flows.set()

    def close(self) -> None:
        self.mend()
        hang_up(self.listener)
        self.threads[0].join()
        self.cut()
        for thread in self.threads:
            thread.join()
        for one in (self.listener, *self.open):
            one.close()


def hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(broker, "TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(broker, "LOAD_SECONDS", 0.3)
    monkeypatch.setattr(broker, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(broker, "MAX_BACK_OFF_SECONDS", 0.05)


@pytest.fixture
def lines(redis_server, _impatient):
    """Two ways to one Redis, for what is two machines."""
    port = redis_server.port
    with closing(Line(port)) as one, closing(Line(port)) as other:
        yield one, other


@pytest.fixture
def line(lines, use) -> Line:
    """The way from this machine to Redis."""
    use(lines[0].url)
    return lines[0]


@pytest.fixture
def elsewhere(redis_server, channel):
    """Return what publishes on a machine that always reaches Redis."""

    def publish_elsewhere(*texts, max_events=broker.MAX_EVENTS):
        other = broker._redis_broker(redis_server.url)
        return [
            other.publish(channel, Event(text).encode(), None, max_events)
            for text in texts
        ]

    return publish_elsewhere


@contextmanager
def killed(server: RedisServer, line: Line):
    server.stop(signal.SIGKILL)
    yield
    server.start()


@contextmanager
def restarted(server: RedisServer, line: Line):
    server.stop()
    yield
    server.start()


@contextmanager
def cut(server: RedisServer, line: Line):
    line.cut()
    yield
    line.mend()


@contextmanager
def frozen(server: RedisServer, line: Line):
    line.freeze()
    yield
    line.mend()


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("outage", [killed, restarted, cut, frozen])
def test_comes_back_after_an_outage_with_all_that_redis_holds(
    outage, own_redis, use, channel, read, caplog
):
    with closing(Line(own_redis.port)) as line:
        use(line.url)
        events = read()
        publish_all(channel, "a")
        assert told(events, 2) == ["begin", "a"]
        caplog.clear()
        with outage(own_redis, line):
            wait_until(lambda: "Redis is away" in caplog.text)
            assert [next(events) for _ in range(3)] == [KEEP_ALIVE] * 3
            late = read()
            assert next(late) is not None
            if outage in (cut, frozen):
                use(own_redis.url)
                publish_all(channel, "b")
                use(line.url)
        wait_until(lambda: "Redis is back" in caplog.text)
        publish_all(channel, "c")
        expected = ["b", "c"] if outage in (cut, frozen) else ["c"]
        assert told(events, len(expected)) == expected
        logged = [message.partition(":")[0] for message in caplog.messages]
        assert logged == ["Redis is away", "Redis is back."]
        events.close()
        late.close()
        wait_until(lambda: not copiers())


def test_a_publish_works_at_once_when_redis_has_been_restarted(
    own_redis, use, channel
):
    use(own_redis.url)
    publish_all(channel, "a")
    own_redis.stop(signal.SIGKILL)
    own_redis.start()
    publish_all(channel, "b")
    assert own_redis.client().xlen(f"sse:{channel}") == 2


def test_who_subscribes_while_redis_is_away_gets_what_comes_then(
    line, channel, read, elsewhere
):
    (id,) = elsewhere("a")
    line.cut()
    resuming, new = read(id), read()
    for events in (resuming, new):
        assert [next(events) for _ in range(2)] == [KEEP_ALIVE] * 2
    line.mend()
    assert told(new, 1) == ["begin"]
    elsewhere("b")
    assert told(resuming, 1) == told(new, 1) == ["b"]


def test_events_that_redis_gave_up_during_a_cut_are_a_gap(
    line, channel, read, elsewhere
):
    events = read()
    elsewhere("a", "b")
    assert told(events, 3) == ["begin", "a", "b"]
    line.cut()
    elsewhere("0", "1", "2", "3", "4", max_events=2)
    line.mend()
    assert told(events, 3) == ["reset", "3", "4"]


def test_a_cut_is_no_gap_when_redis_still_has_the_next_event(
    line, channel, read, elsewhere
):
    events = read()
    elsewhere("a")
    assert told(events, 2) == ["begin", "a"]
    line.cut()
    elsewhere("b", "c", max_events=2)
    line.mend()
    assert told(events, 2) == ["b", "c"]


@pytest.mark.usefixtures("_impatient")
def test_a_redis_that_has_lost_everything_is_a_gap(
    own_redis, use, channel, read
):
    use(own_redis.url)
    publish_all(channel, "a")
    events = read(BEGIN, keep_alive_seconds=10)
    (event,) = take(events, 1)
    own_redis.client().flushall()
    assert told(events, 1) == ["reset"]
    publish_all(channel, "b")
    assert told(events, 1) == ["b"]
    assert told(read(event.id), 2) == ["reset", "b"]


def test_who_comes_back_to_a_redis_that_lost_everything_is_told_at_once(
    own_redis, use, channel, read
):
    use(own_redis.url)
    (id,) = publish_all(channel, "a")
    own_redis.client().flushall()
    events = read(id)
    assert told(events, 1) == ["reset"]
    publish_all(channel, "b")
    assert told(events, 1) == ["b"]


@pytest.mark.usefixtures("_impatient")
def test_a_redis_that_has_lost_the_newest_events_is_a_gap(
    redis_server, use, channel, read
):
    """As after a restart, if it was not told to write all at once."""
    use(redis_server.url)
    _, lost = publish_all(channel, "a", "lost")
    events = read(BEGIN)
    assert told(events, 2) == ["a", "lost"]
    redis_server.client().xdel(f"sse:{channel}", lost)
    assert told(events, 2) == ["reset", "a"]
    publish_all(channel, "b")
    assert told(events, 1) == ["b"]
    assert told(read(lost), 3) == ["reset", "a", "b"]


def test_a_reset_is_followed_by_all_that_is_held(
    redis_server, use, channel, read
):
    use(redis_server.url)
    _, lost = publish_all(channel, "a", "lost")
    events = read(BEGIN)
    assert told(events, 2) == ["a", "lost"]
    redis_server.client().xdel(f"sse:{channel}", lost)
    publish_all(channel, "b")
    assert told(events, 3) == ["reset", "a", "b"]


@pytest.mark.usefixtures("_impatient")
def test_a_redis_whose_ids_begin_again_lower_is_a_gap(
    redis_server, use, channel, read
):
    """As when another machine takes over, whose clock is behind."""
    use(redis_server.url)
    client = redis_server.client()
    publish_all(channel, "a", "b")
    events = read(BEGIN)
    assert told(events, 2) == ["a", "b"]
    client.delete(f"sse:{channel}")
    fields = {"lines": b"data: c\n\n", "previous": BEGIN, "max_events": 9}
    client.xadd(f"sse:{channel}", fields, id="1-1")
    assert told(events, 2) == ["reset", "c"]
    publish_all(channel, "d")
    assert told(events, 1) == ["d"]


@pytest.mark.parametrize("outage", [cut, frozen])
def test_who_comes_from_a_machine_that_is_ahead_gets_nothing_twice(
    outage, line, redis_server, channel, read, elsewhere
):
    waiting = read(BEGIN)
    elsewhere("a")
    assert told(waiting, 1) == ["a"]
    with outage(redis_server, line):
        (ahead,) = elsewhere("b")
        events = read(ahead)
        assert next(events) is KEEP_ALIVE
    elsewhere("c")
    assert told(events, 1) == ["c"]
    assert told(waiting, 2) == ["b", "c"]


def test_a_publish_is_not_tried_twice(line, channel, elsewhere, redis_server):
    publish_all(channel, "a")
    line.loses_next_answer = True
    with pytest.raises(Unavailable):
        publish(channel, Event("b"))
    assert not line.loses_next_answer
    assert redis_server.client().xlen(f"sse:{channel}") == 2
    publish_all(channel, "c")
    assert redis_server.client().xlen(f"sse:{channel}") == 3


def publish_one(channel) -> str:
    return publish(channel, Event("a"))


@pytest.mark.parametrize(
    ("ask", "outage"),
    [(publish_one, frozen), (publish_one, cut), (newest, cut), (forget, cut)],
)
def test_says_that_redis_is_away(ask, outage, line, redis_server, channel):
    ask(channel)
    begin = time.monotonic()
    with outage(redis_server, line), pytest.raises(Unavailable):
        ask(channel)
    assert time.monotonic() - begin < 3


def test_says_so_when_redis_refuses(own_redis, use, channel):
    use(own_redis.url)
    own_redis.client().config_set("maxmemory", "1")
    with pytest.raises(Unavailable):
        publish(channel, Event("a"))


def test_tries_again_ever_less_often_but_for_days(
    own_redis, use, channel, read, monkeypatch
):
    pauses = []
    watch = SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    use(own_redis.url)
    own_redis.stop()
    monkeypatch.setattr(broker, "LOAD_SECONDS", 0.01)
    monkeypatch.setattr(broker, "time", watch)
    events = read()
    wait_until(lambda: len(pauses) > 1100 or not copiers(), 20)
    own_redis.start()
    assert told(events, 1) == ["begin"]
    publish_all(channel, "a")
    assert told(events, 1) == ["a"]
    for number, pause in enumerate(pauses, 1):
        longest = min(0.1 * 2 ** min(number - 1, 10), 5)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) > 1000
    pauses.clear()
    own_redis.stop()
    wait_until(lambda: pauses)
    assert pauses[0] <= 0.1


def connections(server: RedisServer) -> list[dict]:
    gc.collect()  # closes those of the tests that are no longer in use
    with closing(server.client()) as asking:
        return server.clients(asking)


def test_all_readers_share_one_thread_and_one_connection(
    own_redis, use, channel
):
    use(own_redis.url)
    with ExitStack() as opened:
        for number in range(50):
            events = subscribe(f"{channel}{number % 5}", BEGIN, 0.01)
            opened.enter_context(closing(events))
        wait_until(lambda: len(connections(own_redis)) == 1)
        assert len(copiers()) == 1
    wait_until(lambda: not copiers())


def test_readers_that_come_and_go_take_the_same_connection(
    own_redis, use, channel
):
    use(own_redis.url)
    for _ in range(5):
        with closing(subscribe(channel)) as events:
            assert told(events, 1) == ["begin"]
        wait_until(lambda: not copiers())
    wait_until(lambda: len(connections(own_redis)) == 1)


class Walker:
    """A reader that goes from machine to machine, and what it must get.

    Every event that was published after the one it had last, in order and
    once; or a reset that names one it has not had, and all from there on.
    """

    def __init__(self, ids: list[str]):
        self.ids = ids
        self.number = None
        self.events = iter(())

    def connect(self, channel, last_event_id) -> None:
        self.close()
        self.events = subscribe(channel, last_event_id, 0.003)
        if last_event_id is None:
            self.number = None

    def close(self) -> None:
        if hasattr(self.events, "close"):
            self.events.close()

    def read(self, count: int) -> None:
        """Take some events, or those that there are."""
        for _ in range(count):
            event = next(self.events, KEEP_ALIVE)
            if event is KEEP_ALIVE:
                return
            self.check(event)

    def check(self, event: Event) -> None:
        number = self.ids.index(event.id)
        match event.event:
            case "begin":
                assert self.number is None
            case "reset":
                assert number > self.number
            case _:
                assert number == self.number + 1
        self.number = number

    def has_all(self) -> bool:
        self.read(1)
        return self.number == len(self.ids) - 1


@pytest.mark.usefixtures("_hasty_threads")
def test_a_log_that_moves_on_while_it_is_read_loses_nothing_in_silence(
    backend, channel, read
):
    ids = [BEGIN]
    readers = [read() for _ in range(4)]

    def read_all(events) -> list[Event]:
        received = take(events, 1)
        while received[-1].data != "last":
            received += take(events, 1)
        return received

    with ThreadPoolExecutor(len(readers)) as pool:
        jobs = [pool.submit(read_all, events) for events in readers]
        for _ in range(500):
            ids += publish_all(channel, "x", max_events=3)
        ids += publish_all(channel, "last")
        for job in jobs:
            walker = Walker(ids)
            for event in job.result():
                walker.check(event)
            assert walker.number == len(ids) - 1


def walk(seed, channel, machines, go_to, publish_there) -> None:
    choose = random.Random(seed)
    ids = [BEGIN]
    walkers = [Walker(ids) for _ in range(4)]

    def step():
        walker = choose.choice(walkers)
        match choose.choices(["publish", "read", "move", "line"], [6, 6, 3, 1]):
            case ["publish"]:
                ids.append(publish_there(choose.choice([1, 2, 4, 8])))
            case ["read"]:
                walker.read(choose.randint(1, 6))
            case ["line"] if machines:
                machine = choose.choice(machines)
                machine.mend() if machine.is_cut else machine.cut()
            case ["move"]:
                if machines:
                    go_to(choose.choice(machines).url)
                number = walker.number
                is_new = number is None or choose.random() < 0.1
                walker.connect(channel, None if is_new else ids[number])

    with ExitStack() as opened:
        for walker in walkers:
            opened.callback(walker.close)
            walker.connect(channel, None)
        for _ in range(250):
            step()
        for machine in machines:
            machine.mend()
        for walker in walkers:
            wait_until(walker.has_all, 5)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_nothing_is_lost_in_silence_in_memory(seed, channel):
    def publish_there(max_events):
        return publish(channel, Event("x"), max_events=max_events)

    walk(seed, channel, [], None, publish_there)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_nothing_is_lost_in_silence_between_machines(
    seed, channel, lines, line, use, elsewhere, monkeypatch
):
    monkeypatch.setattr(broker, "LOAD_SECONDS", 0.02)

    def publish_there(max_events):
        return elsewhere("x", max_events=max_events)[0]

    walk(seed, channel, lines, use, publish_there)


# Settings, and the servers.

WRONG = (
    "REDIS_URL must be a redis, rediss or unix URL without a query, "
    "such as redis://localhost:6379/0."
)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost:6379",
        "redis://",
        "redis:///0",
        "redis://two words",
        "redis://localhost:0",
        "redis://localhost:99999",
        "redis://localhost:port",
        "redis://localhost/name",
        "redis://localhost/0?timeout=1",
        "redis://localhost/0#a",
        "redis://[::1",
        "unix://",
        "unix://redis.sock",
        "REDIS://localhost",
        " redis://localhost",
        "unix:/redis.sock",
        f"redis://{'a' * 64}.example",
        " ",
    ],
)
def test_a_redis_url_that_redis_py_cannot_use_is_refused(url):
    with pytest.raises(SystemExit) as stop:
        read_settings({"REDIS_URL": url})
    assert str(stop.value) == WRONG


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost/",
        "redis://localhost:6379/0",
        "redis://:word@10.0.0.1:1/15",
        "redis://user:word@[::1]:65535/0",
        "rediss://redis.example:6380",
        "unix:///run/redis.sock",
    ],
)
def test_a_redis_url_that_redis_py_can_use_is_taken(url, channel):
    read_settings({"REDIS_URL": url})
    broker._redis_broker(url)


def test_a_wrong_redis_url_stops_the_start_with_one_line(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "http://:secret@localhost:6379")
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 1
    assert ended.stdout + ended.stderr == WRONG + "\n"


def test_a_start_while_redis_is_away_says_so_in_one_line(start):
    url = f"redis://127.0.0.1:{free_port()}/0"
    server = start("flask run", REDIS_URL=url)
    (line,) = server.logged("Redis")
    assert line.startswith("Redis is away: ")


def workers_of(server) -> list[int]:
    lines = server.logged(r"Booting worker with pid: \d+")
    return [int(line.rpartition(" ")[2]) for line in lines]


def test_gunicorn_starts_one_worker_without_redis_and_says_so(start):
    server = start("gunicorn")
    assert server.logged(
        r"Workers: 1 \(more would not share what is published: set REDIS_URL "
        r"for that\)$"
    )
    assert len(workers_of(server)) == 1


def test_gunicorn_starts_a_worker_for_each_core_with_redis_and_says_so(
    start, redis_server
):
    server = start("gunicorn", REDIS_URL=redis_server.url)
    assert server.logged(
        rf"Workers: {os.cpu_count()} \(one for each core, because they share "
        r"a Redis\)$"
    )
    wait_until(lambda: len(workers_of(server)) == os.cpu_count())


STREAM = "/stream/notifications"


def notify(server, text) -> tuple[int, dict]:
    body = json.dumps({"text": text, "level": "info"}).encode()
    headers = {"Content_Type": "application/json"}
    with server.post("/notifications", body, **headers) as client:
        return client.status, json.loads(client.read())


def text_of(event: Event) -> str:
    return json.loads(event.data)["text"]


def test_streams_outlive_an_outage_and_a_publish_answers_503(
    start, command, own_redis
):
    environ = {"FLASK_KEEP_ALIVE_SECONDS": "0.1", "REDIS_URL": own_redis.url}
    server = start(command, **environ)
    with server.get(STREAM) as client, server.get(STREAM) as other:
        chunks = client.chunks()
        events, others = parse_events(chunks), parse_events(other.chunks())
        assert next(events).event == next(others).event == "begin"
        assert notify(server, "before")[0] == 201
        assert text_of(next(events)) == text_of(next(others)) == "before"
        own_redis.stop(signal.SIGKILL)
        sentence = "Redis is not available. Try again in a few seconds."
        assert notify(server, "x") == (503, {"error": sentence})
        assert [next(chunks) for _ in range(5)] == [KEEP_ALIVE] * 5
        own_redis.start()
        assert notify(server, "after")[0] == 201
        assert text_of(next(events)) == text_of(next(others)) == "after"
    assert not server.logged("Traceback")


def test_500_readers_of_one_process_need_one_connection(start, own_redis):
    server = start("gunicorn -w 1", REDIS_URL=own_redis.url)
    assert server.logged(r"Workers: 1 \(")
    with ExitStack() as opened:
        readers = [opened.enter_context(server.get(STREAM)) for _ in range(500)]
        streams = [parse_events(reader.chunks()) for reader in readers]
        assert {next(events).event for events in streams} == {"begin"}
        assert len(connections(own_redis)) == 1
        status, answer = notify(server, "Hi")
        assert status == 201
        assert {next(events).id for events in streams} == {answer["id"]}
        assert len(connections(own_redis)) == 2  # one has published


def resident_bytes(pid: int) -> int:
    statm = Path(f"/proc/{pid}/statm")
    if not statm.exists():
        lack("needs a Linux that tells how much memory a process has")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_reader_that_stalls_costs_little_and_slows_nobody(
    start, own_redis, use
):
    use(own_redis.url)
    count, size, held = 200, 200_000, 5
    server = start("gunicorn -w 1", REDIS_URL=own_redis.url)
    with server.get(STREAM) as stalled, server.get(STREAM) as client:
        assert stalled.status == 200
        events = parse_events(client.chunks())
        assert next(events).event == "begin"
        before = resident_bytes(workers_of(server)[0])
        ids = [BEGIN]
        for _ in range(count):
            ids += publish_all("notifications", "x" * size, max_events=held)
            assert next(events).id == ids[-1]
        grown = resident_bytes(workers_of(server)[0]) - before
        assert grown < count * size / 2
        late = []
        for event in parse_events(stalled.chunks()):
            late.append(event)
            if event.id == ids[-1]:
                break
    (gap,) = (n for n, event in enumerate(late) if event.event == "reset")
    assert [event.id for event in late[:gap]] == ids[:gap]
    assert [event.id for event in late[gap + 1 :]] == ids[-held:]


class Reader(threading.Thread):
    """Reads notifications, now here, now there, and goes on where it was."""

    def __init__(self, ports: list[int], seed: int):
        super().__init__(daemon=True)
        self.ports = ports
        self.choose = random.Random(seed)
        self.events: list[Event] = []
        self.connections = 0
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        last_event_id = None
        while not self.done.is_set():
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            port = self.choose.choice(self.ports)
            with (
                suppress(OSError, http.client.HTTPException),
                Client(port, "GET", STREAM, headers=headers) as client,
            ):
                last_event_id = self.read(client) or last_event_id

    def read(self, client: Client) -> str | None:
        """Read for a while; return the last event ID."""
        assert client.status == 200
        self.connections += 1
        id, rest = None, self.choose.randint(1, 150)
        with suppress(OSError, http.client.HTTPException):
            chunks = takewhile(
                lambda _: not self.done.is_set(), client.chunks()
            )
            for event in parse_events(chunks):
                self.events.append(event)
                id, rest = event.id or id, rest - 1
                if not rest:
                    break
        return id


def held_by(server: RedisServer) -> list[tuple[str, str]]:
    """Return the id and the text of each notification that Redis holds."""
    held = []
    for id, fields in server.client().xrange("sse:notifications"):
        (event,) = parse_events([fields[b"lines"]])
        held.append((id.decode(), text_of(event)))
    return held


def count_held(server: RedisServer) -> int:
    """Return how many notifications Redis holds, as soon as it answers."""
    while True:
        with suppress(redis.RedisError), closing(server.client()) as client:
            return client.xlen("sse:notifications")


def notify_all(servers, held_at: RedisServer, count: int, seed: int) -> None:
    """Publish the texts "1", "2" ... on either of the servers.

    Only Redis knows what became of a publish whose answer did not come, or was
    that Redis is away: no answer comes after its connection has ended.
    """
    choose = random.Random(seed)
    number = 1
    while number <= count:
        try:
            status, _ = notify(choose.choice(servers), str(number))
        except (OSError, http.client.HTTPException):
            status = None
        number = number + 1 if status == 201 else count_held(held_at) + 1


def kill_and_restart_an_instance(instances, own_redis, start_one) -> None:
    victim = instances[0]
    for pid in (victim.process.pid, *workers_of(victim)):
        os.kill(pid, signal.SIGKILL)
    victim.process.wait(10)
    start_one(port=victim.port)


def kill_and_restart_redis(instances, own_redis, start_one) -> None:
    own_redis.stop(signal.SIGKILL)
    own_redis.start()


@pytest.mark.parametrize(
    "disturb", [kill_and_restart_an_instance, kill_and_restart_redis]
)
def test_every_reader_has_all_1000_events_once_in_order(
    disturb, start, own_redis
):
    count = broker.MAX_EVENTS
    environ = {"REDIS_URL": own_redis.url, "FLASK_KEEP_ALIVE_SECONDS": "0.2"}
    start_one = partial(start, "gunicorn", **environ)
    instances = [start_one(), start_one()]
    ports = [instance.port for instance in instances]
    readers = [Reader(ports, seed) for seed in range(6)]
    try:
        wait_until(lambda: all(reader.events for reader in readers))
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(notify_all, instances, own_redis, count, 1)
            wait_until(lambda: count_held(own_redis) > count * 0.4, 30)
            disturb(instances, own_redis, start_one)
            job.result()
        held = held_by(own_redis)
        assert [text for _, text in held] == [
            str(number) for number in range(1, count + 1)
        ]
        last_id = held[-1][0]
        wait_until(
            lambda: all(reader.events[-1].id == last_id for reader in readers)
        )
    finally:
        for reader in readers:
            reader.done.set()
        for reader in readers:
            reader.join()
    for reader in readers:
        assert reader.connections > 3
        events = [one for one in reader.events if one.event != "begin"]
        assert [one.event for one in events] == ["message"] * count
        assert [(one.id, text_of(one)) for one in events] == held
