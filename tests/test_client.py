import re
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import LiveServer, read_until, wait_until, without_comments
from playwright.sync_api import expect
from upstream import Upstream, stream
from upstream import page as one_page

from app import create_app
from demos import client as lesson
from demos import numbers
from event_source import parse_events
from sse import EventStream

PATH = "/stream/client?interval=0.05"


@pytest.fixture
def own():
    """The stream that the lesson reads, with immediate reconnects."""
    first = b"retry: 0\nid: 1\ndata: a\n\n"
    second = b"id: 2\ndata: b\n\n"
    with Upstream(stream(first)) as own:
        own.answer = lambda connection: (
            stream(first, end="cut")
            if len(own.requests) == 1
            else stream(second, end="silent")
        )(connection)
        yield own


@pytest.fixture
def reading(client, own):
    """Return a function that opens the stream, which then reads `own`."""

    def open_stream(**headers):
        sock = SimpleNamespace(getsockname=lambda: own.server_address)
        environ = {"werkzeug.socket": sock}
        return client.get(PATH, environ_overrides=environ, headers=headers)

    return open_stream


def test_reads_from_its_own_server_whatever_the_host_header_says(server):
    with Upstream(one_page(b"", "404 Not Found")) as elsewhere:
        host = f"127.0.0.1:{elsewhere.server_address[1]}"
        with server.get(PATH, Host=host) as client:
            body = read_until(client.chunks(), b"id: 2\n")
    assert elsewhere.requests == []
    assert re.match(
        rb":\nevent: connected\ndata: \n\n"
        rb'id: 1\ndata: {"id":1,"number":\d+}\n\nid: 2\n',
        body,
    )


def test_reports_the_id_with_which_python_reconnects(reading, own):
    with reading() as response:
        body = read_until(response.iter_encoded(), b"data: b\n\n")
    assert without_comments(body) == (
        b"event: connected\ndata: \n\nid: 1\ndata: a\n\n"
        b"event: connected\ndata: 1\n\nid: 2\ndata: b\n\n"
    )
    sent = [request.headers["Last-Event-ID"] for request in own.requests]
    assert sent == [None, "1"]


def test_resumes_after_the_last_event_id_of_its_client(reading, own):
    with reading(Last_Event_ID="41") as response:
        body = read_until(response.iter_encoded(), b"\n\n")
    assert without_comments(body) == b"event: connected\ndata: 41\n\n"
    assert own.requests[0].headers["Last-Event-ID"] == "41"


def test_a_disconnect_wakes_a_reader_that_waits(reading, own, monkeypatch):
    monkeypatch.setattr(lesson, "SILENCE_SECONDS", 300)
    monkeypatch.setenv("HTTP_PROXY", own.url)  # would change the path
    first = b"id: 1\ndata: a\n\n"
    own.answer = stream(first, end="silent")
    with reading() as response:
        read_until(response.iter_encoded(), first)
        (connection,) = own.connections
        assert not connection.disconnected.is_set()
    wait_until(connection.disconnected.is_set)
    (request,) = own.requests
    assert request.path == "/real-time-updates?interval=0.05"


def test_needs_a_server_that_knows_its_address(client):
    response = client.get(PATH)
    assert response.status_code == 501
    assert response.json["error"] == (
        "This needs `flask run`, or gunicorn on a TCP port."
    )


def test_a_refusal_is_reported_and_a_disconnect_frees_both_slots():
    two_slots = LiveServer(create_app({"MAX_STREAMS": 2}))
    with two_slots as server:
        with server.get("/sse?interval=0.05") as other:
            assert other.status == 200
            with server.get(PATH) as client:
                (event,) = parse_events(client.chunks())
        message = "expected an event stream, got 503 and 'application/json'"
        assert (event.event, event.data) == ("failed", message)

        def reads_itself() -> bool:
            with server.get(PATH) as client:
                event = next(parse_events(client.chunks()), None)
                return event is not None and event.event == "connected"

        for _ in range(2):
            wait_until(reads_itself)


def test_page_shows_each_id_once_in_both_columns_after_a_cut(
    live, page, monkeypatch
):
    soon = partial(EventStream, retry=100)
    monkeypatch.setattr(numbers, "EventStream", soon)
    monkeypatch.setattr(lesson, "SILENCE_SECONDS", 300)
    page.goto(f"{live.url}/demos/client")
    page.get_by_label("Interval in seconds").fill("0.3")
    page.get_by_role("button", name="Start").click()
    third = page.get_by_role("row", name=re.compile(r"^3 .* s .* s"))
    third.wait_for()
    page.get_by_role("button", name="Cut both").click()
    for column in (2, 3):
        resumed = page.locator(f"tbody td:nth-child({column})")
        resumed.get_by_text("Last-Event-ID:").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("closed")
    cells = page.locator("tbody td").all_text_contents()
    times = r"\d+\.\d s(, Last-Event-ID: \d+)? "
    ids = [int(id) for id in cells[::3]]
    assert ids == list(range(ids[0], ids[0] - len(ids), -1))
    for column in (cells[1::3], cells[2::3]):
        arrived = [text for text in column if text]
        assert column[-len(arrived) :] == arrived  # one may be behind
        assert all(re.fullmatch(times, text) for text in arrived)
        resumed = [text for text in column if "Last-Event-ID" in text]
        assert len(resumed) == 1

    page.route(
        "**/stream/client*",
        lambda route: route.fulfill(
            body="event: failed\ndata: too many\n\n",
            headers={"Content-Type": "text/event-stream"},
        ),
    )
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#problem")).to_have_text("too many")
    assert page.evaluate("sources[1].readyState") == 2  # CLOSED
