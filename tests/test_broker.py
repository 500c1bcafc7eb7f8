"""Pub/sub with replay, in memory and in Redis."""

import gc
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from types import SimpleNamespace

import pytest
from channels import (
    Walker,
    channel,
    fresh_broker,
    hasty_threads,
    publish_all,
    pulses,
    read,
    take,
    take_texts,
    use,
    wait_for_the_next_millisecond,
    walk,
)
from conftest import PATIENCE_SECONDS, wait_until

import broker
import sse
from broker import (
    BEGIN,
    Conflict,
    Log,
    Node,
    PublishedEvent,
    Unavailable,
    forget,
    newest,
    publish,
    subscribe,
)
from event_source import parse_events
from sse import Event


@pytest.fixture(params=["memory", "redis"])
def backend(request, use) -> str:
    """Run the test against both brokers, which have the same interface."""
    if request.param == "redis":
        use(request.getfixturevalue("redis_server").url)
    return request.param


def parts(id: str) -> list[int]:
    return [int(part) for part in id.split("-")]


def test_every_client_gets_an_event_that_is_encoded_once(
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


def test_starts_with_the_next_event(backend, channel, read):
    (id,) = publish_all(channel, "before")
    events = read()
    publish_all(channel, "after")
    begin, event = take(events, 2)
    assert begin.encode() == f"id: {id}\nevent: begin\ndata: {id}\n\n".encode()
    assert event.data == "after"


def test_resumes_after_last_event_id(backend, channel, read):
    texts = ["a", "b", "c", "d"]
    ids = [BEGIN, *publish_all(channel, *texts)]
    open_readers = [read(id) for id in ids]
    publish_all(channel, "e")
    for number, events in enumerate(open_readers):
        assert take_texts(events, 5 - number) == [*texts[number:], "e"]


@pytest.mark.parametrize(
    "last_event_id", ["", "x", "1-1", "0-1", "99999999999999-0", "١-١"]
)
def test_an_unknown_id_is_a_gap(backend, channel, read, last_event_id):
    publish_all(channel, "a", "b")
    events = read(last_event_id)
    reset = take(events, 1)[0]
    assert reset.encode() == (
        b"id: 0-0\nevent: reset\ndata: Earlier events have been discarded.\n\n"
    )
    assert take_texts(events, 2) == ["a", "b"]


def test_a_channel_keeps_max_events_and_reports_what_it_discarded(
    backend, channel, read
):
    ids = publish_all(channel, "0", "1", "2")
    ids += publish_all(channel, "3", "4", max_events=2)
    (reset,) = take(read(BEGIN), 1)
    assert reset.id == ids[2]
    for last_event_id, expected in [
        (BEGIN, ["reset", "3", "4"]),
        (ids[1], ["reset", "3", "4"]),
        (ids[2], ["3", "4"]),
        (ids[3], ["4"]),
    ]:
        assert take_texts(read(last_event_id), len(expected)) == expected


def test_a_slow_client_uses_a_bounded_log_and_delays_nobody(
    backend, channel, read
):
    slow, fast = read(), read()
    publish_all(channel, "first", max_events=3)
    for events in (slow, fast):
        assert take_texts(events, 2) == ["begin", "first"]
    for number in range(20):
        publish_all(channel, str(number), max_events=3)
        assert take_texts(fast, 1) == [str(number)]
        assert len(broker.BROKER._channels.logs[channel].nodes) <= 4
    assert take_texts(slow, 4) == ["reset", "17", "18", "19"]


def test_after_publishes_only_if_that_event_is_the_newest(backend, channel):
    def publish_after(id):
        return publish(channel, Event("x"), after=id)

    first = publish_after(BEGIN)
    second = publish_after(first)
    for stale in (BEGIN, first, "", "x", "*", f"{second} "):
        with pytest.raises(Conflict):
            publish_after(stale)
    assert newest(channel).id == second


@pytest.mark.usefixtures("hasty_threads")
def test_one_of_many_concurrent_publishers_wins(backend, channel):
    threads = 8
    barrier = threading.Barrier(threads)

    def race(after):
        barrier.wait(PATIENCE_SECONDS)
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


def test_ids_are_two_numbers_and_increase(backend, channel):
    ids = publish_all(channel, *map(str, range(20)))
    assert all(re.fullmatch(r"\d+-\d+", id) for id in ids)
    assert all(parts(one) < parts(next) for one, next in pairwise(ids))
    assert parts(ids[0]) > parts(BEGIN)


def test_ids_increase_when_the_clock_is_set_back(channel, monkeypatch):
    times = iter([2_000_000, 1_000_000, 2_000_000, 3_000_000])
    monkeypatch.setattr(broker.time, "time_ns", lambda: next(times))
    ids = publish_all(channel, "a", "b", "c", "d")
    assert ids == ["2-0", "2-1", "2-2", "3-0"]


def test_forget_never_reuses_an_id(backend, channel):
    ids = []
    for _ in range(9):
        ids += publish_all(channel, "a", "b")
        forget(channel)
    assert all(parts(one) < parts(next) for one, next in pairwise(ids))


def test_newest_returns_the_newest_event(backend, channel):
    assert newest(channel) is None
    _, id = publish_all(channel, "a", "b")
    assert newest(channel).encode() == f"id: {id}\ndata: b\n\n".encode()
    forget(channel)
    assert newest(channel) is None


def test_forgotten_events_are_a_gap(backend, channel, read):
    events = read()
    (id,) = publish_all(channel, "a")
    assert take_texts(events, 2) == ["begin", "a"]
    forget(channel)
    wait_for_the_next_millisecond()
    publish(channel, Event("b"), after=BEGIN)
    assert take_texts(events, 2) == ["reset", "b"]
    assert take_texts(read(id), 2) == ["reset", "b"]
    assert take_texts(read(BEGIN), 1) == ["b"]


MAX = broker.MAX_EVENT_BYTES


@pytest.mark.parametrize(
    ("event", "error", "sentence"),
    [
        (Event("a", id=""), ValueError, "The broker assigns the id, got ''."),
        (Event("a" * MAX), ValueError, f"The event is over {MAX} bytes long."),
        (Event({1}), TypeError, "Object of type set is not JSON serializable"),
    ],
    ids=["has an id", "too large", "no JSON"],
)
def test_rejects_an_event_that_it_cannot_send(
    backend, channel, event, error, sentence
):
    with pytest.raises(error) as refused:
        publish(channel, event)
    assert str(refused.value) == sentence
    assert newest(channel) is None


def test_sends_the_largest_event_that_clients_accept(backend, channel, read):
    largest = "a" * (broker.MAX_EVENT_BYTES - 100)
    publish_all(channel, largest)
    (event,) = take(read(BEGIN), 1)
    assert event.data == largest
    (parsed,) = parse_events([event.encode()])
    assert parsed.data == largest


def test_silence_is_none_and_is_not_replayed(backend, channel, read):
    events = read()
    assert take_texts(events, 1) == ["begin"]
    assert [next(events) for _ in range(3)] == [None] * 3
    # Otherwise, the client wouldn't wait, and would get None constantly.
    assert not broker.BROKER._channels.logs[channel].tail.arrived.is_set()
    publish_all(channel, "a", "b")
    assert take_texts(events, 2) == ["a", "b"]
    late = read(BEGIN)
    assert [next(late).data, next(late).data] == ["a", "b"]


def test_one_pulse_ends_the_silence_of_all_clients_and_ends_with_them(
    backend, channel
):
    streams = [subscribe(f"{channel}{n % 2}") for n in range(6)]
    with ThreadPoolExecutor(len(streams)) as threads:

        def silences(events) -> int:
            assert take_texts(events, 1) == ["begin"]
            return [next(events) for _ in range(3)].count(None)

        assert set(threads.map(silences, streams)) == {3}
        assert len(pulses()) == 1
    for events in streams:
        events.close()
    wait_until(lambda: not pulses())


@pytest.mark.usefixtures("hasty_threads")
def test_a_client_that_subscribes_while_the_pulse_ends_gets_a_new_one(
    channel, monkeypatch
):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0)
    alarm = threading.Timer(60, publish, [channel, Event("no pulse")])
    alarm.start()  # so that the test does not wait forever
    with closing(SimpleNamespace(close=alarm.cancel)):
        for _ in range(30):
            with closing(subscribe(channel)) as events:
                assert take_texts(events, 1) == ["begin"]
                assert next(events) is None


