import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta

import pytest
from conftest import COMMANDS, Client, Server, read_until
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
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
MARKUP = "<img src=x onerror=alert(1)><b>&amp;"


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


def test_the_next_write_can_use_the_etag_of_each_answer(store, put):
    _, _, etag = put("no", '"stale"')
    for text in ("One", "Two", "Three"):
        status, _, etag = put(text, etag)
        assert status == 200
    assert stored()["text"] == "Three"


IF_MATCH = {
    '"{version}"': 200,
    '"0-0", "{version}"': 200,
    '"{version}","other"': 200,
    "*": 200,
    'W/"{version}"': 412,
    'w/"{version}"': 412,
    '"0-0"': 412,
    '"{version}0"': 412,
    '"0-0", "1-0"': 412,
    '""': 412,
    '"*"': 412,
    "x": 412,
    '"': 428,
    "": 428,
}


def test_if_match_decides_whether_a_write_succeeds(store, put):
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
REFUSED = [
    (b'{"author": "Eve"}', JSON, 400, NO_TEXT),
    (b'{"text": null, "author": "Eve"}', JSON, 400, NO_TEXT),
    (b'{"text": ["x"], "author": "Eve"}', JSON, 400, NO_TEXT),
    (b'{"text":"' + b"x" * 2001 + b'","author":"Eve"}', JSON, 400, NO_TEXT),
    (b'{"text": "no"}', JSON, 400, NO_AUTHOR),
    (b'{"text": "no", "author": ""}', JSON, 400, NO_AUTHOR),
    (b'{"text": "no", "author": 1}', JSON, 400, NO_AUTHOR),
    (
        b'{"text": "no", "author": "' + b"x" * 41 + b'"}',
        JSON,
        400,
        NO_AUTHOR,
    ),
    (b"", JSON, 400, NO_OBJECT),
    (b"[]", JSON, 400, NO_OBJECT),
    (
        GOOD.ljust(MAX_BODY_BYTES + 1),
        JSON,
        413,
        f"The body must have at most {MAX_BODY_BYTES} bytes.",
    ),
    (
        GOOD,
        "text/plain",
        415,
        "The body must have the Content-Type application/json.",
    ),
]


def test_a_refused_write_changes_nothing(client):
    for body, media_type, status, sentence in REFUSED:
        answer = client.put(
            "/document",
            data=body,
            content_type=media_type,
            headers={"If-Match": '"0-0"'},
        )
        found = (answer.status_code, answer.json, answer.headers.get("ETag"))
        assert found == (status, {"error": sentence}, None), body[:40]
        assert stored() is None


def test_a_text_may_have_0_to_2000_characters_however_json_writes_them(client):
    for text in ("", " ", "x" * 2000, "\u4f60" * 2000, "\U0001f600" * 2000):
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
            has_looked.once = all_have_looked.wait(30)
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


def test_a_client_that_reconnects_gets_exactly_what_it_missed(
    store, put, stream
):
    put("before", "*")
    last = version()
    put("One", "*")
    put("Two", "*")
    events = stream(last)
    assert texts(events, 2) == ["One", "Two"]
    put("live", "*")
    assert texts(events, 1) == ["live"]


@pytest.mark.parametrize("last", [None, "x", "1-0"])
def test_a_new_client_starts_with_the_newest_changes(store, put, stream, last):
    written = [str(number) for number in range(HISTORY_EVENTS + 1)]
    for text in written:
        put(text, "*")
    events = stream(last)
    assert next(events).event == "reset"
    assert texts(events, HISTORY_EVENTS) == written[1:]
    put("live", "*")
    assert texts(events, 1) == ["live"]


