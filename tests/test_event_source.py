"""Parse event streams: any bytes, in chunks of any size."""

import json
import re
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise, repeat

import pytest
from event_streams import BOM, ENCODED, STREAMS
from hypothesis import given, settings
from hypothesis import strategies as st

from event_source import EventTooLarge, ReceivedEvent, parse_events
from sse import Event


def pieces(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Split a stream at these positions."""
    bounds = [0, *sorted(places), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def chunks(stream: bytes, size: int) -> Iterator[bytes]:
    """Split a stream into chunks of this size."""
    return (stream[at : at + size] for at in range(0, len(stream), size))


def dispatched(parts: Iterable[bytes]) -> list[tuple[str, str, str]]:
    return [(e.event, e.data, e.id) for e in parse_events(parts)]


def test_encoded_events_are_parsed_as_in_a_browser():
    found = {name: dispatched([ENCODED[name][1]]) for name in ENCODED}
    assert found == {name: [event] for name, (_, _, event) in ENCODED.items()}


EXPECTED = {name: events for name, (_, events) in STREAMS.items()}
SHORT = {name: case for name, case in STREAMS.items() if len(case[0]) < 10_000}


def test_parses_complete_streams_as_a_browser_does():
    found = {
        name: dispatched([stream]) for name, (stream, _) in STREAMS.items()
    }
    assert found == EXPECTED


def test_parses_streams_byte_by_byte():
    for name, (stream, events) in SHORT.items():
        assert dispatched(chunks(stream, 1)) == events, name


def test_parses_streams_cut_in_two_anywhere():
    for name, (stream, events) in SHORT.items():
        for place in range(min(len(stream), 80)):
            found = dispatched(pieces(stream, [place]))
            assert found == events, (name, place)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(STREAMS)), st.data())
def test_parses_streams_cut_into_any_chunks(name, data):
    stream, events = STREAMS[name]
    places = data.draw(st.lists(st.integers(0, len(stream))))
    assert dispatched(pieces(stream, places)) == events


def test_ignores_empty_chunks():
    for name, (stream, events) in STREAMS.items():
        parts = [b"", stream[:1], b"", b"", *pieces(stream[1:], [7, 7]), b""]
        assert dispatched(parts) == events, name


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 99)))
def test_the_size_of_chunks_makes_no_difference(stream, places):
    complete = list(parse_events([stream]))
    assert list(parse_events(pieces(stream, places))) == complete


@pytest.mark.parametrize("size", [1, 999])
def test_yields_each_event_as_soon_as_its_blank_line_arrives(size):
    def stream() -> Iterator[bytes]:
        yield from chunks(b"data: a\r\n\r", size)
        raise AssertionError("the parser read on after a complete event")

    assert next(parse_events(stream())).data == "a"


RETRIES = {
    b"retry: 500": 500,
    b"retry:500": 500,
    b"retry: 0": 0,
    b"retry: 007": 7,
    b"retry: 00000000000000000000500": 500,
    b"retry: 999999999999999999": 999999999999999999,
    b"retry: 1\nretry: 2": 2,
    b"retry: 1\nretry: soon": 1,
    b"retry: -1": None,
    b"retry: +1": None,
    b"retry: 1.5": None,
    b"retry: 1e3": None,
    b"retry: 1_000": None,
    b"retry: 0x10": None,
    b"retry: 1 ": None,
    b"retry:  1": None,
    b"retry:": None,
    b"retry": None,
    b"retry: 1\0": None,
    b"Retry: 1": None,
    "retry: \u0661".encode(): None,
    b"retry: \xb9": None,
    b"retry: 1" + b"0" * 5000: None,
    b"retry: " + b"0" * 5000 + b"x": None,
}


def test_retry_must_be_digits_only():
    found = {}
    for fields in RETRIES:
        first, second = parse_events([fields + b"\ndata: a\n\ndata: b\n\n"])
        found[fields] = first.retry
        assert second.retry is None
    assert found == RETRIES


TEXTS = st.text() | st.text("ab :\t\0\r\n\u2028\x85\ufeff")
ONE_LINE = TEXTS.map(lambda text: re.sub("[\r\n\0]", "", text))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.builds(
            Event,
            TEXTS,
            event=st.none() | ONE_LINE,
            id=st.none() | ONE_LINE,
            retry=st.none() | st.integers(0, 10**18 - 1),
        )
    ),
    st.lists(st.integers(0, 999)),
)
def test_encoded_events_are_parsed_back_unchanged(events, places):
    stream = b"".join(event.encode() for event in events)
    expected = []
    last_event_id = ""
    for event in events:
        last_event_id = last_event_id if event.id is None else event.id
        expected.append(
            ReceivedEvent(
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


@settings(deadline=None, max_examples=50)
@given(JSON_VALUES)
def test_json_is_one_line_and_is_parsed_back_unchanged(value):
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
        (many_events, 1, 1),
        (many_events, 5, 65536),
        (many_events, 5, 10**9),
        (many_lines, 0.5, 1),
        (many_lines, 4, 65536),
        (one_line, 0.5, 1),
        (one_line, 40, 65536),
    ],
)
def test_four_times_the_bytes_take_about_four_times_as_long(
    shape, megabytes, chunk_bytes
):
    size = int(megabytes * 2**20)
    quarter = seconds_to_parse(shape(size // 4), chunk_bytes)
    assert seconds_to_parse(shape(size), chunk_bytes) < 10 * quarter


# Each stream ends with 100 bytes of data, before the final blank line.
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
def test_accepts_max_bytes_but_not_one_more(size):
    for stream in FULL.values():
        parts = chunks(stream + b"\n\n", size)
        *_, last = parse_events(parts, max_bytes=100)
        assert len(last.data.encode()) == 100, stream
        parts = chunks(stream + b"x\n\n", size)
        with pytest.raises(EventTooLarge, match="over 100 bytes"):
            list(parse_events(parts, max_bytes=100))


def test_default_limit_is_four_mebibytes():
    data = b"x" * 4 * 2**20
    assert len(list(parse_events([b"data: ", data, b"\n\n"]))) == 1
    with pytest.raises(EventTooLarge, match="over 4194304 bytes"):
        list(parse_events([b"data: ", data, b"x", b"\n\n"]))


def test_an_endless_event_or_line_is_rejected():
    for first in (b"", b":", b"id: ", b"event:", b"data:"):
        for endless in (
            *(b"x", b"data: x\n", b"data\n"),
            *(b"data: x\n:\n", b"data: x\nid: 1\n"),
        ):
            stream = first, *repeat(endless, 200)
            with pytest.raises(EventTooLarge):
                next(parse_events(stream, max_bytes=100))


def test_lines_without_data_do_not_count():
    for lines in (b":\n", b": c\n\n", b"\n", b"id: 1\n\n"):
        stream = (*repeat(lines, 10000), b"data: xxxx\n", lines, b"\n")
        (event,) = parse_events(stream, max_bytes=4)
        assert event.data == "xxxx"


def test_yields_the_events_before_one_that_is_too_large():
    events = parse_events([b"data: a\n\ndata: bb\n\n"], max_bytes=1)
    assert next(events).data == "a"
    with pytest.raises(EventTooLarge):
        next(events)
