import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import pytest
from conftest import PATIENCE_SECONDS, wait_until
from playwright.sync_api import Page, expect

import broker
from broker import BEGIN, MemoryBroker, newest
from demos import document
from demos.document import HISTORY_EVENTS, MAX_BODY_BYTES
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event

STALE = "Somebody else has changed the document."
NO_VERSION = 'Name the version you changed: If-Match: "id".'
NO_TEXT = "text must be text of 0 to 2000 characters."
NO_AUTHOR = "author must be text of 1 to 40 characters."
DOWN = "Redis is not available. Try again in a few seconds."


# Writing to a channel in memory or in Redis


@pytest.fixture
def put(client):
    """Return a function that writes a text through the test client."""

    def put(text, if_match, author="Ada"):
        answer = client.put(
            "/document",
            json={"text": text, "author": author},
            headers={"If-Match": if_match},
        )
        return answer.status_code, answer.json, answer.headers.get("ETag")

    return put


def stored() -> dict | None:
    event = newest("document")
    return json.loads(event.data) if event else None


def version() -> str:
    event = newest("document")
    return event.id if event else BEGIN


def test_a_stale_write_gets_the_current_text_and_changes_nothing(store, put):
    assert put("One", '"1-0"') == (
        412,
        {"error": STALE, "version": BEGIN, "current": None},
        '"0-0"',
    )
    status, body, etag = put("One", '"0-0"')
    assert (status, body) == (200, {"version": version()})
    assert etag == f'"{version()}"'
    _, _, newer = put("Two", etag, "Grace")
    change = stored()
    assert set(change) == {"text", "author", "at"}
    assert (change["text"], change["author"]) == ("Two", "Grace")
    assert put("Three", etag) == (
        412,
        {"error": STALE, "version": version(), "current": change},
        newer,
    )
    assert stored() == change


IF_MATCH = {
    '"{version}"': 200,
    '"0-0", "{version}"': 200,
    '"{version}","other"': 200,
    "*": 200,
    'W/"{version}"': 412,
    '"0-0"': 412,
    '"{version}0"': 412,
    '"*"': 412,
    "x": 412,
    "": 428,
}


def test_if_match_decides_whether_a_write_succeeds(put):
    put("before", "*")
    for if_match, expected in IF_MATCH.items():
        before = version()
        status, body, etag = put(
            if_match, if_match.replace("{version}", before)
        )
        assert status == expected, if_match
        if status == 200:
            assert (stored()["text"], version()) == (if_match, body["version"])
            continue
        assert version() == before
        if status == 412:
            assert (body["error"], etag) == (STALE, f'"{before}"')
        else:
            assert (body, etag) == ({"error": NO_VERSION}, None)


GOOD = b'{"text": "no", "author": "Eve"}'
JSON = "application/json"
TOO_LARGE = f"The body must have at most {MAX_BODY_BYTES} bytes."
REFUSED = [
    (b'{"author": "Eve"}', 400, NO_TEXT),
    (b'{"text":"' + b"x" * 2001 + b'","author":"Eve"}', 400, NO_TEXT),
    (b'{"text": "no", "author": ""}', 400, NO_AUTHOR),
    (b'{"text":"no","author":"' + b"x" * 41 + b'"}', 400, NO_AUTHOR),
    (GOOD.ljust(MAX_BODY_BYTES + 1), 413, TOO_LARGE),
]


def test_a_refused_write_changes_nothing(client):
    for body, status, sentence in REFUSED:
        answer = client.put(
            "/document",
            data=body,
            content_type=JSON,
            headers={"If-Match": '"0-0"'},
        )
        found = (answer.status_code, answer.json, answer.headers.get("ETag"))
        assert found == (status, {"error": sentence}, None), body[:40]
        assert stored() is None


def test_a_text_may_have_0_to_2000_characters_however_json_writes_them(client):
    for text in ("", "\U0001f600" * 2000):
        for is_ascii in (False, True):
            body = {"text": text, "author": "x" * 40}
            answer = client.put(
                "/document",
                data=json.dumps(body, ensure_ascii=is_ascii),
                content_type=JSON,
                headers={"If-Match": "*"},
            )
            assert answer.status_code == 200
            assert stored()["text"] == text


def test_one_writer_wins_even_if_all_have_seen_the_current_version(
    store, app, monkeypatch
):
    all_have_looked = threading.Barrier(8)
    has_looked = threading.local()

    def look(channel: str) -> Event | None:
        event = newest(channel)
        if not hasattr(has_looked, "once"):
            has_looked.once = all_have_looked.wait(PATIENCE_SECONDS)
        return event

    monkeypatch.setattr(document, "newest", look)

    def one(number: int) -> int:
        body = {"text": str(number), "author": "Ada"}
        headers = {"If-Match": '"0-0"'}
        answer = app.test_client().put("/document", json=body, headers=headers)
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(one, range(8)))
    assert sorted(statuses) == [200] + [412] * 7


def test_while_redis_is_down_only_writing_fails(
    client, put, stream, own_redis, monkeypatch
):
    monkeypatch.setattr(broker, "BROKER", RedisBroker(own_redis.url))
    _, _, etag = put("One", "*")
    events = stream()
    assert texts(events, 1) == ["One"]
    own_redis.stop()
    refused = client.put(
        "/document",
        data=GOOD,
        content_type=JSON,
        headers={"If-Match": etag},
    )
    assert refused.headers["Retry-After"] == "5"
    assert (refused.status_code, refused.json) == (503, {"error": DOWN})
    own_redis.start()
    assert put("Two", etag)[0] == 200
    assert texts(events, 1) == ["Two"]


# Reading


