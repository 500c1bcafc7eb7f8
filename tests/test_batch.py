import json
import threading
from collections import Counter

import pytest
from conftest import PATIENCE_SECONDS, wait_until
from playwright.sync_api import expect

from demos import batch
from demos.batch import batches
from event_source import parse_events


def test_without_flush_each_message_is_an_event(client):
    response = client.get("/stream/batch?rate=1000&flush=0")
    events = parse_events(response.iter_encoded())
    messages = [json.loads(next(events).data) for _ in range(50)]
    assert [message["n"] for message in messages] == list(range(1, 51))
    response.close()


def test_a_full_buffer_drops_the_oldest_and_reports_how_many(monkeypatch):
    monkeypatch.setattr(batch, "MAX_BUFFER", 20)
    reading, put_all = threading.Event(), threading.Event()

    def produce(rate, put, closed):
        put([{"n": 1}])
        reading.wait()
        for n in range(2, 101):
            put([{"n": n}])
        put_all.set()

    stream = batches(rate=10, flush_seconds=0.001, produce=produce)
    assert next(stream).data == [{"n": 1}]
    reading.set()
    assert put_all.wait(PATIENCE_SECONDS)
    assert next(stream).encode() == b'event: dropped\ndata: {"dropped":79}\n\n'
    assert [message["n"] for message in next(stream).data] == [*range(81, 101)]
    stream.close()


class Clock:
    """A clock that moves only in `wait`, and jumps ahead once."""

    def __init__(self, late=0):
        self.now, self.late, self.end = 0, late, late + 5
        self.sleeps = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)

    def wait(self, seconds):
        self.now, self.late = self.now + seconds + self.late, 0
        return self.now > self.end


@pytest.mark.parametrize(
    ("late", "skipped"),
    [(0.5, 0), (3600, 3600 * 10_000 - batch.MAX_BUFFER + 100)],
)
def test_a_late_producer_catches_up_in_turns(monkeypatch, late, skipped):
    clock, puts = Clock(late), []
    monkeypatch.setattr(batch, "time", clock)
    batch.produce(10_000, puts.append, clock)
    assert max(map(len, puts)) <= batch.MAX_TURN
    made = [message["n"] for messages in puts for message in messages]
    assert made == [*range(made[0], made[-1] + 1)]
    assert made[0] - 1 == pytest.approx(skipped, abs=3)
    assert made[-1] == pytest.approx(clock.now * 10_000, abs=110)


def test_a_stream_stores_no_more_than_its_buffer(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(batch, "time", clock)

    def produce(rate, put, closed):
        put([{"n": n + 1} for n in range(30_000)])

    stream = batches(rate=10_000, flush_seconds=5, produce=produce)
    assert next(stream).data == {"dropped": 20_000}
    assert len(next(stream).data) == 10_000
    stream.close()
    assert clock.sleeps == [0.5]  # until the buffer is half full


def test_without_batches_other_clients_get_a_turn(monkeypatch):
    clock, at = Clock(), []
    monkeypatch.setattr(batch, "time", clock)

    def produce(rate, put, closed):
        put([{"n": n + 1} for n in range(1000)])

    stream = batches(rate=10_000, flush_seconds=0, produce=produce)
    for _ in range(1000):
        next(stream)
        at.append(len(clock.sleeps))
    stream.close()
    assert Counter(at) == dict.fromkeys(range(1, 6), batch.MAX_TURN)
    assert min(clock.sleeps) > 0


def test_the_producer_ends_with_the_stream():
    before = set(threading.enumerate())
    streams = [batches(rate=1000, flush_seconds=0.01) for _ in range(3)]
    for stream in streams:
        next(stream)
    assert len(set(threading.enumerate()) - before) == 3
    for stream in streams:
        stream.close()
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_page_shows_both_ways_side_by_side(lesson_page):
    page = lesson_page("batch")
    page.get_by_label("Messages a second").fill("1000")
    page.get_by_role("button", name="Start").click()
    cells = page.locator("tbody td")

    def shows_that_batches_take_fewer_events_and_bytes() -> bool:
        # Read all cells together, because they may change at any time.
        texts = [text.replace(",", "") for text in cells.all_text_contents()]
        messages, each, events, each_event, size, each_size = map(
            int, texts[:6]
        )
        if not (messages and each):
            return False
        assert each_event == each
        # The columns may show different seconds, so compare per message.
        return (
            0 < events < messages / 5
            and 0.01 < size / messages < each_size / each < 0.1
        )

    wait_until(shows_that_batches_take_fewer_events_and_bytes)
    expect(page.locator("#state")).to_have_text("2 open")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("closed")
