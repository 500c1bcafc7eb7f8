import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise, repeat

import httpx
import httpx_sse
import pytest
from conftest import wait_until
from event_streams import BOM, ENCODED, STREAMS
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.exceptions import BadRequest

from sse import (
    KEEP_ALIVE,
    Event,
    EventStream,
    EventTooLarge,
    is_cross_site,
    keep_alive,
    last_event_number,
    parse_events,
    query_number,
)

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


def pieces(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut a stream at these places."""
    bounds = [0, *sorted(places), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def chunks(stream: bytes, size: int) -> Iterator[bytes]:
    """Cut a stream into chunks of this size."""
    return (stream[at : at + size] for at in range(0, len(stream), size))


def dispatched(parts: Iterable[bytes]) -> list[tuple[str, str, str]]:
    return [(e.event, e.data, e.id) for e in parse_events(parts)]


@pytest.mark.parametrize("name", ENCODED)
def test_encodes_to_exactly_these_bytes(name):
    arguments, encoded, _ = ENCODED[name]
    assert Event(**arguments).encode() == encoded


@pytest.mark.parametrize("name", ENCODED)
def test_what_is_encoded_is_parsed_as_a_browser_does(name):
    _, encoded, event = ENCODED[name]
    assert dispatched([encoded]) == [event]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("event", "a\nb", r"event must hold no CR or LF: 'a\nb'"),
        ("event", "a\rb", r"event must hold no CR or LF: 'a\rb'"),
        ("event", "\r\n", r"event must hold no CR or LF: '\r\n'"),
        ("id", "1\n", r"id must hold no CR, LF or NUL: '1\n'"),
        ("id", "1\r", r"id must hold no CR, LF or NUL: '1\r'"),
        ("id", "1\0", r"id must hold no CR, LF or NUL: '1\x00'"),
        ("retry", -1, "retry must be an integer of 0 or more: -1"),
        ("retry", 1.0, "retry must be an integer of 0 or more: 1.0"),
        ("retry", "1", "retry must be an integer of 0 or more: '1'"),
        ("retry", True, "retry must be an integer of 0 or more: True"),
        ("retry", False, "retry must be an integer of 0 or more: False"),
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
        "Cache-Control": "no-cache",
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


def test_bytes_go_out_as_they_are():
    stream = EventStream([b"data: a\r\n\r\n", KEEP_ALIVE, Event("b"), b"\xff"])
    assert stream.get_data() == b":\ndata: a\r\n\r\n:\ndata: b\n\n\xff"


def test_whole_response_is_what_a_browser_takes_it_for():
    stream = EventStream([Event("a", id=1), KEEP_ALIVE, Event("b")], retry=500)
    events = list(parse_events([stream.get_data()]))
    assert events == [
        Event("a", event="message", id="1", retry=500),
        Event("b", event="message", id="1"),
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
def test_comments_are_sent_while_the_source_is_silent():
    go_on = threading.Event()

    def events():
        go_on.wait()
        go_on.clear()
        yield Event("a")
        go_on.wait()
        yield Event("b")

    stream = keep_alive(events(), SHORT)
    for data in "ab":
        assert list(islice(stream, 3)) == [KEEP_ALIVE] * 3
        go_on.set()
        event = next(item for item in stream if item != KEEP_ALIVE)
        assert event == Event(data)
    assert [item for item in stream if item != KEEP_ALIVE] == []


@threads_end
def test_comment_comes_after_the_set_silence_and_not_before():
    go_on = threading.Event()
    silent_until_it_ends = iter(go_on.wait, True)
    stream = keep_alive(silent_until_it_ends, 0.2)
    start = time.monotonic()
    assert next(stream) == KEEP_ALIVE
    assert 0.2 <= time.monotonic() - start < 5
    go_on.set()
    assert list(stream) == []


@threads_end
def test_events_and_bytes_keep_their_order_and_get_no_comment_between():
    items = [*EVENTS, b":\n", *EVENTS]
    assert list(keep_alive(items, LONG)) == items


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
        stream = keep_alive(read(), SHORT, interrupt=interrupt)
        assert [next(stream), next(stream)] == [Event("a"), KEEP_ALIVE]
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
    assert next(stream) == KEEP_ALIVE
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
    stream = keep_alive(EVENTS, LONG)
    assert threading.enumerate() == before
    stream.close()


@pytest.mark.parametrize("name", STREAMS)
def test_parses_a_whole_stream_as_a_browser_does(name):
    stream, events = STREAMS[name]
    assert dispatched([stream]) == events


@pytest.mark.parametrize("name", STREAMS)
def test_parses_a_stream_byte_by_byte(name):
    stream, events = STREAMS[name]
    assert dispatched(chunks(stream, 1)) == events


@pytest.mark.parametrize("name", STREAMS)
def test_parses_a_stream_cut_in_two_anywhere(name):
    stream, events = STREAMS[name]
    for place in range(min(len(stream), 80)):
        assert dispatched(pieces(stream, [place])) == events


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(list(STREAMS)), st.data())
def test_parses_a_stream_cut_into_any_pieces(name, data):
    stream, events = STREAMS[name]
    places = data.draw(st.lists(st.integers(0, len(stream))))
    assert dispatched(pieces(stream, places)) == events


@pytest.mark.parametrize("name", STREAMS)
def test_empty_chunks_mean_nothing(name):
    stream, events = STREAMS[name]
    parts = [b"", stream[:1], b"", b"", *pieces(stream[1:], [7, 7]), b""]
    assert dispatched(parts) == events


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 99)))
def test_pieces_make_no_difference_to_any_bytes(stream, places):
    whole = list(parse_events([stream]))
    assert list(parse_events(pieces(stream, places))) == whole


@pytest.mark.parametrize("size", [1, 999])
def test_event_is_there_as_soon_as_its_blank_line_is(size):
    def stream() -> Iterator[bytes]:
        yield from chunks(b"data: a\r\n\r", size)
        raise AssertionError("the parser wanted more")

    assert next(parse_events(stream())).data == "a"


@pytest.mark.parametrize(
    ("fields", "retry"),
    [
        (b"retry: 500", 500),
        (b"retry:500", 500),
        (b"retry: 0", 0),
        (b"retry: 007", 7),
        (b"retry: 00000000000000000000500", 500),
        (b"retry: 999999999999999999", 999999999999999999),
        (b"retry: 1\nretry: 2", 2),
        (b"retry: 1\nretry: soon", 1),
        (b"retry: -1", None),
        (b"retry: +1", None),
        (b"retry: 1.5", None),
        (b"retry: 1e3", None),
        (b"retry: 1_000", None),
        (b"retry: 0x10", None),
        (b"retry: 1 ", None),
        (b"retry:  1", None),
        (b"retry:", None),
        (b"retry", None),
        (b"retry: 1\0", None),
        (b"Retry: 1", None),
        ("retry: \u0661".encode(), None),
        (b"retry: \xb9", None),
        (b"retry: 1" + b"0" * 5000, None),
    ],
)
def test_retry_is_read_if_it_is_digits_only(fields, retry):
    stream = fields + b"\ndata: a\n\ndata: b\n\n"
    assert [event.retry for event in parse_events([stream])] == [retry, None]


TEXTS = st.text() | st.text("ab :\t\0\r\n\u2028\x85\ufeff")
ONE_LINE = TEXTS.map(lambda text: "".join(text.split("\r")).replace("\n", ""))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.builds(
            Event,
            TEXTS,
            event=st.none() | ONE_LINE,
            id=st.none() | ONE_LINE.map(lambda text: text.replace("\0", "")),
            retry=st.none() | st.integers(0, 10**18 - 1),
        )
    ),
    st.lists(st.integers(0, 999)),
)
def test_what_is_encoded_is_parsed_back_the_same(events, places):
    stream = b"".join(event.encode() for event in events)
    expected = []
    last_event_id = ""
    for event in events:
        last_event_id = last_event_id if event.id is None else event.id
        expected.append(
            Event(
                event.data.replace("\r\n", "\n").replace("\r", "\n"),
                event=event.event or "message",
                id=last_event_id,
                retry=event.retry,
            )
        )
    assert list(parse_events(pieces(stream, places))) == expected


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda values: st.lists(values) | st.dictionaries(TEXTS, values | TEXTS),
)


@settings(deadline=None)
@given(JSON_VALUES)
def test_json_is_one_line_and_parsed_back_the_same(value):
    encoded = Event(value).encode()
    assert encoded.count(b"\n") == 2
    assert [json.loads(e.data) for e in parse_events([encoded])] == [value]


def many_events(size: int) -> bytes:
    event = b"id: 1\ndata: " + b"x" * 99 + b"\n\n"
    return event * (size // len(event))


def many_lines(size: int) -> bytes:
    return b"data: x\n" * (size // 8) + b"\n"


def one_line(size: int) -> bytes:
    return b"data: " + b"x" * size + b"\n\n"


def seconds_to_parse(stream: bytes, chunk_bytes: int) -> float:
    start = time.process_time()
    parts = chunks(stream, chunk_bytes)
    assert sum(1 for _ in parse_events(parts, max_bytes=len(stream))) >= 1
    return time.process_time() - start


@pytest.mark.parametrize(
    ("shape", "megabytes", "chunk_bytes"),
    [
        (many_events, 2, 1),
        (many_events, 10, 65536),
        (many_events, 10, 10**9),
        (many_lines, 1, 1),
        (many_lines, 10, 65536),
        (one_line, 1, 1),
        (one_line, 40, 65536),
    ],
)
def test_four_times_the_bytes_take_about_four_times_as_long(
    shape, megabytes, chunk_bytes
):
    size = megabytes * 2**20
    quarter = seconds_to_parse(shape(size // 4), chunk_bytes)
    assert seconds_to_parse(shape(size), chunk_bytes) < 10 * quarter


# Each ends in the last byte that 100 bytes of data have room for.
FULL = {
    "one line": b"data: " + b"x" * 100,
    "no space": b"data:" + b"x" * 100,
    "two spaces": b"data:  " + b"x" * 99,
    "two lines": b"data: " + b"x" * 50 + b"\ndata: " + b"x" * 49,
    "two lines, CRLF": b"data: " + b"x" * 50 + b"\r\ndata: " + b"x" * 49,
    "many lines": b"data: x\n" * 49 + b"data: xx",
    "empty lines": b"data\n" * 100 + b"data:",
    "bytes, not characters": b"data: " + "你".encode() * 33 + b"x",
    "other fields": b"event: tick\nid: 1\nretry: 1\ndata: " + b"x" * 100,
    "comments": (b": " + b"c" * 99 + b"\n") * 99 + b"data: " + b"x" * 100,
    "events before": b"data: a\n\n" * 99 + b"data: " + b"x" * 100,
    "BOM": BOM + b"data: " + b"x" * 100,
}


@pytest.mark.parametrize("size", [1, 7, 10**9])
@pytest.mark.parametrize("name", FULL)
def test_event_of_the_greatest_size_passes(name, size):
    events = parse_events(chunks(FULL[name] + b"\n\n", size), max_bytes=100)
    assert len(list(events)[-1].data.encode()) == 100


@pytest.mark.parametrize("size", [1, 7, 10**9])
@pytest.mark.parametrize("name", FULL)
def test_event_with_one_byte_more_is_refused(name, size):
    stream = FULL[name] + b"x\n\n"
    with pytest.raises(EventTooLarge, match="over 100 bytes"):
        list(parse_events(chunks(stream, size), max_bytes=100))


def test_default_limit_is_four_mebibytes():
    data = b"x" * 4 * 2**20
    assert len(list(parse_events([b"data: ", data, b"\n\n"]))) == 1
    with pytest.raises(EventTooLarge, match="over 4194304 bytes"):
        list(parse_events([b"data: ", data, b"x", b"\n\n"]))


@pytest.mark.parametrize(
    "endless",
    [b"x", b"data: x\n", b"data\n", b"data: x\n:\n", b"data: x\nid: 1\n"],
)
@pytest.mark.parametrize("first", [b"", b":", b"id: ", b"event:", b"data:"])
def test_what_never_ends_is_refused(first, endless):
    with pytest.raises(EventTooLarge):
        next(parse_events((first, *repeat(endless, 200)), max_bytes=100))


@pytest.mark.parametrize("lines", [b":\n", b": c\n\n", b"\n", b"id: 1\n\n"])
def test_endless_comments_count_for_nothing(lines):
    stream = (*repeat(lines, 10000), b"data: xxxx\n", lines, b"\n")
    (event,) = parse_events(stream, max_bytes=4)
    assert event.data == "xxxx"


def test_events_before_the_one_that_is_too_large_are_yielded():
    events = parse_events([b"data: a\n\ndata: bb\n\n"], max_bytes=1)
    assert next(events).data == "a"
    with pytest.raises(EventTooLarge):
        next(events)


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
    items = [KEEP_ALIVE, Event("a", id=1), KEEP_ALIVE, KEEP_ALIVE, Event("b")]
    stream = EventStream([*items, KEEP_ALIVE], retry=retry)
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


@pytest.mark.parametrize(
    ("query", "default", "number"),
    [
        ({}, 1.5, 1.5),
        ({}, 3, 3),
        ({"other": "2"}, 3, 3),
        ({"n": "0"}, 1.5, 0.0),
        ({"n": "10"}, 1.5, 10.0),
        ({"n": "0.01"}, 1.5, 0.01),
        ({"n": ".5"}, 1.5, 0.5),
        ({"n": "1e1"}, 1.5, 10.0),
        ({"n": "0"}, 3, 0),
        ({"n": "10"}, 3, 10),
        ({"n": "07"}, 3, 7),
        ({"n": ["1", "2"]}, 3, 1),
    ],
)
def test_query_number_is_of_the_type_of_its_default(
    request_with, query, default, number
):
    with request_with(query_string=query):
        result = query_number("n", default, 0, 10)
    assert result == number
    assert type(result) is type(default)


@pytest.mark.parametrize(
    ("text", "default", "problem"),
    [
        ("-0.1", 1.0, "n must be a number from 0 to 10, not '-0.1'."),
        ("10.1", 1.0, "n must be a number from 0 to 10, not '10.1'."),
        ("1e999", 1.0, "n must be a number from 0 to 10, not '1e999'."),
        ("nan", 1.0, "n must be a number from 0 to 10, not 'nan'."),
        ("-nan", 1.0, "n must be a number from 0 to 10, not '-nan'."),
        ("inf", 1.0, "n must be a number from 0 to 10, not 'inf'."),
        ("-inf", 1.0, "n must be a number from 0 to 10, not '-inf'."),
        ("Infinity", 1.0, "n must be a number from 0 to 10, not 'Infinity'."),
        ("", 1.0, "n must be a number from 0 to 10, not ''."),
        ("x", 1.0, "n must be a number from 0 to 10, not 'x'."),
        ("1,5", 1.0, "n must be a number from 0 to 10, not '1,5'."),
        ("1s", 1.0, "n must be a number from 0 to 10, not '1s'."),
        ("0x1", 1.0, "n must be a number from 0 to 10, not '0x1'."),
        ("1\0", 1.0, "n must be a number from 0 to 10, not '1\\x00'."),
        ("-1", 1, "n must be an integer from 0 to 10, not '-1'."),
        ("11", 1, "n must be an integer from 0 to 10, not '11'."),
        ("1.0", 1, "n must be an integer from 0 to 10, not '1.0'."),
        ("1e1", 1, "n must be an integer from 0 to 10, not '1e1'."),
        ("nan", 1, "n must be an integer from 0 to 10, not 'nan'."),
        ("", 1, "n must be an integer from 0 to 10, not ''."),
        ("<b>", 1, "n must be an integer from 0 to 10, not '<b>'."),
    ],
)
def test_query_number_says_what_is_allowed(
    request_with, text, default, problem
):
    with (
        request_with(query_string={"n": text}),
        pytest.raises(BadRequest) as caught,
    ):
        query_number("n", default, 0, 10)
    assert caught.value.description == problem


def test_query_number_takes_a_number_too_long_to_convert_for_none(request_with):
    with (
        request_with(query_string={"n": "9" * 5000}),
        pytest.raises(BadRequest, match="n must be an integer from 0 to 10"),
    ):
        query_number("n", 1, 0, 10)


@pytest.mark.parametrize(
    ("headers", "cross_site"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "http://app.test"}, False),
        ({"Origin": "https://app.test"}, False),
        ({"Origin": "http://other.test"}, True),
        ({"Origin": "http://app.test.other.test"}, True),
        ({"Origin": "http://app.test:8000"}, True),
        ({"Origin": "http://app.test:8000", "Host": "app.test:8000"}, False),
        ({"Origin": "http://[::1]:8000", "Host": "[::1]:8000"}, False),
        ({"Origin": "null"}, True),
        ({"Origin": ""}, True),
        ({"Origin": "app.test"}, True),
        ({"Origin": "http://["}, True),
        (
            {"Sec-Fetch-Site": "same-origin", "Origin": "http://other.test"},
            False,
        ),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://app.test"}, True),
    ],
)
def test_tells_whether_a_page_of_another_site_asks(
    request_with, headers, cross_site
):
    with request_with(headers={"Host": "app.test"} | headers):
        assert is_cross_site() is cross_site
