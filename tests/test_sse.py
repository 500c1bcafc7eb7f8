"""Encode events, send them, and keep a silent stream alive."""

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice, repeat

import httpx
import httpx_sse
import pytest
from conftest import wait_until
from event_streams import ENCODED
from flask import Flask
from werkzeug.test import Client

from sse import Event, EventStream, keep_alive, last_event_number

EVENTS = [Event(str(number), id=number) for number in range(1000)]
LONG = 60
SHORT = 0.01


class Source:
    """A source that counts the requested events, and records `close`."""

    def __init__(self, events: Iterable[Event | bytes]):
        self.events = iter(events)
        self.asked = 0
        self.closed = False

    def __iter__(self) -> "Source":
        return self

    def __next__(self) -> Event | bytes:
        self.asked += 1
        return next(self.events)

    def close(self) -> None:
        self.closed = True


def fail(error: BaseException) -> Iterator[Event]:
    yield Event("a")
    raise error


def serve(source: Source) -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: EventStream(source))
    return app


def test_encodes_to_exactly_these_bytes():
    found = {name: Event(**ENCODED[name][0]).encode() for name in ENCODED}
    assert found == {name: encoded for name, (_, encoded, _) in ENCODED.items()}


def refusal(**fields) -> str:
    """Return the error message of `Event` for these fields."""
    with pytest.raises(ValueError, match="^(event|id|retry) ") as caught:
        Event("a", **fields)
    return str(caught.value)


def test_rejects_fields_that_the_format_cannot_represent():
    for text in ("a\nb", "a\rb", "\r\n", "1\n", "a\0", "\0"):
        for field in ("event", "id"):
            problem = f"{field} contains CR, LF or NUL: {text!r}"
            assert refusal(**{field: text}) == problem
    for retry in (-1, 1.0, "1", True, False):
        problem = f"retry must be an integer >= 0, got {retry!r}"
        assert refusal(retry=retry) == problem
    with pytest.raises(ValueError, match="^retry must be an integer >= 0"):
        EventStream([], retry=-1)
    with pytest.raises(TypeError):
        Event("a", "tick")  # only data may be positional


@pytest.mark.parametrize(
    "event",
    [
        Event("a\ud800b"),
        Event(["a\ud800b"]),
        Event("", event="a\ud800b"),
        Event("", id="a\udfffb"),
    ],
)
def test_a_lone_surrogate_is_sent_as_a_question_mark(event):
    assert b"a?b" in event.encode()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([float("nan")], ValueError),
        ([-float("inf")], ValueError),
        ({1, 2}, TypeError),
        (b"a", TypeError),
    ],
)
def test_rejects_data_that_json_cannot_represent(data, error):
    with pytest.raises(error, match="JSON"):
        Event(data).encode()


def test_response_has_exactly_these_headers():
    response = EventStream([])
    assert response.status_code == 200
    assert dict(response.headers) == {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, b":\n"),
        ({"retry": None}, b":\n"),
        ({"retry": 500}, b"retry: 500\n"),
        ({"retry": 0}, b"retry: 0\n"),
    ],
)
def test_first_bytes_are_sent_before_the_first_event_exists(options, first):
    source = Source([Event("a")])
    sent = EventStream(source, **options).iter_encoded()
    assert next(sent) == first
    assert source.asked == 0
    assert next(sent) == b"data: a\n\n"


def test_none_is_sent_as_a_comment_and_bytes_unchanged():
    stream = EventStream([b"data: a\r\n\r\n", None, Event("b"), b"\xff"])
    assert stream.get_data() == b":\ndata: a\r\n\r\n:\ndata: b\n\n\xff"


def test_generator_is_closed_when_the_client_disconnects():
    source = Source(EVENTS)
    response = serve(source).test_client().get("/")
    for _ in islice(response.response, 1 + 2):
        assert not source.closed
    response.close()
    assert source.closed
    assert source.asked == 2


def test_generator_is_closed_after_a_head_request():
    source = Source(EVENTS)
    response = serve(source).test_client().head("/")
    assert response.data == b""
    response.close()
    assert response.content_type == "text/event-stream"
    assert source.asked == 0
    assert source.closed


def test_a_response_without_a_body_asks_for_no_event():
    source = Source(EVENTS)
    app = serve(source)

    @app.after_request
    def send_no_content(response):
        response.status_code = 204
        return response

    assert app.test_client().get("/").data == b""
    assert source.asked == 0


def test_a_subclass_can_change_what_is_sent():
    class Upper(EventStream):
        def iter_encoded(self):
            return (data.upper() for data in super().iter_encoded())

    assert Client(Upper([Event("a")])).get("/").data == b":\nDATA: A\n\n"


@pytest.fixture
def _threads_end():
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


threads_end = pytest.mark.usefixtures("_threads_end")


def wait_until_stuck(source: Source) -> None:
    """Wait until no more events are requested from the source."""
    seen = []

    def is_stuck() -> bool:
        seen.append(source.asked)
        return seen[-20:] == [source.asked] * 20

    wait_until(is_stuck)


@threads_end
def test_yields_none_while_the_source_is_silent():
    proceed = threading.Event()

    def events():
        proceed.wait()
        proceed.clear()
        yield Event("a")
        proceed.wait()
        yield Event("b")

    stream = keep_alive(events(), SHORT)
    for data in "ab":
        assert list(islice(stream, 3)) == [None] * 3
        proceed.set()
        event = next(item for item in stream if item is not None)
        assert event == Event(data)
    assert [item for item in stream if item is not None] == []


