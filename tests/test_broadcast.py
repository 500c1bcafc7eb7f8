import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from conftest import PATIENCE_SECONDS, read_until, wait_until, without_comments
from playwright.sync_api import expect

import sse
from demos import broadcast
from demos.broadcast import GAP, MAX_BODY_BYTES, MAX_EVENTS, Channel
from event_source import parse_events
from sse import Event, EventStream

STREAM = "/stream/broadcast"
JSON = "application/json"
NO_TEXT = "text must be text of 1 to 500 characters."
LATE_SECONDS = 100  # later than any test publishes


# The class


@pytest.fixture
def channel(monkeypatch) -> Channel:
    """A channel whose clients need not wait, because events are kept."""
    channel = Channel(3)
    monkeypatch.setattr(channel.published, "wait", must_not_wait)
    return channel


def must_not_wait(seconds: float) -> None:
    raise AssertionError("a client waits, although there is an event")


@pytest.fixture
def quiet_channel(monkeypatch) -> Channel:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.001)
    return Channel(3)


def take(events: Iterator, count: int) -> list[tuple[str, str, str]]:
    """Return the type, id and data of the next events."""
    stream = EventStream(next(events) for _ in range(count)).iter_encoded()
    return [
        (event.event, event.id, event.data) for event in parse_events(stream)
    ]


def messages(ids: list[str], texts: str) -> list[tuple[str, str, str]]:
    return [("message", id, text) for id, text in zip(ids, texts, strict=True)]


def publish_all(channel: Channel, texts: str) -> list[str]:
    return [channel.publish(text) for text in texts]


def test_a_client_that_has_everything_gets_just_the_next_event(channel):
    last = publish_all(channel, "abcde")[-1]
    events = channel.subscribe(last)
    id = channel.publish("f")
    assert take(events, 1) == messages([id], "f")


def test_a_new_client_gets_all_stored_events(channel):
    ids = publish_all(channel, "abcde")
    events = channel.subscribe(None)
    assert take(events, 3) == messages(ids[2:], "cde")


def test_a_slow_client_gets_a_reset_as_soon_as_it_has_missed_an_event(channel):
    events = channel.subscribe(None)
    ids = publish_all(channel, "a")
    assert take(events, 1) == messages(ids, "a")
    ids += publish_all(channel, "bcd")
    on_time = channel.subscribe(ids[0])
    ids += publish_all(channel, "e")
    expected = [("reset", ids[1], GAP), *messages(ids[2:], "cde")]
    assert take(events, 4) == expected
    assert take(on_time, 4) == expected


@pytest.mark.parametrize("count", [0, 2, 5, 9])
def test_an_id_from_before_a_restart_is_a_gap(channel, count):
    last = publish_all(Channel(3), "abcde")[-1]
    ids = publish_all(channel, "123456789"[:count])
    events = channel.subscribe(last)
    ((kind, id, data),) = take(events, 1)
    assert (kind, data) == ("reset", GAP)
    kept = messages(ids, "123456789"[:count])[-3:]
    assert take(channel.subscribe(id), len(kept)) == kept
    assert take(events, len(kept)) == kept
    live = channel.publish("a")
    assert take(events, 1) == messages([live], "a")


@pytest.mark.parametrize("last", ["", "x", "1", "-", "-1", "{}-01", "{}-3"])
def test_an_unknown_id_is_a_gap(channel, last):
    publish_all(channel, "ab")
    events = channel.subscribe(last.format(channel.prefix))
    kinds = [kind for kind, _, _ in take(events, 3)]
    assert kinds == ["reset", "message", "message"]


def test_a_client_that_stops_reading_blocks_nobody(channel):
    events = channel.subscribe(None)
    channel.publish("a")
    next(events)
    publishing = threading.Thread(
        target=channel.publish, args=["b"], daemon=True
    )
    publishing.start()
    publishing.join(PATIENCE_SECONDS)
    assert not publishing.is_alive()


def test_yields_none_when_nothing_is_published(quiet_channel):
    events = quiet_channel.subscribe(None)
    assert [next(events), next(events)] == [None, None]
    id = quiet_channel.publish("a")
    assert take(events, 1) == messages([id], "a")