def test_after_a_restart_old_versions_are_unknown(put, stream, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(broker.time, "time_ns", lambda: 1_000_000)
        _, _, etag = put("forgotten", "*")
    monkeypatch.setattr(broker, "BROKER", MemoryBroker())
    assert put("kept", etag) == (
        412,
        {"error": STALE, "version": BEGIN, "current": None},
        '"0-0"',
    )
    assert put("kept", '"0-0"')[0] == 200
    events = stream(etag.strip('"'))
    assert next(events).event == "reset"
    assert texts(events, 1) == ["kept"]


# Servers


def write(
    server: Server, text: str, if_match: str, author: str = "Ada"
) -> tuple[int, dict, str | None]:
    """Write over a real connection. Return the status, body and ETag."""
    body = json.dumps({"text": text, "author": author}).encode()
    headers = {"Content-Type": JSON, "If-Match": if_match}
    with Client(server.port, "PUT", "/document", body, headers) as client:
        return client.status, json.loads(client.read()), client.header("ETag")


def current(server: Server) -> tuple[str, dict | None]:
    """Return the current version and change, by making a stale write."""
    status, body, _ = write(server, "", '"stale"')
    assert status == 412
    return body["version"], body["current"]


def overwrite(server: Server, text: str, author: str = "Ada") -> str:
    """Write regardless of the version, and return the new one."""
    status, body, _ = write(server, text, "*", author)
    assert status == 200
    return body["version"]


def test_a_change_is_exactly_these_bytes(server):
    old = overwrite(server, "before")
    with server.get("/stream/document", Last_Event_ID=old) as client:
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        assert client.header("Access-Control-Allow-Origin") is None
        chunks = client.chunks()
        assert re.fullmatch(rb"retry: \d{4}\n", next(chunks))
        before = datetime.now(UTC).replace(microsecond=0)
        status, answer, etag = write(
            server, 'Größe "1"\n<b>👋', f'"{old}"', "Zoë"
        )
        received = read_until(chunks, b"\n\n").decode()
        after = datetime.now(UTC)
    new = answer["version"]
    assert (status, answer, etag) == (200, {"version": new}, f'"{new}"')
    at = json.loads(received.partition("data: ")[2])["at"]
    assert received == (
        f"id: {new}\n"
        'data: {"text":"Größe \\"1\\"\\n<b>👋","author":"Zoë",'
        f'"at":"{at}"}}\n\n'
    )
    assert at.endswith("+00:00")
    assert before <= datetime.fromisoformat(at) <= after + timedelta(seconds=1)


@pytest.fixture(scope="module")
def instances(redis_server) -> Iterator[list[Server]]:
    """Two servers that share one Redis."""
    with ExitStack() as stack:
        running = []
        for command in COMMANDS.values():
            running.append(Server(command, REDIS_URL=redis_server.url))
            stack.callback(running[-1].stop)
        yield running


def assert_one_wins(servers: list[Server]) -> None:
    """Let 20 writers start from the same version concurrently."""
    old = overwrite(servers[0], "before")
    ready = threading.Barrier(20)

    def one(number: int) -> tuple:
        ready.wait()
        server = servers[number % len(servers)]
        return write(server, f"text {number}", f'"{old}"')

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(20)))
    (winner,) = [n for n, answer in enumerate(answers) if answer[0] == 200]
    _, body, etag = answers.pop(winner)
    new, change = current(servers[-1])
    assert (etag, body) == (f'"{new}"', {"version": new})
    assert change["text"] == f"text {winner}"
    refusal = {"error": STALE, "version": new, "current": change}
    assert answers == [(412, refusal, etag)] * 19


def test_one_of_20_concurrent_writers_wins(server):
    assert_one_wins([server])


def test_one_of_20_concurrent_writers_on_two_servers_wins(instances):
    for _ in range(3):
        assert_one_wins(instances)


def test_clients_of_one_server_get_the_writes_of_the_other(instances):
    one, other = instances
    old = overwrite(one, "before")
    with other.get("/stream/document", Last_Event_ID=old) as client:
        events = parse_events(client.chunks())
        overwrite(one, "One")
        overwrite(other, "Two")
        assert texts(events, 2) == ["One", "Two"]


# The page


def text_of(page: Page):
    return page.get_by_label("The document")


def press(page: Page, name: str) -> None:
    """Press a button by keyboard. A click waits for a window to be in front."""
    page.get_by_role("button", name=name, exact=True).press("Enter")


def begin(page: Page, url: str, author: str, version: str) -> None:
    """Open the page, and wait until it shows this version.

    The text alone is not enough, because an older version may have had it too.
    """
    page.goto(f"{url}/demos/document")
    page.get_by_label("Your name").fill(author)
    press(page, "Start")
    while page.evaluate("base.version") != version:
        page.wait_for_timeout(10)


def save(page: Page, text: str) -> None:
    text_of(page).fill(text)
    press(page, "Save")


def expect_message(page: Page, sentence: str) -> None:
    expect(page.locator("#problem")).to_have_text(sentence)


