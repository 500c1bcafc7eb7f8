"""What the tests of both brokers share: their fixtures and helpers."""

import random
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import cache

import pytest
from conftest import wait_until

import broker
import redis_broker
import sse
from broker import BEGIN, MemoryBroker, publish, subscribe
from redis_broker import RedisBroker
from sse import Event


def copiers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "(_copy)" in one.name]


def pulses() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "(_pulse)" in one.name]


@pytest.fixture(autouse=True)
def fresh_broker(app, monkeypatch) -> Iterator[None]:
    """As in a process that has just started. No thread is left at the end."""
    monkeypatch.setattr(redis_broker, "BLOCK_MS", 10)  # to end soon
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.02)
    monkeypatch.setattr(broker, "BROKER", MemoryBroker())
    yield
    wait_until(lambda: not copiers() and not pulses())


@pytest.fixture
def use(monkeypatch):
    """Return what plugs in the broker of a Redis, one for each URL."""
    of_url = cache(RedisBroker)
    return lambda url: monkeypatch.setattr(broker, "BROKER", of_url(url))


@pytest.fixture
def channel() -> str:
    return secrets.token_hex(4)


@pytest.fixture
def read(channel):
    """Subscribe to the channel; what is open ends with the test."""
    with ExitStack() as opened:

        def read(last_event_id=None):
            events = subscribe(channel, last_event_id)
            return opened.enter_context(closing(events))

        yield read


def take(events, count, seconds=30) -> list[Event]:
    """Return the next events, without the silence between them."""
    taken, deadline = [], time.monotonic() + seconds
    while len(taken) < count:
        event = next(events)
        if event is not None:
            taken.append(event)
        assert time.monotonic() < deadline, f"only {taken} came"
    return taken


def told(events, count) -> list[str]:
    """Return the data of the next events; of an event with a type, the type."""
    return [
        event.data if event.event is None else event.event
        for event in take(events, count)
    ]


def publish_all(channel, *texts, **options) -> list[str]:
    return [publish(channel, Event(text), **options) for text in texts]


def let_the_clock_move() -> None:
    """Two events get ids of different times if this is between them."""
    now = time.time_ns()
    wait_until(lambda: time.time_ns() > now + 2_000_000)


@pytest.fixture
def hasty_threads():
    """Interrupt threads wherever they are, and not now and then."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


class Walker:
    """A client that moves from machine to machine, and what it must get.

    Every event that was published after the one it had last, in order and
    once; or a reset that names one it has not had, and all from there on.
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
        """Take some events, or those that there are."""
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
        for _ in range(250):
            step()
        for machine in machines:
            machine.mend()
        for walker in walkers:
            wait_until(walker.has_all)
