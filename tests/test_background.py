"""Background jobs, with their channels in memory and in Redis."""

import re
import threading
import time
from collections import defaultdict, deque
from contextlib import closing
from itertools import count, takewhile
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from conftest import PATIENCE_SECONDS, wait_until, without_comments
from werkzeug.exceptions import NotFound, ServiceUnavailable

import background
import broker
import redis_broker
import sse
from broker import (
    BEGIN,
    Conflict,
    MemoryBroker,
    PublishedEvent,
    Unavailable,
    publish,
)
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event

SLOTS = 3
MAX_AT_ONCE = background.MAX_AT_ONCE
FINISHED = Event("", event="finished")
FAILED = Event({"error": "No luck."}, event="failed")
ENDS = ("finished", "failed")


class Job:
    """A job that publishes whatever the test sends it."""

    running: list["Job"] = []

    def __init__(self, kind="jobs"):
        self.interrupted, self.closed = threading.Event(), threading.Event()
        self._items = SimpleQueue()
        self.id = background.start(kind, self._events(), self.interrupt)
        self.channel = f"{kind}:{self.id}"
        self.running.append(self)

    def interrupt(self) -> None:
        self.interrupted.set()
        self.send(FAILED)

    def send(self, *items: str | Event | Exception | None) -> None:
        """Make the job yield text or an event, raise an error, or return."""
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

    def stored(self) -> list[Event]:
        return stored(self.channel)

    def has_ended(self) -> bool:
        return broker.newest(self.channel).event in ENDS


class Follower(threading.Thread):
    """A client that follows a job to its end, and counts the comments."""

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

    def has(self, pair: tuple[str, str]) -> bool:
        return pair in pairs(self.events)

    def result(self) -> list[tuple[str, str]]:
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "the stream does not end"
        return pairs(self.events)