A = PublishedEvent("1-0", Event("a"))


def test_new_and_forgotten_events_wake_waiting_clients():
    log = Log()
    for change in (lambda: log.append(A, 9), log.start_over):
        arrived = log.tail.arrived
        change()
        assert arrived.is_set()


def test_an_event_that_ends_a_silence_arrives_without_none():
    """The pulse may arrive late, after an event has been appended."""
    log, woken = Log(), []
    end = log.tail

    def wait() -> bool:
        log.append(A, 9)
        return True

    end.arrived = SimpleNamespace(wait=wait, set=lambda: woken.append(end))
    assert next(log.read(BEGIN, BEGIN)) is A
    assert woken == [end]


def test_a_pulse_during_a_publish_delays_no_client():
    """The pulse replaces the flag that a client is about to wait for."""
    log = Log()

    class Tail(Node):
        @property
        def next(self):
            found = self.following
            if found is None:
                log.append(A, 9)
                self.arrived = SimpleNamespace(wait=lambda: pytest.fail("late"))
            return found

        @next.setter
        def next(self, node):
            self.following = node

    log.tail = log.nodes[BEGIN] = Tail(BEGIN)
    assert next(log.read(BEGIN, BEGIN)) is A


def test_a_channel_is_kept_for_keep_seconds_after_its_last_client(
    channel, read, monkeypatch
):
    clock = SimpleNamespace(now=0, time_ns=time.time_ns, sleep=time.sleep)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(broker, "time", clock)
    (id,) = publish_all(channel, "a")
    with closing(subscribe(channel)):
        clock.now += broker.KEEP_SECONDS + 1
        publish_all("another", "x")
        assert newest(channel).data == "a"
    clock.now += broker.KEEP_SECONDS - 1
    publish_all("another", "x")
    assert newest(channel).data == "a"
    clock.now += 2
    publish_all("another", "y")
    assert newest(channel) is None
    publish_all(channel, "b")
    assert take_texts(read(id), 2) == ["reset", "b"]


