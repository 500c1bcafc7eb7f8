import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice, repeat

import httpx
import httpx_sse
import pytest
from conftest import wait_until
from event_streams import ENCODED
from flask import Flask

from event_source import ReceivedEvent, parse_events
from sse import Event, EventStream, keep_alive, last_event_number

EVENTS = [Event(str(number), id=number) for number in range(1000)]
LONG = 60
SHORT = 0.01


class Source:
    """An iterator of events that remembers how far it got, and its end."""

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


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("event", "a\nb", r"event has CR, LF or NUL: 'a\nb'"),
        ("event", "a\rb", r"event has CR, LF or NUL: 'a\rb'"),
        ("event", "\r\n", r"event has CR, LF or NUL: '\r\n'"),
        ("event", "a\0", r"event has CR, LF or NUL: 'a\x00'"),
        ("id", "1\n", r"id has CR, LF or NUL: '1\n'"),
        ("id", "1\r", r"id has CR, LF or NUL: '1\r'"),
        ("id", "1\0", r"id has CR, LF or NUL: '1\x00'"),
        ("retry", -1, "retry is not an integer of 0 or more: -1"),
        ("retry", 1.0, "retry is not an integer of 0 or more: 1.0"),
        ("retry", "1", "retry is not an integer of 0 or more: '1'"),
        ("retry", True, "retry is not an integer of 0 or more: True"),
        ("retry", False, "retry is not an integer of 0 or more: False"),
    ],
)
def test_refuses_what_the_format_cannot_carry(field, value, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        Event("a", **{field: value})


def test_fields_other_than_data_are_given_by_name():
    with pytest.raises(TypeError):
        Event("a", "tick")


@pytest.mark.parametrize(
    "event",
    [
        Event("a\ud800b"),
        Event(["a\ud800b"]),
        Event("", event="a\ud800b"),
        Event("", id="a\udfffb"),
    ],
)
def test_a_lone_surrogate_goes_out_as_a_question_mark(event):
    assert b"a?b" in event.encode()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_refuses_numbers_that_json_does_not_have(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Event([number]).encode()


@pytest.mark.parametrize("data", [{1, 2}, b"a", object()])
def test_refuses_data_that_json_does_not_have(data):
    with pytest.raises(TypeError, match="not JSON serializable"):
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
def test_first_bytes_leave_before_the_first_event_is_there(options, first):
    source = Source([Event("a")])
    sent = EventStream(source, **options).iter_encoded()
    assert next(sent) == first
    assert source.asked == 0
    assert next(sent) == b"data: a\n\n"


def test_sends_events_one_by_one():
    source = Source(EVENTS)
    sent = EventStream(source).iter_encoded()
    next(sent)
    for number, event in enumerate(EVENTS, start=1):
        assert next(sent) == event.encode()
        assert source.asked == number


def test_none_is_sent_as_a_comment_and_bytes_as_they_are():
    stream = EventStream([b"data: a\r\n\r\n", None, Event("b"), b"\xff"])
    assert stream.get_data() == b":\ndata: a\r\n\r\n:\ndata: b\n\n\xff"


def test_whole_response_is_what_a_browser_takes_it_for():
    stream = EventStream([Event("a", id=1), None, Event("b")], retry=500)
    events = list(parse_events([stream.get_data()]))
    assert events == [
        ReceivedEvent("a", "message", "1", 500),
        ReceivedEvent("b", "message", "1"),
    ]


@pytest.mark.parametrize("events", [1, 2, 3])
def test_generator_is_closed_when_the_client_goes_away(events):
    source = Source(EVENTS)
    app = serve(source)
    response = app.test_client().get("/")
    for _ in islice(response.response, 1 + events):
        assert not source.closed
    response.close()
    assert source.closed
    assert source.asked == events


def test_generator_is_closed_before_its_first_event():
    source = Source(EVENTS)
    stream = EventStream(source)
    next(stream.iter_encoded())
    stream.close()
    assert source.closed


def test_generator_is_closed_at_its_end():
    source = Source(EVENTS)
    with EventStream(source) as response:
        response.get_data()
    assert source.closed


def test_generator_is_closed_when_it_fails():
    source = Source(fail(LookupError("gone")))
    with (
        pytest.raises(LookupError, match="gone"),
        EventStream(source) as response,
    ):
        response.get_data()
    assert source.closed


def test_generator_is_closed_when_never_started():
    source = Source(EVENTS)
    EventStream(source).close()
    assert source.closed


def test_generator_is_closed_after_a_head_request():
    source = Source(EVENTS)
    response = serve(source).test_client().head("/")
    response.close()
    assert response.content_type == "text/event-stream"
    assert source.asked == 0
    assert source.closed


@pytest.fixture
def _threads_end():
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


threads_end = pytest.mark.usefixtures("_threads_end")


def wait_until_stuck(source: Source) -> None:
    """Wait until the source is asked for no more events."""
    seen = []

    def is_stuck() -> bool:
        seen.append(source.asked)
        return seen[-20:] == [source.asked] * 20

    wait_until(is_stuck)


@threads_end
def test_yields_none_while_the_source_is_silent():
    go_on = threading.Event()

    def events():
        go_on.wait()
        go_on.clear()
        yield Event("a")
        go_on.wait()
        yield Event("b")

    stream = keep_alive(events(), SHORT)
    for data in "ab":
        assert list(islice(stream, 3)) == [None] * 3
        go_on.set()
        event = next(item for item in stream if item is not None)
        assert event == Event(data)
    assert [item for item in stream if item is not None] == []


@threads_end
def test_none_comes_after_the_set_silence_and_not_before():
    go_on = threading.Event()
    silent_until_it_ends = Source(iter(go_on.wait, True))
    stream = keep_alive(silent_until_it_ends, 0.2)
    start = time.monotonic()
    assert next(stream) is None
    assert 0.2 <= time.monotonic() - start < 5
    go_on.set()
    assert list(stream) == []


@threads_end
def test_what_the_source_yields_keeps_its_order():
    items = [*EVENTS, b"data: a\n\n", None, *EVENTS]
    assert list(keep_alive(Source(items), LONG)) == items


@threads_end
def test_source_is_closed_at_its_end():
    source = Source(EVENTS)
    assert list(keep_alive(source, LONG)) == EVENTS
    assert source.closed


class Timeout(BaseException):
    """Such a one as gevent.Timeout, which is no Exception either."""


@threads_end
@pytest.mark.parametrize("error", [LookupError("gone"), Timeout("gone")])
def test_what_the_source_raises_is_raised_to_the_reader(error):
    stream = keep_alive(fail(error), SHORT)
    assert next(stream) == Event("a")
    with pytest.raises(type(error), match="gone"):
        list(islice(stream, 20))


@threads_end
def test_source_that_fails_is_closed():
    source = Source(fail(LookupError("gone")))
    with pytest.raises(LookupError, match="gone"):
        list(keep_alive(source, LONG))
    wait_until(lambda: source.closed)


@threads_end
def test_source_waits_for_a_slow_reader():
    source = Source(EVENTS)
    stream = keep_alive(source, LONG)
    received = [next(stream)]
    wait_until_stuck(source)
    assert source.asked < 10
    assert received + list(stream) == EVENTS


@threads_end
@pytest.mark.parametrize("received", range(1, 6))
def test_close_ends_a_source_that_is_ahead(received):
    source = Source(repeat(Event("a")))
    stream = keep_alive(source, LONG)
    assert len(list(islice(stream, received))) == received
    stream.close()
    wait_until(lambda: source.closed)


@threads_end
@pytest.mark.parametrize("events", [repeat(Event("a")), EVENTS[:3]])
def test_close_ends_a_source_whose_handover_is_full(events):
    source = Source(events)
    stream = keep_alive(source, LONG)
    next(stream)
    wait_until_stuck(source)
    stream.close()
    wait_until(lambda: source.closed)


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


@threads_end
def test_close_ends_the_source_at_its_next_event_without_an_interrupt():
    go_on = threading.Event()

    def events() -> Iterator[Event]:
        while True:
            go_on.wait()
            yield Event("a")

    source = Source(events())
    stream = keep_alive(source, SHORT)
    assert next(stream) is None
    stream.close()
    assert not source.closed
    go_on.set()
    wait_until(lambda: source.closed)


@threads_end
def test_response_that_closes_ends_the_source_and_its_thread():
    source = Source(repeat(Event("a")))
    stream = EventStream(keep_alive(source, LONG))
    assert list(islice(stream.iter_encoded(), 2)) == [b":\n", b"data: a\n\n"]
    stream.close()
    wait_until(lambda: source.closed)


def test_no_thread_starts_before_the_stream_is_read():
    before = threading.enumerate()
    stream = keep_alive(Source(EVENTS), LONG)
    assert threading.enumerate() == before
    stream.close()


@pytest.mark.parametrize("path", ["/real-time-updates", "/sse"])
def test_httpx_sse_gets_no_empty_event_from_the_opening(server, path):
    url = f"{server.url}{path}?interval=0.05"
    with (
        httpx.Client(trust_env=False) as client,
        httpx_sse.connect_sse(client, "GET", url) as source,
    ):
        events = list(islice(source.iter_sse(), 3))
    assert len(events) == 3
    assert all(event.data for event in events)


# To httpx-sse, a blank line is an event whenever an id or a retry came before.
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


@pytest.fixture
def request_with():
    """Make a request with these headers, and this query string."""
    return Flask(__name__).test_request_context


@pytest.mark.parametrize(
    ("last", "number"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("1", 1),
        ("41", 41),
        ("007", 7),
        ("9" * 15, 10**15 - 1),
        ("9" * 16, 0),
        ("9" * 5000, 0),
        ("-1", 0),
        ("+1", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("1_000", 0),
        ("0x10", 0),
        ("1,2", 0),
        ("x", 0),
        ("nan", 0),
        ("\u0661", 0),
        ("\xb2", 0),
    ],
)
def test_last_event_number_is_a_count_or_0(request_with, last, number):
    headers = {} if last is None else {"Last-Event-ID": last}
    with request_with(headers=headers):
        assert last_event_number() == number