@pytest.fixture
def stream(client):
    """Return a function that opens the stream through the test client."""
    with ExitStack() as opened:

        def stream(last: str | None = None) -> Iterator[Event]:
            headers = {} if last is None else {"Last-Event-ID": last}
            response = client.get(
                "/stream/document", headers=headers, buffered=False
            )
            opened.enter_context(closing(response))
            return parse_events(response.response)

        yield stream


def texts(events: Iterator[Event], count: int) -> list[str]:
    return [json.loads(next(events).data)["text"] for _ in range(count)]


@pytest.mark.parametrize("last", [None, "x"])
def test_a_new_client_starts_with_the_newest_changes(put, stream, last):
    written = [str(number) for number in range(HISTORY_EVENTS + 1)]
    for text in written:
        put(text, "*")
    events = stream(last)
    assert next(events).event == "reset"
    assert texts(events, HISTORY_EVENTS) == written[1:]
    put("live", "*")
    assert texts(events, 1) == ["live"]


def test_a_change_is_exactly_these_bytes(client, put):
    put("before", "*")
    headers = {"Last-Event-ID": version()}
    with client.get("/stream/document", headers=headers) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert "Access-Control-Allow-Origin" not in response.headers
        chunks = response.iter_encoded()
        assert re.fullmatch(rb"retry: [2-5]\d{3}\n", next(chunks))
        before = datetime.now(UTC).replace(microsecond=0)
        put('Größe "1"\n<b>👋', "*", "Zoë")
        received = next(chunks).decode()
        after = datetime.now(UTC)
    at = json.loads(received.partition("data: ")[2])["at"]
    assert received == (
        f"id: {version()}\n"
        'data: {"text":"Größe \\"1\\"\\n<b>👋","author":"Zoë",'
        f'"at":"{at}"}}\n\n'
    )
    assert re.fullmatch(r"[-\d]{10}T[:\d]{8}\+00:00", at)
    assert before <= datetime.fromisoformat(at) <= after


# The page


def text_of(page: Page):
    return page.get_by_label("The document")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def save(page: Page, text: str) -> None:
    text_of(page).fill(text)
    press(page, "Save")


def expect_message(page: Page, sentence: str) -> None:
    expect(page.locator("#problem")).to_have_text(sentence)


def expect_newest(page: Page, change: str) -> None:
    expect(page.locator("#list > *").first).to_contain_text(change)


@pytest.fixture
def ada(page, live, put) -> Page:
    """A page that shows the text "Hello", and may be refused a write."""
    put("Hello", "*")
    page.goto(f"{live.url}/demos/document")
    page.get_by_label("Your name").fill("Ada")
    press(page, "Start")
    expect(text_of(page)).to_have_value("Hello")
    page.expected = "Failed to load resource"
    return page


def test_the_page_shows_what_others_save_and_saves_its_own_text(ada, put):
    put("<b>Hello</b> world", "*", "Grace")
    expect(text_of(ada)).to_have_value("<b>Hello</b> world")
    expect_newest(ada, "Grace: <b>Hello</b> world")
    assert ada.locator("#list b").count() == 0
    save(ada, "Hello you")
    expect_message(ada, "Saved.")
    expect_newest(ada, "Ada: Hello you")
    assert (stored()["text"], stored()["author"]) == ("Hello you", "Ada")
    put("one\r\ntwo", "*")  # which a textarea shows without CR
    expect(text_of(ada)).to_have_value("one\ntwo")
    put("three", "*")
    expect(text_of(ada)).to_have_value("three")


def test_the_slower_writer_may_replace_or_take_what_it_has_seen(ada, put):
    text_of(ada).fill("Ada's")
    for text in ("Grace's", "Grace's again"):
        put(text, "*", "Grace")
        expect_newest(ada, f"Grace: {text}")
        assert text_of(ada).input_value() == "Ada's"
        press(ada, "Save")
        expect_message(ada, STALE)
        expect(ada.locator("#theirs")).to_have_text(text)
    press(ada, "Save")
    expect_message(ada, "Saved.")
    expect(ada.locator("#conflict")).to_be_hidden()
    assert stored()["text"] == "Ada's"

    text_of(ada).fill("Ada's again")
    put("Grace's", "*")
    expect_newest(ada, "Grace's")
    press(ada, "Save")
    expect(ada.locator("#theirs")).to_have_text("Grace's")
    put("Grace's again", "*")
    expect_newest(ada, "Grace's again")
    press(ada, "take theirs")
    expect(text_of(ada)).to_have_value("Grace's again")
    expect(ada.locator("#conflict")).to_be_hidden()
    save(ada, "Both")
    expect_message(ada, "Saved.")


def test_a_page_overwrites_nothing_that_it_has_not_shown(ada, put):
    text_of(ada).fill("Half a thought")
    press(ada, "Start")
    put("Hello again", "*")
    expect_newest(ada, "Hello again")
    assert text_of(ada).input_value() == "Half a thought"
    press(ada, "Stop")
    expect(ada.locator("#state")).to_have_text("closed")
    put("Unseen", "*")
    press(ada, "Save")
    expect(ada.locator("#theirs")).to_have_text("Unseen")
    assert stored()["text"] == "Unseen"
    for text in ("Now seen", "and continued"):
        save(ada, text)
        wait_until(lambda text=text: stored()["text"] == text)


def test_a_text_that_a_restarted_server_has_lost_can_be_saved(ada, monkeypatch):
    monkeypatch.setattr(broker, "BROKER", MemoryBroker())
    save(ada, "Typed since")
    expect_message(ada, STALE)
    press(ada, "Save")
    expect_message(ada, "Saved.")
    assert stored()["text"] == "Typed since"
    ada.evaluate("document.querySelector('#author').value = 'x'.repeat(41)")
    press(ada, "Save")
    expect_message(ada, NO_AUTHOR)
    expect(ada.locator("#conflict")).to_be_hidden()