@pytest.fixture(autouse=True)
def _quick_and_few(app, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(redis_broker, "BLOCK_MS", 10)
    monkeypatch.setattr(redis_broker, "LOAD_SECONDS", 20)
    monkeypatch.setattr(background, "PULSE_SECONDS", 0.05)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(background, "MAX_AT_ONCE", SLOTS)
    monkeypatch.setattr(background, "_ended", defaultdict(deque))
    monkeypatch.setattr(background, "_watched", set())
    yield
    end_all()


def end_all() -> None:
    while Job.running:
        Job.running.pop().send(FINISHED)
    wait_until(all_slots_are_free)
    wait_until(nobody_watches)


def all_slots_are_free() -> bool:
    return not background._interrupts


def nobody_watches() -> bool:
    return not any("(_watch)" in one.name for one in threading.enumerate())


@pytest.fixture(params=["memory", "redis"])
def store(request, monkeypatch, app) -> str:
    """Keep the channels in memory or in Redis."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
        monkeypatch.setattr(broker, "BROKER", RedisBroker(url))
    return request.param


@pytest.fixture
def own_store(monkeypatch, app, own_redis):
    """A Redis server that the test may stop and empty."""
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
            return background.follow("jobs", id, **options)

    return follow


@pytest.fixture
def stop(app):
    def stop(id):
        with app.test_request_context():
            background.stop("jobs", id)

    return stop


def read(response) -> list[Event]:
    with closing(response):
        return list(parse_events(response.iter_encoded()))


def pairs(events) -> list[tuple[str, str]]:
    """Return the type and data of each event, without `waiting` events."""
    found = [(event.event or "message", event.data) for event in events]
    return [pair for pair in found if pair[0] != "waiting"]


def stored(channel: str) -> list[Event]:
    with closing(broker.subscribe(channel, BEGIN)) as events:
        return list(takewhile(lambda event: event is not None, events))


def failed(sentence: str) -> tuple[str, str]:
    return ("failed", f'{{"error":"{sentence}"}}')


STARTED = ("started", "")
A, B, C = ("message", "a"), ("message", "b"), ("message", "c")
END = ("finished", "")
STOPPED = failed("The job was stopped.")
LOST = failed(background.LOST)
WRONG = failed("The job failed. See the log.")
TOO_MANY = failed("The job published too many events.")


# Following a job


def test_a_client_gets_exactly_these_bytes(store, follow, monkeypatch):
    monkeypatch.setattr(background, "PULSE_SECONDS", 1000)
    job = Job()
    job.send("a\nb", FINISHED)
    response = follow(job.id)
    assert response.content_type == "text/event-stream"
    body = without_comments(b"".join(response.iter_encoded()))
    assert re.sub(rb"id: \d+-\d+\n", b"id\n", body) == (
        b"id\nevent: started\ndata: \n\n"
        b"id\ndata: a\ndata: b\n\n"
        b"id: end\nevent: finished\ndata: \n\n"
    )


def test_a_client_may_start_at_the_newest_event(store, follow):
    job = Job()
    job.send("a", "b")
    wait_until(lambda: B in pairs(job.stored()))
    follower = Follower(follow(job.id, from_newest=True))
    first_id = job.stored()[0].id
    reconnecting = Follower(follow(job.id, first_id, from_newest=True))
    job.send(FINISHED)
    assert follower.result() in ([B, END], [END])  # [END] after `waiting`
    assert reconnecting.result() == [A, B, END]


def test_the_newest_event_of_a_silent_job_repeats_its_data(store, follow):
    job = Job()
    job.send("a")
    wait_until(lambda: [e.event for e in job.stored()][-2:] == ["waiting"] * 2)
    follower = Follower(follow(job.id, from_newest=True))
    wait_until(lambda: follower.events)
    first = follower.events[0]
    assert (first.event, first.data) == ("waiting", "a")
    job.send(FINISHED)
    assert follower.result() == [END]


@pytest.mark.parametrize("end", [FINISHED, FAILED])
def test_a_late_client_gets_the_end_and_then_204(store, follow, end):
    job = Job()
    job.send("a", end)
    wait_until(job.has_ended)
    (event,) = read(follow(job.id, from_newest=True))
    assert pairs([event]) == pairs(parse_events([end.encode()]))
    wait_until(nobody_watches)
    for _ in range(2):
        again = follow(job.id, event.id)
        assert (again.status_code, again.get_data()) == (204, b"")
        broker.forget(job.channel)  # as if Redis had lost it


def test_an_unknown_id_is_404(store, follow, stop):
    for ask in follow, stop:
        with pytest.raises(NotFound) as error:
            ask("x")
        sentence = "There is nothing with the id 'x' in jobs."
        assert error.value.description == sentence


def test_a_client_of_a_lost_job_gets_failed_and_then_204(store, follow):
    (event,) = read(follow("x", "1700000000000-0"))
    assert (pairs([event]), event.id) == ([LOST], "end")
    assert follow("x", event.id).status_code == 204


def test_a_stream_that_never_starts_leaves_no_subscriber(store, follow):
    job = Job()
    follow(job.id).close()  # as after HEAD
    assert job.channel not in {
        channel
        for channel, log in broker.BROKER._channels.logs.items()
        if log.readers
    }


# How a job ends


WRONG_WAYS = {
    "an exception": RuntimeError("secret"),
    "no end": None,
    "an event with an id": Event("a", id="1"),
    "data that JSON cannot represent": Event({1, 2}),
    "an event that is too large": Event("x" * 5 * 1024 * 1024),
    "no event": 5,
}


@pytest.mark.parametrize("way", WRONG_WAYS)
def test_an_exception_is_logged_and_not_sent(follow, caplog, way):
    job = Job()
    job.send("a", WRONG_WAYS[way])
    assert pairs(read(follow(job.id))) == [STARTED, A, WRONG]
    (record,) = (one for one in caplog.records if one.name == "background")
    assert record.getMessage() == f"jobs:{job.id} failed"
    assert record.exc_info
    wait_until(all_slots_are_free)


def test_nothing_follows_a_final_event(store, request):
    channel = request.node.name
    id = publish(channel, Event("a"), final=True)
    for after in (None, id, BEGIN):
        with pytest.raises(Conflict):
            publish(channel, Event("b"), after=after)
    assert pairs(stored(channel)) == [A]
    broker.forget(channel)
    publish(channel, Event("c"))
    broker.forget(channel)


@pytest.mark.parametrize("end", [END, STOPPED])
def test_nothing_follows_the_end_even_if_the_interrupt_fails(
    store, stop, monkeypatch, caplog, end
):
    monkeypatch.setattr(Job, "interrupt", lambda self: 1 / 0)
    job = Job()
    if end == STOPPED:
        stop(job.id)  # the job itself stays blocked
    else:
        job.send(FINISHED)
    wait_until(all_slots_are_free)
    assert pairs(job.stored()) == [STARTED, end]
    assert "ZeroDivisionError" in caplog.text


def test_an_endless_job_ends_before_any_of_its_events_is_discarded(
    store, follow, monkeypatch
):
    monkeypatch.setattr(background, "MAX_EVENTS", 20)
    job = Job()
    job.send(*["a"] * 30)
    wait_until(job.closed.is_set)
    first, *rest, end = pairs(read(follow(job.id)))
    assert (first, end) == (STARTED, TOO_MANY)
    assert set(rest) == {A}


# Stopping a job


def test_a_stop_ends_the_job_for_all_clients(store, follow, stop):
    job = Job()
    job.send("a")
    follower = Follower(follow(job.id))
    wait_until(lambda: follower.has(A))
    stop(job.id)
    assert follower.result() == [STARTED, A, STOPPED]
    wait_until(job.interrupted.is_set)
    job.send("b", FINISHED)
    wait_until(job.closed.is_set)
    assert pairs(job.stored()) == [STARTED, A, STOPPED]


def test_a_stop_interrupts_even_if_redis_is_down(own_store, follow, stop):
    job = Job()
    own_store.stop()
    with pytest.raises(Unavailable):
        stop(job.id)
    assert job.interrupted.is_set()
    own_store.start()
    assert pairs(read(follow(job.id))) == [STARTED, failed("No luck.")]


def test_a_stop_after_the_end_changes_nothing(store, stop):
    finished, stopped = Job(), Job()
    finished.send(FINISHED)
    wait_until(finished.has_ended)
    stop(finished.id)
    stop(stopped.id)
    stop(stopped.id)
    assert pairs(finished.stored()) == [STARTED, END]
    assert pairs(stopped.stored()) == [STARTED, STOPPED]


def test_a_stop_works_even_if_the_job_is_faster(store, stop, monkeypatch):
    """The job publishes while the newest event is on its way to `stop`."""

    def late_newest(channel, newest=background.newest):
        found = newest(channel)
        if threading.current_thread() is threading.main_thread():
            job.send("a")
            wait_until(lambda: newest(channel).id != found.id)
        return found

    monkeypatch.setattr(background, "PULSE_SECONDS", 1000)
    job = Job()
    monkeypatch.setattr(background, "newest", late_newest)
    stop(job.id)
    job.send("b")
    wait_until(job.closed.is_set)
    assert pairs(job.stored()) == [STARTED, A, STOPPED]


# Limits on jobs


def test_rejects_more_than_the_maximum_of_running_jobs_per_kind():
    jobs, seconds = [Job() for _ in range(SLOTS)], set()
    for _ in range(30):
        with pytest.raises(ServiceUnavailable) as error:
            Job()
        assert error.value.description == "Too many jobs are running."
        seconds.add(error.value.retry_after)
    assert min(seconds) >= 2
    assert max(seconds) <= 10
    assert len(seconds) > 3  # so clients don't all retry together
    Job("answers").send(FINISHED)
    jobs[0].send(FINISHED)
    wait_until(lambda: jobs[0].channel not in background._interrupts)
    Job()


def test_a_job_that_cannot_start_takes_no_slot(own_store, monkeypatch):
    own_store.stop()
    for _ in range(SLOTS + 1):
        with pytest.raises(Unavailable):
            Job()
    monkeypatch.setattr(broker, "BROKER", MemoryBroker())
    monkeypatch.setattr(threading.Thread, "start", lambda _: 1 / 0)
    for _ in range(SLOTS + 1):
        with pytest.raises(ZeroDivisionError):
            Job()


def test_keeps_the_newest_of_the_ended_jobs(store, follow, monkeypatch):
    # Clients must be able to read the end of every job.
    assert background.MAX_KEPT >= MAX_AT_ONCE
    monkeypatch.setattr(background, "MAX_KEPT", 2)
    answer = Job("answers")
    answer.send(FINISHED)
    wait_until(all_slots_are_free)
    running = Job()
    ended = []
    for _ in range(4):
        ended.append(Job())
        ended[-1].send(FINISHED)
        wait_until(lambda: list(background._interrupts) == [running.channel])
    wait_until(lambda: len(background._ended["jobs"]) == 2)
    for job in ended[:2]:
        wait_until(lambda: broker.newest(job.channel) is None)  # noqa: B023
        with pytest.raises(NotFound):
            follow(job.id)
    for job in ended[2:]:
        assert pairs(read(follow(job.id))) == [STARTED, END]
    wait_until(nobody_watches)
    running.send(FINISHED)
    assert pairs(read(follow(running.id))) == [STARTED, END]
    assert pairs(answer.stored()) == [STARTED, END]


# Jobs whose process has died


@pytest.fixture
def orphan(request, store) -> str:
    """The id of a job that published `a` before its process died."""
    id = request.node.name
    publish(f"jobs:{id}", Event("", event="started"))
    publish(f"jobs:{id}", Event("a"))
    yield id
    wait_until(nobody_watches)
    broker.forget(f"jobs:{id}")


def test_a_client_of_a_job_that_died_gets_a_final_event(
    orphan, follow, monkeypatch
):
    monkeypatch.setattr(background, "LOST_SECONDS", 0.1)
    begin = time.monotonic()
    assert Follower(follow(orphan)).result() == [STARTED, A, LOST]
    assert time.monotonic() - begin > 0.1
    assert pairs(stored(f"jobs:{orphan}")) == [STARTED, A, LOST]


def test_a_client_gets_the_end_even_if_redis_answers_only_sometimes(
    orphan, follow, monkeypatch
):
    def newest_now_and_then(channel, newest=background.newest):
        if next(checks) % 3:
            raise Unavailable
        return newest(channel)

    monkeypatch.setattr(background, "LOST_SECONDS", 0.1)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.01)
    checks = count()
    monkeypatch.setattr(background, "newest", newest_now_and_then)
    assert Follower(follow(orphan)).result() == [STARTED, A, LOST]
    assert next(checks) > 3 * 10  # because failed checks don't count


def test_each_job_is_watched_once_however_many_clients_connect(
    follow, monkeypatch
):
    def watch_when_all_have_connected(channel, watch=background._watch):
        watched.append(channel)
        all_have_connected.wait(30)
        watch(channel)

    def connect(id):
        ready.wait()
        followers.append(Follower(follow(id, last_ids[id])))

    monkeypatch.setattr(background, "_watch", watch_when_all_have_connected)
    monkeypatch.setattr(background, "LOST_SECONDS", 0)
    ids = [f"orphan {number}" for number in range(4)] * 3
    last_ids = {id: publish(f"jobs:{id}", Event("a")) for id in ids}
    ready, all_have_connected = threading.Barrier(len(ids)), threading.Event()
    watched, followers = [], []
    threads = [threading.Thread(target=connect, args=[id]) for id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_have_connected.set()
    for follower in followers:
        assert follower.result() == [LOST]
    assert sorted(watched) == [f"jobs:{id}" for id in ids[:4]]
    wait_until(lambda: not background._watched)


def test_a_job_is_watched_even_if_the_first_attempt_failed(
    orphan, follow, monkeypatch
):
    monkeypatch.setattr(background, "LOST_SECONDS", 0.1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            follow(orphan)
    assert Follower(follow(orphan)).result() == [STARTED, A, LOST]


def test_a_silent_job_is_not_lost(store, follow, monkeypatch):
    def sleep_until_the_next_pulse(seconds):
        last_id = broker.newest(job.channel).id
        wait_until(
            lambda: broker.newest(job.channel).id != last_id or job.has_ended()
        )
        checks.append(seconds)

    checks, job = [], Job()
    watch = SimpleNamespace(sleep=sleep_until_the_next_pulse)
    monkeypatch.setattr(background, "time", watch)
    monkeypatch.setattr(background, "RETRY_SECONDS", 1)
    monkeypatch.setattr(background, "LOST_SECONDS", 2)
    follower = Follower(follow(job.id))
    wait_until(lambda: len(checks) > 5)
    job.send(FINISHED)
    assert follower.result() == [STARTED, END]


def test_a_job_that_was_declared_lost_publishes_no_more_events(
    store, follow, monkeypatch
):
    monkeypatch.setattr(background, "LOST_SECONDS", 0.1)
    monkeypatch.setattr(background, "PULSE_SECONDS", 1000)
    job = Job()
    assert pairs(read(follow(job.id))) == [STARTED, LOST]
    job.send("a", FINISHED)
    wait_until(job.interrupted.is_set)
    assert pairs(job.stored()) == [STARTED, LOST]


# Redis is down, replies too late, or has lost events


def test_no_event_is_lost_or_repeated_while_redis_is_down(
    own_store, follow, monkeypatch
):
    monkeypatch.setattr(background, "LOST_SECONDS", 1)
    job = Job()
    job.send("a")
    follower = Follower(follow(job.id))
    wait_until(lambda: follower.has(A))
    own_store.stop()
    enough = follower.comments + 25  # a silent job would be lost by then
    job.send("b", "c")
    wait_until(lambda: follower.comments > enough)
    own_store.start()
    job.send(FINISHED)
    assert follower.result() == [STARTED, A, B, C, END]
    assert pairs(job.stored()) == [STARTED, A, B, C, END]


def test_counting_silence_restarts_after_redis_rejects_the_end(monkeypatch):
    checks, rejected_at = [], []
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(background, "LOST_SECONDS", 0.01)

    def newest(channel):
        event = "finished"  # also ends the jobs of other tests
        if channel == "jobs:rejected":
            checks.append(channel)
            event = "progress" if len(checks) < 35 else "finished"
        return PublishedEvent("1-0", Event("", event=event))

    def reject(*event):
        rejected_at.append(len(checks))
        raise Unavailable

    monkeypatch.setattr(background, "newest", newest)
    monkeypatch.setattr(background, "_publish_after", reject)
    background._watch("jobs:rejected")
    assert rejected_at == [11, 21, 31]


def test_a_client_that_connects_while_redis_is_down_can_reconnect(
    own_store, follow
):
    job = Job()
    own_store.stop()
    for last_event_id in (None, "1-0"):
        again = follow(job.id, last_event_id)  # 503 would stop EventSource
        assert again.status_code == 200
        assert re.fullmatch(rb"retry: [234]\d{3}\n", again.get_data())
    assert follow(job.id, "end").status_code == 204
    own_store.start()
    with pytest.raises(NotFound):
        follow("x")
    job.send(FINISHED)
    assert pairs(read(follow(job.id))) == [STARTED, END]


@pytest.mark.parametrize("to", [Event("a"), FINISHED])
def test_an_event_is_published_once_even_if_the_reply_is_lost(
    store, follow, monkeypatch, to
):
    def publish_and_fail_once(channel, event, **options):
        id = publish(channel, event, **options)
        if event.encode() == to.encode() and not lost:
            lost.append(event)
            raise Unavailable
        return id

    lost = []
    monkeypatch.setattr(broker, "publish", publish_and_fail_once)
    job = Job()
    job.send("a", "b", FINISHED)
    assert pairs(read(follow(job.id))) == [STARTED, A, B, END]
    wait_until(all_slots_are_free)
    assert pairs(job.stored()) == [STARTED, A, B, END]
    assert lost


def test_a_failure_while_redis_is_down_is_published_afterwards(
    own_store, follow, monkeypatch, caplog
):
    monkeypatch.setattr(background, "LOST_SECONDS", 5)
    monkeypatch.setattr(background, "PULSE_SECONDS", 1000)
    job = Job()
    own_store.stop()
    job.send(RuntimeError("secret"))
    wait_until(lambda: " failed" in caplog.text)
    own_store.start()
    assert pairs(read(follow(job.id))) == [STARTED, WRONG]


def test_clients_get_an_end_even_if_redis_was_emptied(
    own_store, follow, monkeypatch
):
    job = Job()
    job.send("a")
    follower = Follower(follow(job.id))
    wait_until(lambda: follower.has(A))
    own_store.client().flushall()
    monkeypatch.setattr(background, "LOST_SECONDS", 0.1)
    assert follower.result()[-1] == LOST
    assert pairs(read(follow(job.id))) == [LOST]
    wait_until(job.interrupted.is_set)


def test_a_job_with_lost_events_does_not_finish(own_store, monkeypatch):
    monkeypatch.setattr(background, "PULSE_SECONDS", 1000)
    job = Job()
    job.send("a", "b")
    wait_until(lambda: B in pairs(job.stored()))
    newest = broker.newest(job.channel)
    own_store.client().xdel(f"sse:{job.channel}", newest.id)
    job.send("a", FINISHED)
    wait_until(job.has_ended)
    assert pairs(job.stored())[-1] == LOST


# The process exits normally


def test_a_process_that_exits_ends_its_jobs(store):
    jobs = [Job(), Job("answers")]
    background._end_all()
    for job in jobs:
        assert pairs(job.stored()) == [STARTED, LOST]


def test_a_process_exits_even_if_redis_is_down(own_store, monkeypatch):
    def attempt(*arguments, publish=broker.BROKER.publish):
        attempts.append(arguments)
        return publish(*arguments)

    monkeypatch.setattr(background, "PULSE_SECONDS", 100)
    attempts = []
    Job(), Job()
    own_store.stop()
    monkeypatch.setattr(broker.BROKER, "publish", attempt)
    background._end_all()
    assert len(attempts) == 1  # each might take TIMEOUT_SECONDS
