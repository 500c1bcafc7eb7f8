import json
import socket
import threading
from collections import Counter

import pytest
from conftest import Client, wait_until
from playwright.sync_api import expect
from werkzeug.serving import make_server

from demos import batch
from demos.batch import batches
from event_source import parse_events


def messages_of(event):
    return json.loads(event.data)


def test_batches_are_arrays_that_skip_no_message(server):
    with server.get("/stream/batch?rate=1000&flush=50") as client:
        events = parse_events(client.chunks())
        arrays = [messages_of(next(events)) for _ in range(10)]
    messages = [message for array in arrays for message in array]
    assert [m["n"] for m in messages] == list(range(1, len(messages) + 1))
    assert all(list(m) == ["n", "value"] for m in messages)
    assert len(messages) > 100


def test_without_flush_each_message_is_an_event(server):
    with server.get("/stream/batch?rate=200&flush=0") as client:
        events = parse_events(client.chunks())
        messages = [messages_of(next(events)) for _ in range(50)]
    assert [message["n"] for message in messages] == list(range(1, 51))


def test_an_empty_buffer_sends_nothing(server):
    with server.get("/stream/batch?rate=2&flush=10") as client:
        chunks = client.chunks()
        assert next(chunks) == b":\n"
        assert messages_of(next(parse_events(chunks)))[0]["n"] == 1


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
    assert put_all.wait(5)
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


@pytest.fixture
def small_buffers(app):
    """The app on a socket with a small send buffer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        port = listener.getsockname()[1]
        fd = listener.fileno()
        server = make_server("127.0.0.1", port, app, threaded=True, fd=fd)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield port
        server.shutdown()
        serving.join()
        server.server_close()


def test_a_stalled_client_gets_the_number_of_messages_it_missed(
    small_buffers, monkeypatch
):
    produced = []
    monkeypatch.setattr(batch, "random", lambda: produced.append(1) or 0.5)
    path = "/stream/batch?rate=10000&flush=10"
    with Client(small_buffers, "GET", path) as client:
        wait_until(lambda: len(produced) > 2 * batch.MAX_BUFFER)
        seen = 0
        events = parse_events(client.chunks())
        for event in events:
            if event.event == "dropped":
                dropped = json.loads(event.data)["dropped"]
                break
            messages = messages_of(event)
            assert messages[0]["n"] == seen + 1
            seen = messages[-1]["n"]
        messages = messages_of(next(events))
        assert messages[-1]["n"] == seen + dropped + len(messages)


def test_the_producer_ends_with_the_stream():
    before = set(threading.enumerate())
    streams = [batches(rate=1000, flush_seconds=0.01) for _ in range(20)]
    for stream in streams:
        next(stream)
    assert len(set(threading.enumerate()) - before) == 20
    for stream in streams:
        stream.close()
    wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("rate=0", "rate must be an integer from 1 to 10000, got '0'."),
        ("rate=10001", "rate must be an integer from 1 to 10000, got '10001'."),
        ("rate=1.5", "rate must be an integer from 1 to 10000, got '1.5'."),
        ("flush=-1", "flush must be an integer from 0 to 5000, got '-1'."),
        ("flush=5001", "flush must be an integer from 0 to 5000, got '5001'."),
        (
            "flush=9",
            "flush must be 0 (no batches), or 10 to 5000.",
        ),
    ],
)
def test_refuses_values_out_of_range(client, query, sentence):
    response = client.get(f"/stream/batch?{query}")
    assert response.status_code == 400
    assert response.json == {"error": sentence}


def test_page_shows_both_ways_side_by_side(lesson_page):
    page = lesson_page("batch")
    page.get_by_label("Messages a second").fill("2000")
    page.get_by_role("button", name="Start").click()

    cells = page.locator("tbody td")

    def numbers() -> list[int]:
        texts = cells.all_text_contents()
        return [int(text.replace(",", "")) for text in texts[:6]]

    wait_until(lambda: min(numbers()[:2]) > 300)
    expect(page.locator("#state")).to_have_text("2 open")
    # Read all cells together, because they may change at any time.
    messages, each, events, each_event, size, each_size = numbers()
    assert each_event == each
    assert 0 < events < messages / 5
    # The columns may show different seconds, so compare per message.
    assert 0.01 < size / messages < each_size / each < 0.1  # kB
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("closed")
