import json
import re
from contextlib import closing

import pytest
from conftest import Client, Server, read_until, wait_until
from playwright.sync_api import Page, expect

from event_source import parse_events

STREAM = "/stream/notifications"
MAX_BODY_BYTES = 16 * 1024
NO_TEXT = "text must be a text of 1 to 500 characters."
NO_LEVEL = "level must be one of info, warning, alert."
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
MARKUP = "<img src=x onerror=alert(1)><b>&amp;"


def post(server: Server, body: bytes, **headers: str) -> Client:
    headers = {"Content_Type": "application/json"} | headers
    return server.post("/notifications", body, **headers)


def send(server: Server, text: str, level: str = "info") -> str:
    """Send a notification and return the id that the answer tells."""
    body = json.dumps({"text": text, "level": level}).encode()
    with post(server, body) as client:
        assert client.status == 201
        answer = json.loads(client.read())
    assert list(answer) == ["id"]
    return answer["id"]


def error(client: Client) -> tuple[int, str]:
    with client:
        body = json.loads(client.read())
    assert list(body) == ["error"]
    return client.status, body["error"]


def begun(server: Server, **headers: str) -> tuple[Client, str]:
    """Open a stream, and return it with the id that it goes on from."""
    client = server.get(STREAM, **headers)
    event = next(parse_events(client.chunks()))
    assert event.event == "begin"
    assert event.data == event.id
    return client, event.id


def texts_until(client: Client, last: str) -> list[tuple[str, str]]:
    """Return the id and text of all that comes, up to the text `last`."""
    received = []
    for event in parse_events(client.chunks()):
        assert event.event == "message"
        received.append((event.id, json.loads(event.data)["text"]))
        if received[-1][1] == last:
            return received
    raise AssertionError(f"the stream ended after {received}")


def test_a_notification_is_exactly_these_bytes(server):
    with server.get(STREAM) as client:
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        assert client.header("Access-Control-Allow-Origin") is None
        chunks = client.chunks()
        beginning = read_until(chunks, b"\n\n").decode()
        place = beginning.rpartition(" ")[2].strip()
        assert beginning == (f":\nid: {place}\nevent: begin\ndata: {place}\n\n")
        id = send(server, 'Grüße, "👋"\nand a line', "alert")
        assert read_until(chunks, b"\n\n").decode() == (
            f"id: {id}\n"
            'data: {"text":"Grüße, \\"👋\\"\\nand a line","level":"alert"}\n\n'
        )


def test_all_readers_receive_each_notification_with_the_id_of_its_answer(
    server,
):
    readers = [begun(server)[0] for _ in range(3)]
    sent = [(send(server, text), text) for text in ("One", "Two", "Three")]
    for reader in readers:
        with reader:
            assert texts_until(reader, "Three") == sent


@pytest.mark.parametrize(
    "text",
    ["x", " ", "x" * 500, "\U0001f600" * 500, "\u4f60" * 500],
    ids=["one", "space", "500", "500 emoji", "500 Chinese"],
)
@pytest.mark.parametrize("is_ascii", [True, False], ids=["escaped", "UTF-8"])
def test_a_text_may_have_1_to_500_characters(server, text, is_ascii):
    client, _ = begun(server)
    body = {"text": text, "level": "info"}
    body = json.dumps(body, ensure_ascii=is_ascii).encode()
    with client, post(server, body) as answer:
        assert answer.status == 201
        assert texts_until(client, text)[0][1] == text


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
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
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_text_or_level_is_refused(server, members, sentence):
    body = f"{{{members}}}".encode()
    assert error(post(server, body)) == (400, sentence)


GOOD = b'{"text": "no", "level": "info"}'


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b"", {}, 400, NO_OBJECT),
        (b'{"text": "no"', {}, 400, NO_OBJECT),
        (b'["no", "info"]', {}, 400, NO_OBJECT),
        (
            GOOD.ljust(MAX_BODY_BYTES + 1),
            {},
            413,
            "The body must have at most 16384 bytes.",
        ),
        (
            GOOD,
            {"Content_Type": "text/plain"},
            415,
            "The body must have the Content-Type application/json.",
        ),
    ],
)
def test_what_is_refused_is_published_to_nobody(
    server, body, headers, status, sentence
):
    client, _ = begun(server)
    assert error(post(server, body, **headers)) == (status, sentence)
    id = send(server, "after")
    with client:
        assert texts_until(client, "after") == [(id, "after")]


def test_a_body_of_the_greatest_size_is_taken(server):
    with post(server, GOOD.ljust(MAX_BODY_BYTES)) as client:
        assert client.status == 201


def test_who_was_away_receives_exactly_what_was_missed(server):
    first = send(server, "before")
    missed = [(send(server, text), text) for text in ("One", "Two")]
    with server.get(STREAM, Last_Event_ID=first) as client:
        id = send(server, "live")
        assert texts_until(client, "live") == [*missed, (id, "live")]