def test_a_client_may_resume_while_events_are_appended():
    """A lookup by id is safe during an append. A search through ids is not."""
    log = Log()
    log.append(A, 9)

    class Id(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            if len(log.nodes) < 4:
                id = f"{len(log.nodes)}-1"
                log.append(PublishedEvent(id, Event("b")), 9)
            return str.__eq__(self, other)

    assert next(log.read(Id("1-0"), BEGIN)).data == "b"


def test_a_disconnect_leaves_nothing_behind(backend, channel):
    logs = broker.BROKER._channels.logs
    subscribe(channel).close()  # before its first event
    assert logs == {}
    subscribe(channel)
    gc.collect()
    assert logs == {}
    with closing(subscribe(channel, BEGIN)) as events:
        assert next(events) is None
    assert logs == {}
    with closing(subscribe(channel)) as events:
        publish_all(channel, "a")
        assert take_texts(events, 2) == ["begin", "a"]
    forget(channel)
    assert logs == {}


def test_a_client_may_be_garbage_collected_at_any_time(channel):
    """Closing it needs a lock, which the collecting thread may hold."""
    cycle = [subscribe(channel)]
    cycle.append(cycle)
    del cycle

    def collect():
        with broker.BROKER._channels.lock:
            gc.collect()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    collecting.join(PATIENCE_SECONDS)
    assert broker.BROKER._channels.logs == {}


def test_a_thread_that_cannot_start_fails_only_one_client(
    backend, channel, read, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_to_start)
        with pytest.raises(RuntimeError):
            read()
    assert broker.BROKER._channels.logs == {}
    assert take_texts(read(), 1) == ["begin"]
    assert len(pulses()) == 1


def refuse_to_start(thread):
    raise RuntimeError("can't start new thread")


def test_errors_are_http_responses():
    conflict, unavailable = Conflict(), Unavailable(retry_after=5)
    assert (conflict.code, conflict.description) == (
        412,
        "Somebody else was faster: the channel has a newer event.",
    )
    assert (unavailable.code, unavailable.description) == (
        503,
        "Redis is not available. Try again in a few seconds.",
    )
    assert ("Retry-After", "5") in unavailable.get_headers()


@pytest.mark.usefixtures("hasty_threads")
def test_clients_of_a_short_log_get_every_event_or_reset(
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
        for _ in range(100):
            ids += publish_all(channel, "x", max_events=3)
        ids += publish_all(channel, "last")
        for job in jobs:
            walker = Walker(ids)
            for event in job.result():
                walker.check(event)
            assert walker.number == len(ids) - 1


@pytest.mark.parametrize("seed", range(2))
def test_random_clients_in_memory_get_every_event_or_reset(seed, channel):
    def publish_there(max_events):
        return publish(channel, Event("x"), max_events=max_events)

    walk(seed, channel, [], None, publish_there)
