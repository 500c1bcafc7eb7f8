"""Parse any bytes in chunks of any size; reconnect as a browser does."""

import logging
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import pairwise, repeat
from select import select

import pytest
import requests
from conftest import PATIENCE_SECONDS, PROJECT, wait_until
from event_streams import BOM, ENCODED, LAST_IDS, RESPONSES, STREAMS
from hypothesis import given, settings
from hypothesis import strategies as st
from upstream import (
    FRAMINGS,
    Answer,
    Connection,
    Upstream,
    head,
    page,
    reserved_port,
    silence,
)
from upstream import stream as streamed

import event_source
from event_source import (
    EventSource,
    EventTooLarge,
    ReceivedEvent,
    parse_events,
)
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


def test_parses_streams_cut_anywhere():
    for name, (stream, events) in SHORT.items():
        for place in range(min(len(stream), 80)):
            found = dispatched(pieces(stream, [place]))
            assert found == events, (name, place)
        assert dispatched(chunks(stream, 1)) == events, name
        with_empty_chunks = [b"", stream[:1], b"", stream[1:], b""]
        assert dispatched(with_empty_chunks) == events, name


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


TEXTS = st.text("ab :\t\0\r\n\u2028\x85\ufeffé你😀")
ONE_LINE = TEXTS.map(lambda text: re.sub("[\r\n\0]", "", text))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.lists(
        st.builds(
            Event,
            TEXTS,
            event=st.none() | ONE_LINE,
            id=st.none() | ONE_LINE,
            retry=st.none() | st.integers(0, 10**18 - 1),
        ),
        max_size=5,
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


def many_events(size: int) -> bytes:
    return b"id: 1\ndata: xxxx\n\n" * (size // 18)


def many_lines(size: int) -> bytes:
    return b"data: x\n" * (size // 8) + b"\n"


def one_line(size: int) -> bytes:
    return b"data: " + b"x" * size + b"\n\n"


def seconds_to_parse(stream: bytes, chunk_bytes: int) -> float:
    """Return the CPU time. It hardly depends on what else is running."""
    start = time.process_time()
    parts = chunks(stream, chunk_bytes)
    assert sum(1 for _ in parse_events(parts, max_bytes=len(stream))) >= 1
    return time.process_time() - start


@pytest.mark.parametrize(
    ("shape", "size", "chunk_bytes"),
    [
        (many_events, 2**18, 10**9),
        (many_lines, 2**18, 10**9),
        (one_line, 20 * 2**20, 16384),
    ],
)
def test_16_times_the_bytes_do_not_take_100_times_as_long(
    shape, size, chunk_bytes
):
    part = seconds_to_parse(shape(size // 16), chunk_bytes)
    assert seconds_to_parse(shape(size), chunk_bytes) < 100 * part


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


@pytest.mark.parametrize("size", [1, 10**9])
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


@pytest.mark.parametrize("size", [1, 10**9])
def test_a_long_line_without_data_is_rejected(size):
    for line in (b":" + b"x" * 106, b"id: " + b"x" * 103, b"x" * 107):
        with pytest.raises(EventTooLarge):
            list(parse_events(chunks(line + b"\n", size), max_bytes=100))


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


# EventSource

A, B = b"data: a\n\n", b"data: b\n\n"
END = page(b"", "204 No Content")
SOON = b"retry: 0\n"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(END) as upstream:
        yield upstream


@pytest.fixture
def no_wait(monkeypatch) -> None:
    """Reconnect immediately, whatever the reconnection time."""
    monkeypatch.setattr(event_source, "uniform", lambda low, high: 0)


def in_turn(*answers: Answer) -> Answer:
    """Return an answer that differs from request to request."""
    turns = iter(answers)
    return lambda connection: next(turns)(connection)


def last_event_ids(upstream: Upstream) -> list[str | None]:
    """Return the Last-Event-ID of each request."""
    found = [one.headers.get("Last-Event-ID") for one in upstream.requests]
    return [id and id.encode("latin-1").decode() for id in found]


def texts(source: EventSource) -> list[str]:
    return [event.data for event in source]


@pytest.mark.usefixtures("no_wait")
def test_an_event_source_yields_the_events_until_a_204(upstream):
    body = b"retry: 1\nid: 7\nevent: tick\ndata: a\n\n:\ndata: b\n\ndata: c"
    upstream.answer = in_turn(streamed(body), END)
    assert list(EventSource(upstream.url)) == [
        ReceivedEvent("a", "tick", "7", 1),
        ReceivedEvent("b", "message", "7"),
    ]


@pytest.mark.usefixtures("no_wait")
def test_an_event_source_resumes_where_a_browser_does(upstream):
    for name, (body, id) in LAST_IDS.items():
        upstream.connections.clear()
        upstream.answer = in_turn(streamed(body), streamed(A), END)
        *_, last = EventSource(upstream.url)
        ids = [None, id.strip() or None, id.strip() or None]
        assert last_event_ids(upstream) == ids, name
        assert last.id == id, name


def response(status: int, kind: str | None) -> Answer:
    fields = () if kind is None else (f"Content-Type: {kind}",)
    first = head(f"{status} Reason", "Content-Length: 0", *fields)
    return lambda connection: connection.send(first)


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("name", RESPONSES)
def test_an_event_source_fails_where_a_browser_does(upstream, name):
    status, kind, is_read = RESPONSES[name]
    upstream.answer = in_turn(response(status, kind), END)
    source = EventSource(upstream.url)
    if is_read or status == 204:
        assert texts(source) == []
        assert len(upstream.requests) == 1 + is_read
        return
    with pytest.raises(requests.HTTPError) as caught:
        next(source)
    assert str(caught.value) == (
        f"expected an event stream, got {status} and {(kind or '').lower()!r}"
    )
    assert caught.value.response.status_code == status
    assert texts(source) == []
    assert len(upstream.requests) == 1


# The bytes of a stream, and the reconnection time after it.
TIMES = {
    b"data: a\n\n": 3000,
    b"retry: 500\ndata: a\n\n": 500,
    b"retry: 500\n\n": 500,
    b"retry: 500\n": 500,
    b"retry: 0\n\n": 0,
    b"retry: 500\n\nretry: soon\n\n": 500,
    b"retry: 500\n\ndata: a\n\nretry: 700\ndata: b": 700,
    b"retry: 500": 3000,
}


@pytest.mark.usefixtures("no_wait")
def test_a_reconnection_time_counts_even_without_an_event(upstream):
    for body, milliseconds in TIMES.items():
        upstream.answer = in_turn(streamed(body), END)
        source = EventSource(upstream.url)
        texts(source)
        assert source.retry == milliseconds, body


def test_waits_for_the_reconnection_time_with_jitter(
    upstream, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    drawn = []
    monkeypatch.setattr(
        event_source, "uniform", lambda *bounds: drawn.append(bounds) or 1.25
    )
    for retry, seconds in ((b"retry: 200\n", 0.25), (SOON, 0.125)):
        upstream.answer = in_turn(streamed(retry), END)
        start = time.monotonic()
        assert texts(EventSource(upstream.url)) == []
        assert time.monotonic() - start >= seconds
    assert drawn == [(1, 1.5)] * 4  # the end draws one, too
    assert caplog.messages == [
        "Reconnecting in 0.2 s: the response ended",
        "Reconnecting in 0.1 s: the response ended",
    ]


@pytest.mark.parametrize("framing", FRAMINGS)
def test_resumes_after_a_cut_with_no_event_lost_or_repeated(upstream, framing):
    first = b"id: 1\n" + A + b"id: 2\ndata: half an ev"
    upstream.answer = in_turn(
        streamed(SOON, first, framing=framing, end="cut"),
        Connection.close,  # without any response
        streamed(b"id: 2\n" + B, framing=framing),
        END,
    )
    assert texts(EventSource(upstream.url)) == ["a", "b"]
    assert last_event_ids(upstream) == [None, "1", "1", "2"]


@pytest.mark.parametrize(
    "silent",
    [silence, streamed(end="silent"), streamed(A, end="silent")],
    ids=["no response", "no event", "after an event"],
)
@pytest.mark.usefixtures("no_wait")
def test_reconnects_after_silence(upstream, silent):
    # On a slow machine, an answer can be later than the timeout, too.
    upstream.answer = in_turn(silent, *[streamed(B)] * 1000)
    with closing(EventSource(upstream.url, timeout=0.1)) as source:
        wait_until(lambda: next(source).data == "b")
    assert len(upstream.requests) > 1


@pytest.mark.usefixtures("no_wait")
def test_waits_for_a_server_that_is_not_up_yet(caplog):
    caplog.set_level(logging.INFO)
    with reserved_port() as port:
        source = EventSource(f"http://127.0.0.1:{port}/")
        found = []
        thread = threading.Thread(target=lambda: found.extend(source))
        thread.start()
        wait_until(lambda: len(caplog.messages) > 2)
        with Upstream(in_turn(streamed(A), END), port):
            thread.join()
    assert [event.data for event in found] == ["a"]
    assert caplog.messages[0] == "Reconnecting in 0.0 s: ConnectionError"


def test_sends_headers_and_an_id_to_start_after(upstream):
    headers = {"Authorization": "Bearer token", "Accept": "*/*"}
    assert texts(EventSource(upstream.url)) == []
    source = EventSource(upstream.url, headers=headers, last_event_id="7")
    assert texts(source) == []
    first, second = (one.headers for one in upstream.requests)
    assert first["Accept"] == "text/event-stream"
    assert second["Accept"] == "*/*"
    assert second["Authorization"] == "Bearer token"
    assert last_event_ids(upstream) == [None, "7"]


@pytest.mark.usefixtures("no_wait")
def test_uses_the_session_for_every_request(upstream):
    upstream.answer = in_turn(streamed(A), streamed(B), END)
    with requests.Session() as session:
        session.headers["X-Name"] = "reader"
        assert texts(EventSource(upstream.url, session=session)) == ["a", "b"]
    (connection,) = upstream.connections
    names = [one.headers["X-Name"] for one in connection.requests]
    assert names == ["reader"] * 3


def test_follows_a_redirect(upstream):
    elsewhere = f"Location: {upstream.url}/elsewhere"
    redirect = page(b"", "307 Temporary Redirect", "text/html", elsewhere)
    upstream.answer = in_turn(redirect, streamed(A, end="silent"))
    source = EventSource(upstream.url)
    assert next(source).data == "a"
    source.close()


def test_an_event_that_is_too_large_ends_it(upstream):
    upstream.answer = streamed(one_line(4 * 2**20 + 1), end="silent")
    source = EventSource(upstream.url)
    with pytest.raises(EventTooLarge):
        next(source)
    assert next(source, None) is None
    wait_until(upstream.connections[0].disconnected.is_set)


def test_an_invalid_url_or_id_is_an_error_and_not_retried():
    with pytest.raises(requests.exceptions.MissingSchema):
        next(EventSource("/stream"))
    with pytest.raises(requests.exceptions.InvalidHeader):
        next(EventSource("http://127.0.0.1/", last_event_id="1\n2"))


def test_close_between_two_events_disconnects(upstream):
    upstream.answer = streamed(A + B, end="silent")
    source = EventSource(upstream.url)
    assert next(source).data == "a"
    source.close()
    wait_until(upstream.connections[0].disconnected.is_set)
    assert next(source, None) is None
    source.close()  # closing it again has no effect


def test_close_before_the_first_event_sends_no_request(upstream):
    source = EventSource(upstream.url)
    source.close()
    assert texts(source) == []
    assert upstream.requests == []


def waits_in(thread: threading.Thread, *files: str) -> bool:
    """Return whether the thread is in a function of one of the files."""
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code.co_filename.endswith(files)


def check_close_wakes(source: EventSource, *files: str) -> None:
    """Close a source while another thread waits in one of the files."""
    thread = threading.Thread(target=texts, args=[source])
    thread.start()
    wait_until(lambda: source.response is not None)
    wait_until(lambda: waits_in(thread, *files))
    source.close()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert next(source, None) is None


@pytest.mark.parametrize(
    "answer",
    [
        *(streamed(A, framing=one, end="silent") for one in FRAMINGS),
        streamed(A[:6], end="silent"),
    ],
    ids=[*FRAMINGS, "in mid-event"],
)
def test_close_in_another_thread_wakes_the_reader(upstream, answer):
    upstream.answer = answer
    check_close_wakes(EventSource(upstream.url, timeout=None), "/socket.py")
    wait_until(upstream.connections[0].disconnected.is_set)


def test_close_in_another_thread_ends_the_longest_reconnection_time(upstream):
    upstream.answer = streamed(b"retry: 999999999999999999\n")
    check_close_wakes(EventSource(upstream.url), "/threading.py")


def test_close_during_a_read_drops_the_events_that_have_arrived(
    upstream, monkeypatch
):
    upstream.answer = streamed(A, end="silent")
    source = EventSource(upstream.url)
    next(source)

    def read1(*_) -> bytes:
        source.close()  # as another thread can at this moment
        return A + B + B

    monkeypatch.setattr(source.response.raw, "read1", read1)
    assert texts(source) == ["a"]
    wait_until(upstream.connections[0].disconnected.is_set)


def test_a_reader_may_ask_for_an_event_while_another_thread_closes(
    upstream, monkeypatch
):
    upstream.answer = streamed(A, end="silent")
    source = EventSource(upstream.url)
    next(source)
    closing, finish = threading.Event(), threading.Event()
    close = source.response.close

    def close_slowly() -> None:
        closing.set()
        finish.wait(PATIENCE_SECONDS)
        close()

    monkeypatch.setattr(source.response, "close", close_slowly)
    thread = threading.Thread(target=source.close)
    thread.start()
    closing.wait(PATIENCE_SECONDS)
    assert next(source, None) is None
    source.close()
    finish.set()
    thread.join(PATIENCE_SECONDS)
    wait_until(upstream.connections[0].disconnected.is_set)


# python -m event_source


def test_the_command_prints_immediately_and_exits_on_ctrl_c(upstream):
    def answer(connection) -> None:
        first = upstream.requests[0] is connection.request
        streamed(SOON, b"id: 1\n" + A if first else B, end="silent")(connection)

    upstream.answer = answer
    with subprocess.Popen(
        [sys.executable, "-m", "event_source", upstream.url],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in ("1 message a\n", "1 message b\n"):
                wait_until(lambda: select([process.stdout], [], [], 0)[0])
                assert process.stdout.readline() == line
                upstream.connections[0].close()
        finally:
            process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert errors == "Reconnecting in 0.1 s: ProtocolError\n\n"


@pytest.fixture
def run(monkeypatch) -> Callable:
    """Return a function that runs the command in this process."""

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["event_source.py", *arguments])
        runpy.run_path(event_source.__file__, run_name="__main__")

    return run


def test_the_command_prints_events_until_a_204(upstream, run, capsys):
    body = SOON + b"id: 1\ndata: a\ndata: b\n\n"
    upstream.answer = in_turn(streamed(body), END)
    run(upstream.url)
    assert capsys.readouterr().out == "1 message a\nb\n"


def test_the_command_exits_with_the_reason(upstream, run):
    upstream.answer = response(404, "text/html")
    with pytest.raises(SystemExit) as failed:
        run(upstream.url)
    sentence = "expected an event stream, got 404 and 'text/html'"
    assert failed.value.code == sentence
    with pytest.raises(SystemExit) as failed:
        run()
    assert failed.value.code == "Usage: python -m event_source URL"