def test_who_left_before_any_notification_misses_none(server):
    client, place = begun(server)
    client.close()
    id = send(server, "meanwhile")
    with server.get(STREAM, Last_Event_ID=place) as client:
        assert texts_until(client, "meanwhile") == [(id, "meanwhile")]


def test_without_an_id_nothing_from_before_comes(server):
    send(server, "before")
    client, _ = begun(server)
    id = send(server, "after")
    with client:
        assert texts_until(client, "after") == [(id, "after")]


@pytest.mark.parametrize("last", ["x", "1-0", "9999999999999-0", "-", "$"])
def test_an_id_that_is_not_held_gets_a_reset_and_then_all(server, last):
    id = send(server, "held")
    with server.get(STREAM, Last_Event_ID=last) as client:
        chunks = client.chunks()
        assert next(chunks) == b":\n"
        received = read_until(chunks, f"id: {id}\n".encode()).decode()
    assert re.match(
        r"id: \d+-\d+\nevent: reset\n"
        r"data: Earlier events have been discarded\.\n\nid: ",
        received,
    )
    assert received.count("event: reset") == 1


@pytest.fixture
def two(start, own_redis) -> tuple[Server, Server]:
    """Two servers, as they run for real, and a Redis between them."""
    return tuple(start("gunicorn", REDIS_URL=own_redis.url) for _ in range(2))


def test_while_redis_is_away_only_sending_fails(two, own_redis):
    one, other = two
    client, place = begun(other)
    with client:
        id = send(one, "One")
        assert texts_until(client, "One") == [(id, "One")]

        own_redis.stop()
        with post(one, GOOD) as refused:
            assert refused.header("Retry-After") == "5"
            assert error(refused) == (
                503,
                "Redis is not available. Try again in a few seconds.",
            )

        own_redis.start()
        later = send(other, "Two")
        assert texts_until(client, "Two") == [(later, "Two")]
    with one.get(STREAM, Last_Event_ID=place) as client:
        assert texts_until(client, "Two") == [(id, "One"), (later, "Two")]


def shown(page: Page) -> list[str]:
    return page.locator("#list > *").all_text_contents()


def listen(page: Page) -> Page:
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#state")).to_have_text("open")
    return page


def submit(page: Page, text: str, level: str = "info") -> None:
    page.get_by_label("Text").fill(text)
    page.get_by_label("Level").select_option(level)
    page.get_by_role("button", name="Send").click()


def test_two_windows_show_the_same(lesson_page):
    page = listen(lesson_page("notifications"))
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Open a second window").click()
    with closing(opened.value) as popup:
        listen(popup)
        submit(page, "From here", "warning")
        expect(page.get_by_label("Text")).to_have_value("")
        submit(popup, MARKUP, "alert")
        expected = [f"alert: {MARKUP}", "warning: From here"]
        for window in (page, popup):
            wait_until(lambda: shown(window) == expected)  # noqa: B023
            assert window.locator("#list > * > *").count() == 0
            assert window.locator("#list > .alert").count() == 1


def test_a_refused_text_stays_in_its_field_beside_the_reason(lesson_page):
    page = listen(lesson_page("notifications"))
    text = "x" * 501  # the field would not let anybody type it
    page.get_by_label("Text").evaluate("(e, text) => e.value = text", text)
    page.get_by_role("button", name="Send").click()
    problem = page.get_by_role("alert")
    expect(problem).to_have_text(NO_TEXT)
    assert page.get_by_label("Text").input_value() == text
    submit(page, "short enough")
    expect(problem).to_be_empty()
    expect(page.get_by_label("Text")).to_have_value("")
    expect(page.locator("#list > *")).to_have_text(["info: short enough"])
    assert "400" in page.problems.pop()


AFTER_FETCH = """() => {
  const fetch = window.fetch;
  window.isAnswered = false;
  window.fetch = async (...request) => {
    const response = await fetch(...request);
    setTimeout(() => { window.isAnswered = true; });
    return response;
  };
}"""


def test_what_is_typed_while_a_text_is_sent_stays(lesson_page):
    page = lesson_page("notifications")
    held = []
    page.evaluate(AFTER_FETCH)
    page.route("**/notifications", lambda route: held.append(route))
    submit(page, "First")
    wait_until(lambda: held or page.wait_for_timeout(10))
    page.get_by_label("Text").fill("Second")
    held[0].continue_()
    wait_until(lambda: page.evaluate("isAnswered"))
    assert page.get_by_label("Text").input_value() == "Second"


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
    expect(page.get_by_role("alert")).to_have_text("Failed to fetch")
    assert page.get_by_label("Text").input_value() == "Not lost"

    start("flask run", port=server.port)
    expect(state).to_have_text("open")
    page.get_by_role("button", name="Send").click()
    gap = "gap: Some notifications may be missing here."
    expected = ["info: Not lost", gap, "info: Held in memory"]
    expect(page.locator("#list > *")).to_have_text(expected)
    page.problems.clear()