def waiting(channel: Channel) -> int:
    """Return how many clients wait for the next event."""
    return len(channel.published._waiters)


def test_publishing_wakes_every_client_that_waits(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", LATE_SECONDS)
    channel = Channel(3)
    with ThreadPoolExecutor(10) as pool:
        clients = [channel.subscribe(None) for _ in range(10)]
        received = [pool.submit(next, client) for client in clients]
        wait_until(lambda: waiting(channel) == 10)
        id = channel.publish("a")
        assert waiting(channel) == 0
        expected = f"id: {id}\ndata: a\n\n".encode()
        assert {one.result() for one in received} == {expected}


# The requests


@pytest.fixture(autouse=True)
def _new_channel(monkeypatch):
    monkeypatch.setattr(broadcast, "channel", Channel(MAX_EVENTS))


@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_text_may_have_500_characters_escaped_or_not(client, is_ascii):
    text = "\U0001f600" * 500
    body = json.dumps({"text": text}, ensure_ascii=is_ascii)
    answer = client.post("/broadcast", data=body, content_type=JSON)
    assert answer.status_code == 201
    sent = Event(text, id=answer.json["id"]).encode()
    assert broadcast.channel.events[-1] == sent


def test_a_rejected_text_is_not_published(client):
    for body, status in [
        (b'{"text": ""}', 400),
        (b'{"text": "%b"}' % (501 * b"x"), 400),
        (b'{"text": "no"}'.ljust(MAX_BODY_BYTES + 1), 413),
    ]:
        answer = client.post("/broadcast", data=body, content_type=JSON)
        assert answer.status_code == status, body[:40]
        if status == 400:
            assert answer.json == {"error": NO_TEXT}
    assert not broadcast.channel.events


def test_a_text_is_exactly_these_bytes_for_every_client(server):
    def send(text: str) -> str:
        body = json.dumps({"text": text}).encode()
        with server.post("/broadcast", body, Content_Type=JSON) as answer:
            assert answer.status == 201
            return json.loads(answer.read())["id"]

    last, expected = send("before"), b""
    with ExitStack() as opened:
        clients = []
        for _ in range(2):
            client = server.get(STREAM, Last_Event_ID=last)
            clients.append(opened.enter_context(client))
            assert client.header("Access-Control-Allow-Origin") is None
        for text in ("One", "Two\nlines"):
            lines = text.replace("\n", "\ndata: ")
            expected += f"id: {send(text)}\ndata: {lines}\n\n".encode()
        for client in clients:
            received = read_until(client.chunks(), b"lines\n\n")
            assert without_comments(received) == expected


# The page


def test_the_page_shows_texts_as_text_gaps_and_failures(
    live, page, monkeypatch
):
    channel = Channel(2)
    monkeypatch.setattr(broadcast, "channel", channel)
    channel.publish("From before")
    page.goto(f"{live.url}/demos/broadcast")

    def listen() -> None:
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#state")).to_have_text("open")

    def submit(text: str) -> None:
        field = page.get_by_label("Text", exact=True)
        field.evaluate("(field, text) => { field.value = text; }", text)
        page.get_by_role("button", name="Send").click()

    listen()
    lines = page.locator("#list > *")
    expect(lines).to_have_text(["From before"])
    markup = "<img src=x onerror=alert(1)><b>&amp;"
    submit(markup)
    expect(lines).to_have_text([markup, "From before"])
    assert page.locator("#list > * > *").count() == 0
    listen()
    expect(lines).to_have_text([markup, "From before"])

    page.expected = "Failed to load resource"
    problem = page.locator("#problem")
    submit("x" * 501)
    expect(problem).to_have_text(NO_TEXT)
    page.route("**/broadcast", lambda route: route.abort())
    submit("Lost")
    expect(problem).to_have_text("Failed to fetch")
    page.unroute("**/broadcast")

    with channel.published:  # the page gets no turn until the end
        publish_all(channel, "abc")
    expect(lines).to_have_text(["c", "b", GAP, markup, "From before"])
    expect(page.locator("#list > .gap")).to_have_text(GAP)
    submit("New")
    expect(lines.first).to_have_text("New")
    expect(problem).to_be_empty()
