"""Work in the background, told in the memory of this process and in Redis."""

import re
import threading
import time
from collections import deque
from contextlib import closing
from itertools import islice, takewhile
from queue import SimpleQueue

import pytest
from conftest import wait_until
from werkzeug.exceptions import NotFound, ServiceUnavailable

import background
import broker
import sse
from broker import BEGIN, Unavailable, publish, subscribe
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event

PLACES = 3
FINISHED = Event("", event="finished")
FAILED = Event({"error": "No luck."}, event="failed")
ENDS = ("finished", "failed")


class Work:
    """Work that says what the test says, when the test says it."""

    begun: list["Work"] = []

    def __init__(self):
        self.interrupted, self.closed = threading.Event(), threading.Event()
        self._items = SimpleQueue()
        self.id = background.start(
            "works", self._events(), interrupt=self.interrupt
        )
        self.begun.append(self)

    def interrupt(self) -> None:
        self.interrupted.set()
        self.say(FAILED)

    def say(self, *items: str | Event | Exception | None) -> None:
        """Let it say a text or an event, raise an exception, or return."""
        for item in items:
            self._items.put(item)

    def _events(self):
        try:
            while (item := self._items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield Event(item) if isinstance(item, str) else item
        finally:
            self.closed.set()


class Reader(threading.Thread):
    """Reads a work to its end, and counts the comments."""

    def __init__(self, response):
        super().__init__(daemon=True)
        self.comments, self.events = 0, []
        self._chunks = response.iter_encoded()
        self.start()

    def run(self):
        for event in parse_events(self._counted()):
            self.events.append(event)

    def _counted(self):
        for chunk in self._chunks:
            self.comments += chunk == b":\n"
            yield chunk

    def result(self):
        self.join(30)
        assert not self.is_alive(), "it waits for ever"
        return told(self.events)


@pytest.fixture(autouse=True)
def _quick_and_few(app, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(background, "PULSE_SECONDS", 0.05)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.05)
    slots = threading.BoundedSemaphore(PLACES)
    monkeypatch.setattr(background, "_slots", slots)
    monkeypatch.setattr(background, "_ended", deque())
    monkeypatch.setattr(background, "_watched", {})
    yield
    end_all()


def end_all() -> None:
    while Work.begun:
        Work.begun.pop().say(FINISHED)
    wait_until(lambda: background._slots._value == PLACES)


@pytest.fixture(params=["memory", "redis"])
def store(request, monkeypatch, app) -> str:
    """Where the channels are."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
        monkeypatch.setattr(broker, "BROKER", RedisBroker(url))
    return request.param


@pytest.fixture
def own_store(monkeypatch, app, own_redis):
    """A Redis that the test may stop and empty."""
    monkeypatch.setattr(broker, "BROKER", RedisBroker(own_redis.url))
    yield own_redis
    if own_redis.process.poll() is not None:
        own_redis.start()
    end_all()


@pytest.fixture
def follow(app):
    def follow(id, last=None, **options):
        headers = {} if last is None else {"Last-Event-ID": last}
        with app.test_request_context(headers=headers):
            return background.follow("works", id, **options)

    return follow


@pytest.fixture
def stop(app):
    def stop(id):
        with app.test_request_context():
            background.stop("works", id)

    return stop


def read(response) -> list[Event]:
    with closing(response):
        return list(parse_events(response.iter_encoded()))


def told(events) -> list[tuple[str, str]]:
    """Return type and data of the events, without how long it was silent."""
    pairs = [(event.event or "message", event.data) for event in events]
    return [pair for pair in pairs if pair[0] != "waiting"]


def held(id: str) -> list[Event]:
    """Return all events of a work that its channel holds."""
    with closing(subscribe(f"works:{id}", BEGIN)) as events:
        return list(takewhile(lambda event: event is not None, events))


def has_ended(id: str) -> bool:
    return broker.newest(f"works:{id}").event in ENDS


def failed(sentence: str) -> tuple[str, str]:
    return ("failed", f'{{"error":"{sentence}"}}')


STARTED = ("started", "")
A, B = ("message", "a"), ("message", "b")
END = ("finished", "")
STOPPED = failed("The job was stopped.")
LOST = failed(background.LOST)
WRONG = failed("The job failed. See the log.")
TOO_LONG = failed("The job published too many events.")


# Who reads


def test_a_reader_gets_exactly_these_bytes(store, follow):
    work = Work()
    work.say("a\nb", FINISHED)
    response = follow(work.id)
    assert response.content_type == "text/event-stream"
    body = re.sub(rb"(?m)^:\n", b"", b"".join(response.iter_encoded()))
    assert re.sub(rb"id: \d+-\d+\n", b"id\n", body) == (
        b"id\nevent: started\ndata: \n\n"
        b"id\ndata: a\ndata: b\n\n"
        b"id\nevent: finished\ndata: \n\n"
    )


def test_a_reader_goes_on_after_its_last_event_id(store, follow):
    work = Work()
    work.say("a", "b", FINISHED)
    wait_until(lambda: has_ended(work.id))
    everything = held(work.id)
    for number, event in enumerate(everything[:-1], start=1):
        rest = read(follow(work.id, event.id))
        assert told(rest) == told(everything[number:])


def test_a_reader_may_begin_with_the_newest_event(store, follow):
    work = Work()
    work.say("a", "b")
    wait_until(lambda: B in told(held(work.id)))
    reader = Reader(follow(work.id, from_newest=True))
    work.say(FINISHED)
    assert reader.result() in ([B, END], [END])  # [END] after it `waits`


def test_who_begins_with_the_newest_gets_what_was_said_before_a_silence(
    store, follow
):
    work = Work()
    work.say("a")
    wait_until(lambda: [e.event for e in held(work.id)][-2:] == ["waiting"] * 2)
    reader = Reader(follow(work.id, from_newest=True))
    wait_until(lambda: reader.events)
    first = reader.events[0]
    assert (first.event, first.data) == ("waiting", "a")
    work.say(FINISHED)
    assert reader.result() == [END]


def test_an_unknown_last_event_id_gets_all_there_is(store, follow):
    work = Work()
    work.say("a", FINISHED)
    (reset, _), *rest = told(read(follow(work.id, "x")))
    assert (reset, rest) == ("reset", [STARTED, A, END])


def test_all_readers_get_the_same(store, follow):
    work = Work()
    readers = [Reader(follow(work.id)) for _ in range(5)]
    work.say("a")
    wait_until(lambda: all(A in told(one.events) for one in readers))
    readers += [Reader(follow(work.id)) for _ in range(5)]
    work.say("b", FINISHED)
    for reader in readers:
        assert reader.result() == [STARTED, A, B, END]


def test_the_work_goes_on_though_nobody_listens(store, follow):
    work = Work()
    work.say("a")
    with closing(follow(work.id)) as response:
        next(parse_events(response.iter_encoded()))
    work.say("b", FINISHED)
    wait_until(lambda: has_ended(work.id))
    assert told(read(follow(work.id))) == [STARTED, A, B, END]


@pytest.mark.parametrize("end", [FINISHED, FAILED])
def test_a_late_reader_gets_the_end_and_then_204(store, follow, end):
    work = Work()
    work.say("a", end)
    wait_until(lambda: has_ended(work.id))
    (event,) = read(follow(work.id, from_newest=True))
    assert told([event]) == told(parse_events([end.encode()]))
    again = follow(work.id, event.id)
    assert (again.status_code, again.get_data()) == (204, b"")


def test_an_unknown_id_is_404(store, follow, stop):
    for ask in follow, stop:
        with pytest.raises(NotFound) as error:
            ask("x")
        sentence = "There is nothing with the id 'x' in works."
        assert error.value.description == sentence


def test_who_was_reading_what_is_gone_is_told_so_and_then_204(store, follow):
    (event,) = read(follow("x", "1700000000000-0"))
    assert (told([event]), event.id) == ([LOST], "gone")
    assert follow("x", event.id).status_code == 204


def test_a_reader_that_leaves_at_once_is_not_kept(store, follow):
    work = Work()
    follow(work.id).close()  # as after HEAD: the stream never starts
    assert f"works:{work.id}" not in {
        channel
        for channel, log in broker.BROKER._channels.logs.items()
        if log.readers
    }


# How it ends


WRONG_WAYS = {
    "an exception": RuntimeError("secret"),
    "no end": None,
    "an event with an id": Event("a", id="1"),
    "an event that is no JSON": Event({1, 2}),
    "an event that is too large": Event("x" * 5 * 1024 * 1024),
    "no event": 5,
}


@pytest.mark.parametrize("way", WRONG_WAYS)
def test_what_goes_wrong_is_logged_and_not_shown(follow, caplog, way):
    work = Work()
    work.say("a", WRONG_WAYS[way])
    assert told(read(follow(work.id))) == [STARTED, A, WRONG]
    (record,) = caplog.records
    assert record.getMessage() == f"works:{work.id} failed"
    assert record.exc_info


def test_nothing_comes_after_the_end(store, follow):
    work = Work()
    work.say(FINISHED, "a", FAILED)
    wait_until(work.closed.is_set)
    assert told(held(work.id)) == [STARTED, END]


def test_work_without_end_is_ended_while_all_of_it_is_held(
    store, follow, monkeypatch
):
    monkeypatch.setattr(background, "MAX_EVENTS", 20)
    work = Work()
    work.say(*["a"] * 30)
    wait_until(work.closed.is_set)
    begun, *rest, end = told(read(follow(work.id)))
    assert (begun, end) == (STARTED, TOO_LONG)
    assert set(rest) == {A}


def test_silence_is_told_each_pulse(follow, monkeypatch):
    monkeypatch.setattr(background, "PULSE_SECONDS", 0.2)
    begin = time.monotonic()
    work = Work()
    with closing(follow(work.id)) as response:
        events = parse_events(response.iter_encoded())
        types = [next(events).event for _ in range(4)]
        passed = time.monotonic() - begin
        assert types == ["started", "waiting", "waiting", "waiting"]
        assert 0.6 < passed < 3
        work.say("a", FINISHED)
        assert told(events) == [A, END]


# Who ends it


def test_a_stop_ends_it_for_all(store, follow, stop):
    work = Work()
    work.say("a")
    reader = Reader(follow(work.id))
    wait_until(lambda: A in told(reader.events))
    stop(work.id)
    assert reader.result() == [STARTED, A, STOPPED]
    wait_until(work.interrupted.is_set)
    work.say("b", FINISHED)
    wait_until(work.closed.is_set)
    assert told(held(work.id)) == [STARTED, A, STOPPED]


def test_a_stop_interrupts_though_redis_is_away(own_store, follow, stop):
    work = Work()
    own_store.stop()
    with pytest.raises(Unavailable):
        stop(work.id)
    assert work.interrupted.is_set()
    own_store.start()
    assert told(read(follow(work.id))) == [STARTED, failed("No luck.")]


def test_a_stop_of_what_has_ended_changes_nothing(store, stop):
    work, stopped = Work(), Work()
    work.say(FINISHED)
    wait_until(lambda: has_ended(work.id))
    stop(work.id)
    stop(stopped.id)
    stop(stopped.id)
    assert told(held(work.id)) == [STARTED, END]
    assert told(held(stopped.id)) == [STARTED, STOPPED]


@pytest.mark.parametrize("events", [5, 50, 10_000])
def test_of_many_who_end_it_one_does_and_nothing_follows(
    store, follow, stop, monkeypatch, events
):
    monkeypatch.setattr(background, "LOST_SECONDS", 0)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.001)
    for _ in range(3):
        work = Work()
        work.say(*["a"] * events, FINISHED)
        readers = [Reader(follow(work.id)) for _ in range(3)]
        threads = [
            threading.Thread(target=stop, args=[work.id]) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(work.closed.is_set)
        everything = held(work.id)
        for reader in readers:
            assert reader.result() == told(everything)
        ends = [e for e in everything if e.event in ENDS]
        assert ends == everything[-1:]


# How many


def test_too_many_at_once_are_refused():
    for _ in range(PLACES):
        Work()
    with pytest.raises(ServiceUnavailable) as error:
        Work()
    assert error.value.retry_after == 5
    sentence = "Too many jobs are running."
    assert error.value.description == sentence


PLACE_FREE_AFTER = {
    "finished": FINISHED,
    "failed": FAILED,
    "an exception": RuntimeError("secret"),
    "no end": None,
}


@pytest.mark.parametrize("way", PLACE_FREE_AFTER)
def test_its_place_is_free_after(way):
    for _ in range(2):
        works = [Work() for _ in range(PLACES)]
        for work in works:
            work.say(PLACE_FREE_AFTER[way])
        wait_until(lambda: background._slots._value == PLACES)


def test_its_place_is_free_soon_after_a_stop_though_it_is_silent(store, stop):
    for _ in range(2):
        works = [Work() for _ in range(PLACES)]
        for work in works:
            stop(work.id)
        wait_until(lambda: background._slots._value == PLACES, 2)


def test_no_place_is_taken_by_what_cannot_start(own_store, monkeypatch):
    own_store.stop()
    for _ in range(PLACES + 1):
        with pytest.raises(Unavailable):
            Work()
    monkeypatch.setattr(broker, "BROKER", broker.MemoryBroker())
    monkeypatch.setattr(threading.Thread, "start", lambda _: 1 / 0)
    for _ in range(PLACES + 1):
        with pytest.raises(ZeroDivisionError):
            Work()


def test_only_the_newest_of_what_has_ended_is_kept(store, follow, monkeypatch):
    monkeypatch.setattr(background, "MAX_KEPT", 2)
    running = Work()
    ended = []
    for _ in range(4):
        ended.append(Work())
        ended[-1].say(FINISHED)
        wait_until(lambda: background._slots._value == PLACES - 1)
    for work in ended[:2]:
        with pytest.raises(NotFound):
            follow(work.id)
    for work in ended[2:]:
        assert told(read(follow(work.id))) == [STARTED, END]
    running.say(FINISHED)
    assert told(read(follow(running.id))) == [STARTED, END]


def test_what_has_ended_is_kept_for_a_set_time(follow, monkeypatch):
    work = Work()
    work.say(FINISHED)
    wait_until(lambda: has_ended(work.id))
    monkeypatch.setattr(broker, "KEEP_SECONDS", 0)
    Work().say(FINISHED)
    with pytest.raises(NotFound):
        follow(work.id)


# What is lost


LAST_READ = {
    "from the first": (None, False),
    "from the newest": (None, True),
    "who had the first": ("first", False),
    "who had all": ("newest", False),
    "who had what is no more": ("x", False),
}


@pytest.mark.parametrize("who", LAST_READ)
def test_work_whose_process_has_died_is_ended_for_a_reader(
    store, follow, monkeypatch, who
):
    monkeypatch.setattr(background, "LOST_SECONDS", 0.3)
    first = publish(f"works:{who}", Event("", event="started"))
    newest = publish(f"works:{who}", Event("a"))
    last, from_newest = LAST_READ[who]
    last = {"first": first, "newest": newest}.get(last, last)
    begin = time.monotonic()
    reader = Reader(follow(who, last, from_newest=from_newest))
    assert reader.result()[-1] == LOST
    assert time.monotonic() - begin > 0.3
    assert told(held(who)) == [STARTED, A, LOST]
    broker.forget(f"works:{who}")


def test_a_reader_that_comes_and_goes_is_told_too(store, follow, monkeypatch):
    monkeypatch.setattr(background, "LOST_SECONDS", 0.3)
    last = publish("works:x", Event("", event="started"))

    def visit():
        with closing(follow("x", last)) as response:
            return b"".join(islice(response.iter_encoded(), 3))

    wait_until(lambda: b"failed" in visit())
    broker.forget("works:x")


def test_readers_of_silent_work_wait(store, follow, monkeypatch):
    monkeypatch.setattr(background, "LOST_SECONDS", 1.5)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.01)
    work = Work()
    reader = Reader(follow(work.id))
    wait_until(lambda: len(reader.events) > 40)
    work.say(FINISHED)
    assert reader.result() == [STARTED, END]


def test_work_that_was_given_up_says_nothing_more(store, follow, monkeypatch):
    monkeypatch.setattr(background, "LOST_SECONDS", 0.2)
    monkeypatch.setattr(background, "PULSE_SECONDS", 10)
    work = Work()
    assert told(read(follow(work.id))) == [STARTED, LOST]
    work.say("a", FINISHED)
    wait_until(work.interrupted.is_set)
    assert told(held(work.id)) == [STARTED, LOST]


def test_nothing_is_lost_or_doubled_while_redis_is_away(
    own_store, follow, monkeypatch
):
    monkeypatch.setattr(background, "LOST_SECONDS", 1.5)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.5)
    work = Work()
    work.say("a")
    reader = Reader(follow(work.id))
    wait_until(lambda: A in told(reader.events))
    own_store.stop()
    enough = reader.comments + 35  # to give it up, if that were its silence
    work.say("b", "c")
    wait_until(lambda: reader.comments > enough)
    own_store.start()
    work.say(FINISHED)
    texts = [STARTED, A, B, ("message", "c"), END]
    assert reader.result() == texts
    assert told(held(work.id)) == texts


def test_who_comes_back_while_redis_is_away_is_to_come_again(own_store, follow):
    work = Work()
    own_store.stop()
    again = follow(work.id, "1-0")  # 503 would be final for a browser
    assert (again.status_code, again.get_data()) == (200, b"retry: 3000\n")
    with pytest.raises(Unavailable):
        follow(work.id)
    own_store.start()
    work.say(FINISHED)
    assert told(read(follow(work.id))) == [STARTED, END]


@pytest.mark.parametrize("at", [Event("a"), FINISHED])
def test_what_was_published_though_redis_said_nothing_comes_once(
    store, follow, monkeypatch, at
):
    def publish_and_fail_once(channel, event, **options):
        id = publish(channel, event, **options)
        if event.encode() == at.encode() and not failures:
            failures.append(event)
            raise Unavailable
        return id

    failures = []
    monkeypatch.setattr(broker, "publish", publish_and_fail_once)
    work = Work()
    work.say("a", "b", FINISHED)
    assert told(read(follow(work.id))) == [STARTED, A, B, END]
    wait_until(lambda: failures)


def test_what_goes_wrong_while_redis_is_away_is_told_when_it_is_back(
    own_store, follow, monkeypatch, caplog
):
    monkeypatch.setattr(background, "LOST_SECONDS", 5)
    monkeypatch.setattr(background, "PULSE_SECONDS", 10)
    work = Work()
    own_store.stop()
    work.say(RuntimeError("secret"))
    wait_until(lambda: " failed" in caplog.text)
    own_store.start()
    assert told(read(follow(work.id))) == [STARTED, WRONG]


def test_readers_get_an_end_though_redis_has_lost_it_all(
    own_store, follow, monkeypatch
):
    monkeypatch.setattr(background, "LOST_SECONDS", 0.5)
    work = Work()
    work.say("a")
    reader = Reader(follow(work.id))
    wait_until(lambda: A in told(reader.events))
    own_store.client().flushall()
    assert reader.result()[-1] == LOST
    assert told(read(follow(work.id))) == [LOST]
    wait_until(work.interrupted.is_set)


@pytest.mark.parametrize("next_text", ["c", "a"])
def test_work_of_which_redis_has_lost_a_part_does_not_finish(
    own_store, monkeypatch, next_text
):
    monkeypatch.setattr(background, "PULSE_SECONDS", 10)
    work = Work()
    work.say("a", "b")
    wait_until(lambda: B in told(held(work.id)))
    newest = broker.newest(f"works:{work.id}")
    own_store.client().xdel(f"sse:works:{work.id}", newest.id)
    work.say(next_text, FINISHED)
    wait_until(lambda: has_ended(work.id))
    assert told(held(work.id))[-1][0] == "failed"
