import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from conftest import COMMANDS, Server, read_until, wait_until
from playwright.sync_api import Page, expect

from broker import newest
from demos.notifications import MAX_BODY_BYTES
from event_source import parse_events
from sse import Event

STREAM = "/stream/notifications"
NO_TEXT = "text must be text of 1 to 500 characters."
NO_LEVEL = "level must be one of info, warning, alert."
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
DOWN = "Redis is not available. Try again in a few seconds."
MARKUP = "<img src=x onerror=alert(1)><b>&amp;"
JSON = "application/json"


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


def until(events: Iterator[Event], last: str) -> list[tuple[str, str]]:
    """Return the id and text of each event, up to the text `last`."""
    received = []
    for event in events:
        assert event.event == "message"
        received.append((event.id, json.loads(event.data)["text"]))
        if received[-1][1] == last:
            return received
    raise AssertionError(f"the stream ended after {received}")


def test_all_clients_get_each_notification_with_the_id_of_its_answer(
    store, send, stream
):
    send("before")
    clients = [stream() for _ in range(3)]
    for client in clients:
        place(client)  # without any earlier notification
    sent = [(send(text), text) for text in ("One", "Two", "Three")]
    for client in clients:
        assert until(client, "Three") == sent


def test_a_client_that_reconnects_gets_exactly_what_it_missed(
    store, send, stream
):
    first = send("before")
    missed = [(send(text), text) for text in ("One", "Two")]
    events = stream(first)
    live = (send("live"), "live")
    assert until(events, "live") == [*missed, live]


def test_a_client_that_disconnects_after_begin_misses_nothing(
    store, send, stream
):
    last = place(stream())
    sent = (send("missed"), "missed")
    assert until(stream(last), "missed") == [sent]


@pytest.mark.parametrize("last", ["x", "1-0", "9999999999999-0", "-", "$"])
def test_an_unknown_id_gets_a_reset_and_then_everything(
    store, send, stream, last
):
    id = send("kept")
    events = stream(last)
    reset = next(events)
    assert (reset.event, reset.data) == (
        "reset",
        "Earlier events have been discarded.",
    )
    assert re.fullmatch(r"\d+-\d+", reset.id)
    assert until(events, "kept") == [(id, "kept")]


def test_a_text_may_have_1_to_500_characters_however_json_writes_them(client):
    for text in ("x", " ", "x" * 500, "\U0001f600" * 500, "\u4f60" * 500):
        for is_ascii in (True, False):
            body = {"text": text, "level": "info"}
            answer = client.post(
                "/notifications",
                data=json.dumps(body, ensure_ascii=is_ascii),
                content_type=JSON,
            )
            assert answer.status_code == 201
            assert json.loads(newest("notifications").data) == body


GOOD = b'{"text": "no", "level": "info"}'
REFUSED = [
    *[
        (f"{{{members}}}".encode(), JSON, 400, sentence)
        for members, sentence in [
            ('"text": "", "level": "info"', NO_TEXT),
            (f'"text": "{"x" * 501}", "level": "info"', NO_TEXT),
            (f'"text": "{chr(0x1F600) * 501}", "level": "info"', NO_TEXT),
            ('"text": 1, "level": "info"', NO_TEXT),
            ('"text": null, "level": "info"', NO_TEXT),
            ('"text": ["x"], "level": "info"', NO_TEXT),
            ('"level": "info"', NO_TEXT),
            ('"text": "x"', NO_LEVEL),
            ('"text": "x", "level": "error"', NO_LEVEL),
            ('"text": "x", "level": "INFO"', NO_LEVEL),
            ('"text": "x", "level": ""', NO_LEVEL),
            ('"text": "x", "level": null', NO_LEVEL),
            ('"text": "x", "level": ["info"]', NO_LEVEL),
            ('"text": "x", "level": {"info": 1}', NO_LEVEL),
        ]
    ],
    (b"", JSON, 400, NO_OBJECT),
    (b'{"text": "no"', JSON, 400, NO_OBJECT),
    (b'["no", "info"]', JSON, 400, NO_OBJECT),
    (
        GOOD.ljust(MAX_BODY_BYTES + 1),
        JSON,
        413,
        "The body must have at most 16384 bytes.",
    ),
    (
        GOOD,
        "text/plain",
        415,
        "The body must have the Content-Type application/json.",
    ),
]


