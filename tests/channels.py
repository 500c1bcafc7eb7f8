"""Fixtures and helpers that the tests of both brokers share."""

import random
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import cache

import pytest
from conftest import PATIENCE_SECONDS, wait_until

import broker
import redis_broker
import sse
from broker import BEGIN, MemoryBroker, publish, subscribe
from redis_broker import RedisBroker
from sse import Event

EARLIER: set[threading.Thread] = set()
"""Threads that were already running when the test started."""


def threads(target: str) -> list[threading.Thread]:
    """Return the threads of this test that run the target."""
    running = set(threading.enumerate()) - EARLIER
    return [one for one in running if f"({target})" in one.name]


def copiers() -> list[threading.Thread]:
    return threads("_copy")


def pulses() -> list[threading.Thread]:
    return threads("_pulse")


@pytest.fixture(autouse=True)
def fresh_broker(monkeypatch) -> Iterator[None]:
    """Start with a new broker. All its threads must end after the test.

    `create_app` plugs in another broker, so create the app first or not at all.
    """
    EARLIER.clear()
    EARLIER.update(threading.enumerate())
    monkeypatch.setattr(redis_broker, "BLOCK_MS", 10)  # threads end soon
    monkeypatch.setattr(redis_broker, "LOAD_SECONDS", 20)
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.01)
    monkeypatch.setattr(broker, "BROKER", MemoryBroker())
    yield
    wait_until(lambda: not copiers() and not pulses())


@pytest.fixture
def use(monkeypatch):
    """Return a function that plugs in a RedisBroker, one for each URL."""
    of_url = cache(RedisBroker)
    return lambda url: monkeypatch.setattr(broker, "BROKER", of_url(url))


@pytest.fixture
def channel() -> str:
    return secrets.token_hex(4)


@pytest.fixture
def read(channel):
    """Return a function that subscribes until the end of the test."""
    with ExitStack() as opened:

        def read(last_event_id=None):
            events = subscribe(channel, last_event_id)
            return opened.enter_context(closing(events))

        yield read


def take(events, count) -> list[Event]:
    """Return the next `count` events, and skip the silence between them."""
    taken, deadline = [], time.monotonic() + PATIENCE_SECONDS
    while len(taken) < count:
        event = next(events)
        if event is not None:
            taken.append(event)
        assert time.monotonic() < deadline, f"only {taken} arrived"
    return taken


def take_texts(events, count) -> list[str]:
    """Return the type of each next event, or its data if it has no type."""
    return [
        event.data if event.event is None else event.event
        for event in take(events, count)
    ]


def publish_all(channel, *texts, **options) -> list[str]:
    return [publish(channel, Event(text), **options) for text in texts]


def wait_for_the_next_millisecond() -> None:
    """Wait until a new event id would have a later time than the last."""
    now = time.time_ns()
    wait_until(lambda: time.time_ns() > now + 2_000_000)


@pytest.fixture
def hasty_threads():
    """Switch threads at random bytecodes of broker.py.

    Python itself rarely switches between two given bytecodes, and sometimes
    never. Without this fixture, a race would show up once a year.
    """
    choose = random.Random(0)

    def trace(frame, event, argument):
        if frame.f_code.co_filename != broker.__file__:
            return None
        frame.f_trace_opcodes = True
        if choose.random() < 0.05:
            time.sleep(choose.choice([0, 1e-6, 1e-4]))
        return trace

    usual, usual_of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(trace)
    threading.settrace(trace)
    yield
    sys.settrace(usual)
    threading.settrace(usual_of_threads)


class Walker:
    """A client that moves between machines, and checks what it receives.

    It must receive every later event, once and in order. If it misses events,
    it must receive `reset` with the id of one of them, and then all later ones.
    """

    def __init__(self, ids: list[str]):
        self.ids = ids
        self.number = None
        self.events = iter(())

    def connect(self, channel, last_event_id) -> None:
        self.close()
        self.events = subscribe(channel, last_event_id)
        if last_event_id is None:
            self.number = None

    def close(self) -> None:
        if hasattr(self.events, "close"):
            self.events.close()

    def read(self, count: int) -> None:
        """Read up to `count` events. Stop early if the channel is silent."""
        for _ in range(count):
            event = next(self.events, None)
            if event is None:
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
        for _ in range(150):
            step()
        for machine in machines:
            machine.mend()
        for walker in walkers:
            wait_until(walker.has_all)
