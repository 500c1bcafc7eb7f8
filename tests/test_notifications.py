import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice

import pytest
from conftest import wait_until
from playwright.sync_api import Page, expect

from broker import forget, newest
from demos.notifications import MAX_BODY_BYTES
from event_source import parse_events
from sse import Event

STREAM = "/stream/notifications"
NO_TEXT = "text must be text of 1 to 500 characters."
NO_LEVEL = "level must be one of info, warning, alert."
MARKUP = "<img src=x onerror=alert(1)><b>&amp;"


# With the channel in memory or in Redis


@pytest.fixture
def send(client):
    """Return a function that sends a notification and returns its id."""

    def send(text: str, level: str = "info") -> str:
        answer = client.post(
            "/notifications", json={"text": text, "level": level}
        )
        assert answer.status_code == 201
        assert list(answer.json) == ["id"]
        return answer.json["id"]

    return send


@pytest.fixture
def stream(client):
    """Return a function that opens the stream through the test client."""
    with ExitStack() as opened:

        def stream(last: str | None = None) -> Iterator[Event]:
            headers = {} if last is None else {"Last-Event-ID": last}
            response = client.get(STREAM, headers=headers, buffered=False)
            opened.enter_context(closing(response))
            return parse_events(response.response)

        yield stream


@pytest.mark.parametrize("path", [STREAM, "/stream/prices", "/stream/document"])
def test_each_client_reconnects_after_2_to_5_seconds(client, path):
    retries = set()
    for _ in range(20):
        with client.get(path, buffered=False) as response:
            field, value = next(iter(response.response)).split(b": ")
        assert field == b"retry"
        retries.add(int(value))
    assert len(retries) > 10
    assert 2000 <= min(retries) < max(retries) <= 5000


def place(events: Iterator[Event]) -> str:
    """Read the first event, and return the id to resume from."""
    event = next(events)
    assert event.event == "begin"
    assert event.data == event.id
    return event.id


def texts(events: Iterator[Event], count: int) -> list[tuple[str, str]]:
    """Return the id and text of each of the next events."""
    received = []
    for event in islice(events, count):
        assert event.event == "message"
        received.append((event.id, json.loads(event.data)["text"]))
    return received


def test_all_clients_get_each_notification_with_the_id_of_its_answer(
    store, send, stream
):
    first = (send("before"), "before")
    clients = [stream() for _ in range(3)]
    for client in clients:
        place(client)  # without any earlier notification
    sent = [(send(text), text) for text in ("One", "Two", "Three")]
    for client in clients:
        assert texts(client, 3) == sent
    assert texts(stream(first[0]), 3) == sent
    unknown = stream("1-0")
    assert next(unknown).event == "reset"
    assert texts(unknown, 4) == [first, *sent]


def test_a_notification_is_exactly_these_bytes(client, send):
    with client.get(STREAM) as response:
        assert "Access-Control-Allow-Origin" not in response.headers
        chunks = iter(response.response)
        retry, begin = next(chunks).decode(), next(chunks).decode()
        assert re.fullmatch(r"retry: \d{4}\n", retry)
        place = begin.rpartition(" ")[2].strip()
        assert begin == f"id: {place}\nevent: begin\ndata: {place}\n\n"
        id = send('Grüße, "👋"\nand a line', "alert")
        assert next(chunks).decode() == (
            f"id: {id}\n"
            'data: {"text":"Grüße, \\"👋\\"\\nand a line","level":"alert"}\n\n'
        )


def test_a_text_may_have_1_to_500_characters(client):
    for text in (" ", "\U0001f600" * 500):
        body = {"text": text, "level": "info"}
        answer = client.post("/notifications", json=body)
        assert answer.status_code == 201
        assert json.loads(newest("notifications").data) == body


def test_a_refused_notification_is_not_published(client):
    for body, status, sentence in [
        ({"text": "", "level": "info"}, 400, NO_TEXT),
        ({"text": "\U0001f600" * 501, "level": "info"}, 400, NO_TEXT),
        ({"level": "info"}, 400, NO_TEXT),
        ({"text": "x"}, 400, NO_LEVEL),
        ({"text": "x", "level": "INFO"}, 400, NO_LEVEL),
        ({"text": "x", "level": ""}, 400, NO_LEVEL),
        ({"text": "x", "level": ["info"]}, 400, NO_LEVEL),
        (
            {"text": "x", "level": "info", "more": "x" * MAX_BODY_BYTES},
            413,
            "The body must have at most 16384 bytes.",
        ),
    ]:
        answer = client.post("/notifications", json=body)
        found = answer.status_code, answer.json
        assert found == (status, {"error": sentence}), body
    headers = {"Sec-Fetch-Site": "cross-site"}
    body = {"text": "x", "level": "info"}
    answer = client.post("/notifications", json=body, headers=headers)
    assert answer.status_code == 403
    assert newest("notifications") is None


# The page


def shown(page: Page) -> list[str]:
    return page.locator("#list > *").all_text_contents()


def listen(page: Page) -> Page:
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#state")).to_have_text("open")
    return page


def submit(page: Page, text: str, level: str = "info") -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Level").select_option(level)
    page.get_by_role("button", name="Send").click()


def test_two_windows_show_the_same_and_a_gap(live, page):
    page.goto(f"{live.url}/demos/notifications")
    listen(page)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open a second window").click()
    with closing(opened.value) as popup:
        popup.wait_for_load_state()
        listen(popup)
        submit(page, "From here", "warning")
        expect(popup.locator("#list > *")).to_have_count(1)
        submit(popup, MARKUP, "alert")
        expected = [f"alert: {MARKUP}", "warning: From here"]
        for window in (page, popup):
            wait_until(lambda: shown(window) == expected)  # noqa: B023
            assert window.locator("#list > * > *").count() == 0
            assert window.locator("#list > .alert").count() == 1
        forget("notifications")
        gap = "gap: Some may be missing here."
        for window in (page, popup):
            expect(window.locator("#list > *").first).to_have_text(gap)


def test_a_text_that_was_not_sent_stays_in_its_field_next_to_the_reason(
    lesson_page,
):
    page = listen(lesson_page("notifications"))
    field = page.get_by_label("Text", exact=True)
    problem = page.locator("#problem")
    text = "x" * 501  # longer than anyone can type into the field
    field.evaluate("(e, text) => e.value = text", text)
    page.get_by_role("button", name="Send").click()
    expect(problem).to_have_text(NO_TEXT)
    assert field.input_value() == text

    broken = {"status": 502, "body": "<h1>Bad gateway</h1>"}
    page.route("**/notifications", lambda route: route.fulfill(**broken))
    submit(page, "short enough")
    expect(problem).to_have_text("The server answered 502.")
    assert field.input_value() == "short enough"
    page.unroute_all()
    page.get_by_role("button", name="Send").click()
    expect(problem).to_be_empty()
    expect(page.locator("#list > *")).to_have_text(["info: short enough"])
    page.expected = "Failed to load resource"