def test_a_refused_notification_is_not_published(client):
    for body, media_type, status, sentence in REFUSED:
        answer = client.post(
            "/notifications", data=body, content_type=media_type
        )
        found = answer.status_code, answer.json
        assert found == (status, {"error": sentence}), body[:40]
        assert newest("notifications") is None


def test_a_body_of_the_maximum_size_is_accepted(client):
    answer = client.post(
        "/notifications", data=GOOD.ljust(MAX_BODY_BYTES), content_type=JSON
    )
    assert answer.status_code == 201


# Servers


def post(server: Server, text: str, level: str = "info") -> str:
    body = json.dumps({"text": text, "level": level}).encode()
    with server.post("/notifications", body, Content_Type=JSON) as client:
        assert client.status == 201
        return json.loads(client.read())["id"]


def test_a_notification_is_exactly_these_bytes(server):
    with server.get(STREAM) as client:
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        assert client.header("Access-Control-Allow-Origin") is None
        chunks = client.chunks()
        beginning = read_until(chunks, b"\n\n").decode()
        retry, rest = beginning.split("\n", 1)
        assert re.fullmatch(r"retry: \d{4}", retry)
        place = beginning.rpartition(" ")[2].strip()
        assert rest == f"id: {place}\nevent: begin\ndata: {place}\n\n"
        id = post(server, 'Grüße, "👋"\nand a line', "alert")
        assert read_until(chunks, b"\n\n").decode() == (
            f"id: {id}\n"
            'data: {"text":"Grüße, \\"👋\\"\\nand a line","level":"alert"}\n\n'
        )


def test_while_redis_is_down_only_sending_fails(start, own_redis):
    one, other = (
        start(command, REDIS_URL=own_redis.url) for command in COMMANDS.values()
    )
    with other.get(STREAM) as client:
        events = parse_events(client.chunks())
        last = place(events)
        first = (post(one, "One"), "One")
        assert until(events, "One") == [first]

        own_redis.stop()
        with one.post("/notifications", GOOD, Content_Type=JSON) as refused:
            assert refused.status == 503
            assert refused.header("Retry-After") == "5"
            assert json.loads(refused.read()) == {"error": DOWN}

        own_redis.start()
        second = (post(other, "Two"), "Two")
        assert until(events, "Two") == [second]
    with one.get(STREAM, Last_Event_ID=last) as client:
        events = parse_events(client.chunks())
        assert until(events, "Two") == [first, second]


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


def test_two_windows_show_the_same(lesson_page):
    page = listen(lesson_page("notifications"))
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open a second window").click()
    with closing(opened.value) as popup:
        popup.wait_for_load_state()
        listen(popup)
        submit(page, "From here", "warning")
        submit(popup, MARKUP, "alert")
        expected = [f"alert: {MARKUP}", "warning: From here"]
        for window in (page, popup):
            wait_until(lambda: shown(window) == expected)  # noqa: B023
            assert window.locator("#list > * > *").count() == 0
            assert window.locator("#list > .alert").count() == 1


def test_a_refused_text_stays_in_its_field_next_to_the_reason(lesson_page):
    page = listen(lesson_page("notifications"))
    text = "x" * 501  # longer than anyone can type into the field
    page.get_by_label("Text", exact=True).evaluate(
        "(e, text) => e.value = text", text
    )
    page.get_by_role("button", name="Send").click()
    problem = page.locator("#problem")
    expect(problem).to_have_text(NO_TEXT)
    assert page.get_by_label("Text", exact=True).input_value() == text
    submit(page, "short enough")
    expect(problem).to_be_empty()
    expect(page.locator("#list > *")).to_have_text(["info: short enough"])
    assert "400" in page.problems.pop()


def test_the_page_shows_that_the_server_is_down_and_then_the_gap(start, page):
    server = start("flask run")
    page.goto(f"{server.url}/demos/notifications")
    listen(page)
    submit(page, "Held in memory")
    expect(page.locator("#list > *")).to_have_count(1)

    server.stop()
    state = page.locator("#state")
    expect(state).to_have_text("reconnecting")
    submit(page, "Not lost")
    expect(page.locator("#problem")).to_have_text("Failed to fetch")
    assert page.get_by_label("Text", exact=True).input_value() == "Not lost"

    start("flask run", port=server.port)
    expect(state).to_have_text("open")
    page.get_by_role("button", name="Send").click()
    gap = "gap: Some may be missing here."
    expected = ["info: Not lost", gap, "info: Held in memory"]
    expect(page.locator("#list > *")).to_have_text(expected)
    page.problems.clear()