@threads_end
def test_yields_none_after_the_configured_silence_and_not_earlier():
    proceed = threading.Event()
    silent_until_it_ends = Source(iter(proceed.wait, True))
    stream = keep_alive(silent_until_it_ends, 0.2)
    start = time.monotonic()
    assert next(stream) is None
    assert time.monotonic() - start >= 0.2
    proceed.set()
    assert list(stream) == []


@threads_end
def test_events_keep_their_order_and_the_source_is_closed():
    items = [*EVENTS, b"data: a\n\n", None, *EVENTS]
    source = Source(items)
    assert list(keep_alive(source, LONG)) == items
    assert source.closed


class Timeout(BaseException):
    """Like gevent.Timeout, this is not an Exception."""


@threads_end
@pytest.mark.parametrize("error", [LookupError("gone"), Timeout("gone")])
def test_an_exception_in_the_source_is_raised_to_the_caller(error):
    source = Source(fail(error))
    stream = keep_alive(source, LONG)
    assert next(stream) == Event("a")
    with pytest.raises(type(error), match="gone"):
        next(stream)
    assert source.closed


@threads_end
def test_source_waits_for_a_slow_client():
    source = Source(EVENTS)
    stream = keep_alive(source, LONG)
    received = [next(stream)]
    wait_until_stuck(source)
    assert source.asked < 10
    assert received + list(stream) == EVENTS


@threads_end
@pytest.mark.parametrize("events", [repeat(Event("a")), EVENTS[:3]])
def test_close_ends_a_source_whose_handover_is_full(events):
    source = Source(events)
    stream = keep_alive(source, LONG)
    next(stream)
    wait_until_stuck(source)
    stream.close()
    wait_until(lambda: source.closed)


def test_head_interrupts_and_closes_a_source_that_never_started():
    app = Flask(__name__)
    source, calls = Source(EVENTS), []
    stream = keep_alive(source, LONG, lambda: calls.append("interrupt"))
    app.add_url_rule("/new", view_func=lambda: EventStream(stream))
    app.test_client().head("/new").close()
    assert (source.closed, source.asked, calls) == (True, 0, ["interrupt"])


@threads_end
@pytest.mark.parametrize("error", [None, LookupError("gone")])
def test_close_wakes_a_source_that_is_blocked(error):
    here, there = socket.socketpair()
    calls = []
    ends = []

    def read() -> Iterator[Event]:
        try:
            yield Event("a")
            here.recv(1)
            if error is not None:
                raise error
        finally:
            ends.append("end")

    def interrupt() -> None:
        calls.append("interrupt")
        here.shutdown(socket.SHUT_RDWR)

    with here, there:
        stream = keep_alive(read(), SHORT, interrupt)
        assert [next(stream), next(stream)] == [Event("a"), None]
        assert calls == ends == []
        stream.close()
        assert calls == ["interrupt"]
        wait_until(lambda: ends == ["end"])


def two_events() -> Iterator[Event]:
    yield from EVENTS[:2]


@threads_end
@pytest.mark.parametrize(
    ("events", "error"),
    [(two_events(), None), (fail(LookupError()), LookupError)],
)
def test_interrupt_is_called_once_when_the_stream_ends(events, error):
    calls = []
    stream = keep_alive(events, LONG, lambda: calls.append("interrupt"))
    next(stream)
    assert calls == []
    with pytest.raises(error) if error else nullcontext():
        list(stream)
    stream.close()
    assert calls == ["interrupt"]


@threads_end
def test_close_ends_the_source_at_its_next_event_without_an_interrupt():
    proceed = threading.Event()

    def events() -> Iterator[Event]:
        while True:
            proceed.wait()
            yield Event("a")

    source = Source(events())
    stream = keep_alive(source, SHORT)
    assert next(stream) is None
    stream.close()
    assert not source.closed
    proceed.set()
    wait_until(lambda: source.closed)


def test_no_thread_starts_before_the_stream_is_read():
    before = threading.enumerate()
    stream = keep_alive(Source(EVENTS), LONG)
    assert threading.enumerate() == before
    stream.close()


# After an id or a retry, httpx-sse treats any blank line as an event.
@pytest.mark.parametrize("retry", [None, 500])
def test_httpx_sse_gets_no_empty_event_from_comments(retry):
    items = [None, Event("a", id=1), None, None, Event("b")]
    stream = EventStream([*items, None], retry=retry)
    response = httpx.Response(
        200, headers=dict(stream.headers), content=stream.get_data()
    )
    events = list(httpx_sse.EventSource(response).iter_sse())
    assert [(event.data, event.id) for event in events] == [
        ("a", "1"),
        ("b", "1"),
    ]
    assert events[0].retry == retry


COUNTS = {"0": 0, "1": 1, "41": 41, "007": 7, "9" * 15: 10**15 - 1}
NO_COUNTS = (
    *("", "9" * 16, "9" * 5000, "-1", "+1", "1.5", "1e3", "1_000", "0x10"),
    *("1,2", "x", "nan", " 1 2", "\u0661", "\xb2"),
)


def last_number(headers: dict[str, str]) -> int:
    with Flask(__name__).test_request_context(headers=headers):
        return last_event_number()


def test_last_event_number_is_a_count_or_0():
    expected = COUNTS | dict.fromkeys(NO_COUNTS, 0)
    found = {last: last_number({"Last-Event-ID": last}) for last in expected}
    assert found == expected
    assert last_number({}) == 0