@pytest.fixture
def ada(page, site) -> Page:
    """A page that shows the text "Hello"."""
    begin(page, site.url, "Ada", overwrite(site, "Hello"))
    page.expected = "412"
    return page


@pytest.fixture
def grace(ada, site) -> Iterator[Page]:
    """A second window, next to that of `ada`."""
    with closing(ada.context.new_page()) as page:
        begin(page, site.url, "Grace", ada.evaluate("base.version"))
        yield page


def test_each_window_immediately_shows_what_the_other_saves(ada, grace):
    save(ada, "Hello world")
    expect_message(ada, "Saved.")
    expect(text_of(grace)).to_have_value("Hello world")
    save(grace, "<b>Hello</b> you")
    expect_message(grace, "Saved.")
    expect(text_of(ada)).to_have_value("<b>Hello</b> you")
    newest = ada.locator("#list > *").first
    expect(newest).to_contain_text("Grace: <b>Hello</b> you")
    assert ada.locator("#list b").count() == 0


def meet(ada: Page, grace: Page) -> None:
    """Let both change the same version. Ada is the slower writer."""
    text_of(ada).fill("Ada's")
    save(grace, "Grace's")
    expect_message(grace, "Saved.")
    expect(ada.locator("#list > *").first).to_contain_text("Grace's")
    assert text_of(ada).input_value() == "Ada's"
    press(ada, "Save")
    expect_message(ada, "Somebody else has changed the document.")
    expect(ada.locator("#theirs")).to_have_text("Grace's")


def test_the_slower_writer_may_replace_the_text_that_it_has_seen(ada, grace):
    meet(ada, grace)
    press(ada, "Save")
    expect_message(ada, "Saved.")
    expect(ada.locator("#conflict")).to_be_hidden()
    expect(text_of(grace)).to_have_value("Ada's")


def test_the_slower_writer_may_take_the_newest_text(ada, grace):
    meet(ada, grace)
    save(grace, "Grace's again")
    expect(ada.locator("#list > *").first).to_contain_text("Grace's again")
    press(ada, "take theirs")
    expect(text_of(ada)).to_have_value("Grace's again")
    expect(ada.locator("#conflict")).to_be_hidden()
    save(ada, "Both")
    expect_message(ada, "Saved.")


def test_a_further_conflict_is_shown_again(ada, grace):
    meet(ada, grace)
    save(grace, "Grace's again")
    expect(ada.locator("#list > *").first).to_contain_text("Grace's again")
    press(ada, "Save")
    expect(ada.locator("#theirs")).to_have_text("Grace's again")


def test_a_page_without_a_stream_overwrites_nothing(ada, site):
    press(ada, "Stop")
    overwrite(site, "Unseen")
    save(ada, "Ada's")
    expect(ada.locator("#theirs")).to_have_text("Unseen")
    assert current(site)[1]["text"] == "Unseen"


def test_a_second_start_keeps_the_text_in_the_field(ada, site):
    text_of(ada).fill("Half a thought")
    press(ada, "Start")
    overwrite(site, "Hello again")
    expect(ada.locator("#list > *").first).to_contain_text("Hello again")
    assert text_of(ada).input_value() == "Half a thought"


def test_the_page_shows_new_versions_after_one_with_other_line_ends(ada, site):
    overwrite(site, "one\r\ntwo")
    expect(text_of(ada)).to_have_value("one\ntwo")
    overwrite(site, "three")
    expect(text_of(ada)).to_have_value("three")


def test_a_text_that_a_restarted_server_has_lost_can_be_saved(start, page):
    server = start("flask run")
    begin(page, server.url, "Ada", overwrite(server, "Kept in memory"))
    server.stop()
    state = page.locator("#state")
    expect(state).to_have_text("reconnecting")
    start("flask run", port=server.port)
    expect(state).to_have_text("open")
    save(page, "Typed since")
    expect_message(page, "Somebody else has changed the document.")
    press(page, "Save")
    expect_message(page, "Saved.")
    assert current(server)[1]["text"] == "Typed since"
    page.problems.clear()


def test_the_page_shows_why_a_save_was_refused(ada):
    ada.expected = "400"
    ada.evaluate("document.querySelector('#author').value = 'x'.repeat(41)")
    press(ada, "Save")
    expect_message(ada, "author must be text of 1 to 40 characters.")
    assert ada.locator("#conflict").is_hidden()
