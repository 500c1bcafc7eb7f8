import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
from conftest import COMMANDS, PROJECT, Server, read_until, wait_until
from playwright.sync_api import Page, expect

import sse
from demos import broadcast
from demos.broadcast import GAP, MAX_BODY_BYTES, MAX_EVENTS, Channel
from event_source import parse_events
from sse import Event, EventStream

STREAM = "/stream/broadcast"
JSON = "application/json"
NO_TEXT = "text must be text of 1 to 500 characters."
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
LATE_SECONDS = 40  # later than a test waits for a result


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


def test_a_client_gets_each_event_with_the_id_that_publish_returned(channel):
    events = channel.subscribe(None)
    ids = publish_all(channel, "ab")
    assert take(events, 2) == messages(ids, "ab")
    assert len(set(ids)) == 2


def test_two_clients_get_the_same_bytes(channel):
    one, other = channel.subscribe(None), channel.subscribe(None)
    ids = publish_all(channel, ["Grüße\n👋", "\ud800"])
    expected = [
        f"id: {ids[0]}\ndata: Grüße\ndata: 👋\n\n".encode(),
        f"id: {ids[1]}\ndata: ?\n\n".encode(),
    ]
    for events in (one, other):
        assert [next(events), next(events)] == expected


def test_a_client_resumes_after_any_stored_event(channel):
    ids = publish_all(channel, "abcde")
    for place in (2, 3, 4):  # c, d and e are kept
        events = channel.subscribe(ids[place - 1])
        rest = slice(place, None)
        expected = messages(ids[rest], "abcde"[rest])
        assert take(events, len(expected)) == expected


def test_a_client_that_has_everything_gets_just_the_next_event(channel):
    last = publish_all(channel, "abcde")[-1]
    events = channel.subscribe(last)
    id = channel.publish("f")
    assert take(events, 1) == messages([id], "f")


def test_a_new_client_gets_all_stored_events(channel):
    ids = publish_all(channel, "abcde")
    events = channel.subscribe(None)
    assert take(events, 3) == messages(ids[2:], "cde")


def test_a_reset_reports_a_gap_before_the_stored_events(channel):
    ids = publish_all(channel, "abcde")
    reset, *rest = take(channel.subscribe(ids[0]), 4)
    assert reset == ("reset", ids[1], GAP)
    assert rest == messages(ids[2:], "cde")


def test_a_reset_has_an_id_to_resume_from(channel):
    ids = publish_all(channel, "abcde")
    ((_, id, _),) = take(channel.subscribe(ids[0]), 1)
    assert take(channel.subscribe(id), 3) == messages(ids[2:], "cde")


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
    publishing.join(20)
    assert not publishing.is_alive()


def test_memory_is_bounded(channel):
    publish_all(channel, 1000 * "a")
    assert len(channel.events) == 3


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
        expected = f"id: {id}\ndata: a\n\n".encode()
        assert {one.result(20) for one in received} == {expected}


def test_concurrent_publishers_lose_nothing_and_clients_agree(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", LATE_SECONDS)
    channel, texts = Channel(1000), [str(number) for number in range(100)]
    start = threading.Barrier(10)

    def publish(name: int) -> list[str]:
        start.wait(30)
        return publish_all(channel, [f"{name} {text}" for text in texts])

    def read(events: Iterator) -> list[tuple[str, str, str]]:
        start.wait(30)
        return take(events, 800)

    with ThreadPoolExecutor(10) as pool:
        clients = [channel.subscribe(None) for _ in range(2)]
        reading = [pool.submit(read, client) for client in clients]
        ids = [id for some in pool.map(publish, range(8)) for id in some]
        one, other = (future.result(20) for future in reading)
    assert one == other
    assert [id for _, id, _ in one] == sorted(
        ids, key=lambda id: int(id.split("-")[1])
    )
    for name in range(8):
        own = [data.split()[1] for _, _, data in one if data[0] == str(name)]
        assert own == texts


def test_a_client_that_closes_leaves_nothing_behind(quiet_channel):
    for _ in range(200):
        with closing(quiet_channel.subscribe(None)) as events:
            assert next(events) is None
    assert waiting(quiet_channel) == 0


# The requests


@pytest.fixture(autouse=True)
def _new_channel(monkeypatch):
    monkeypatch.setattr(broadcast, "channel", Channel(MAX_EVENTS))


def test_a_text_may_have_1_to_500_characters_escaped_or_not(client):
    for text in ("x", " ", "x" * 500, "\U0001f600" * 500):
        for is_ascii in (True, False):
            answer = client.post(
                "/broadcast",
                data=json.dumps({"text": text}, ensure_ascii=is_ascii),
                content_type=JSON,
            )
            assert answer.status_code == 201
            id = answer.json["id"]
            sent = Event(text, id=id).encode()
            assert broadcast.channel.events[-1] == sent


GOOD = b'{"text": "no"}'
REFUSED = [
    (b"{}", JSON, 400, NO_TEXT),
    (b'{"text": ""}', JSON, 400, NO_TEXT),
    (b'{"text": "%b"}' % (501 * b"x"), JSON, 400, NO_TEXT),
    (b'{"text": 1}', JSON, 400, NO_TEXT),
    (b'{"text": null}', JSON, 400, NO_TEXT),
    (b'{"text": ["x"]}', JSON, 400, NO_TEXT),
    (b"", JSON, 400, NO_OBJECT),
    (b'{"text": "no"', JSON, 400, NO_OBJECT),
    (b'["no"]', JSON, 400, NO_OBJECT),
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


def test_a_rejected_text_is_not_published(client):
    for body, media_type, status, sentence in REFUSED:
        answer = client.post("/broadcast", data=body, content_type=media_type)
        found = answer.status_code, answer.json
        assert found == (status, {"error": sentence}), body[:40]
    assert not broadcast.channel.events


def test_accepts_a_body_of_the_maximum_size(client):
    answer = client.post(
        "/broadcast", data=GOOD.ljust(MAX_BODY_BYTES), content_type=JSON
    )
    assert answer.status_code == 201


# Servers


def post(server: Server, text: str) -> str:
    body = json.dumps({"text": text}).encode()
    with server.post("/broadcast", body, Content_Type=JSON) as client:
        assert client.status == 201
        return json.loads(client.read())["id"]


@pytest.fixture(params=COMMANDS)
def own_server(request, start) -> Server:
    """A server whose heartbeat comes too late for the client of the tests."""
    return start(COMMANDS[request.param], FLASK_KEEP_ALIVE_SECONDS="25")


def test_a_text_is_sent_immediately_as_exactly_these_bytes(own_server):
    with ExitStack() as opened:
        clients = []
        for _ in range(2):
            client = opened.enter_context(own_server.get(STREAM))
            assert client.header("Content-Type") == "text/event-stream"
            assert client.header("Access-Control-Allow-Origin") is None
            clients.append(client.chunks())
            assert next(clients[-1]) == b":\n"
        for text in ("One", "Two\nlines"):
            id = post(own_server, text)
            lines = text.replace("\n", "\ndata: ")
            for chunks in clients:
                received = read_until(chunks, b"\n\n").decode()
                assert received == f"id: {id}\ndata: {lines}\n\n"


def test_a_client_resumes_and_after_a_restart_gets_a_reset(own_server, start):
    server, texts = own_server, ("One", "Two", "Three")
    ids = [post(server, text) for text in texts]

    def first_events(last: str, count: int) -> list[tuple[str, str]]:
        with server.get(STREAM, Last_Event_ID=last) as client:
            events = parse_events(client.chunks())
            found = [next(events) for _ in range(count)]
            return [(event.event, event.data) for event in found]

    missed = [("message", text) for text in texts[1:]]
    assert first_events(ids[0], 2) == missed
    server.stop()
    server = start("flask run", port=server.port)
    post(server, "New")
    again = [("reset", GAP), ("message", "New")]
    for last in ids:
        assert first_events(last, 2) == again


PROBE = {"PYTHONPATH": str(PROJECT / "tests")}  # to import `probe`


@pytest.mark.parametrize(
    "command", ["flask --app probe run", "gunicorn probe:app"]
)
def test_200_clients_that_disconnect_leave_nothing_behind(command, start):
    server = start(command, FLASK_KEEP_ALIVE_SECONDS="0.5", **PROBE)

    def alive() -> dict[str, int]:
        with server.get("/probe", Connection="close") as client:
            return json.loads(client.read())

    alive()
    before = alive()
    with ExitStack() as opened:
        for _ in range(200):
            client = opened.enter_context(server.get(STREAM))
            assert client.status == 200
        assert alive()["streams"] >= before["streams"] + 200
        id = post(server, "To all")
        with server.get(STREAM) as client:
            received = read_until(client.chunks(), b"\n\n")
            assert f"id: {id}\n".encode() in received
    wait_until(lambda: all(n <= before[key] for key, n in alive().items()))
    assert not server.logged("Traceback")


# The page


def submit(page: Page, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


def listen(page: Page) -> None:
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#state")).to_have_text("open")


def test_the_page_shows_texts_as_text_and_the_gap_after_a_restart(start, page):
    server = start("flask run")
    post(server, "From before")
    page.goto(f"{server.url}/demos/broadcast")
    listen(page)
    lines = page.locator("#list > *")
    expect(lines).to_have_text(["From before"])
    markup = "<img src=x onerror=alert(1)><b>&amp;"
    submit(page, markup)
    expect(lines).to_have_text([markup, "From before"])
    assert page.locator("#list > * > *").count() == 0
    listen(page)
    expect(lines).to_have_text([markup, "From before"])

    server.stop()
    state = page.locator("#state")
    expect(state).to_have_text("reconnecting")
    submit(page, "Lost")
    problem = page.locator("#problem")
    expect(problem).to_have_text("Failed to fetch")

    start("flask run", port=server.port)
    expect(state).to_have_text("open")
    submit(page, "New")
    expect(problem).to_be_empty()
    expect(lines).to_have_text(["New", GAP, markup, "From before"])
    expect(page.locator("#list > .gap")).to_have_text(GAP)
    page.problems.clear()


def test_the_page_shows_why_a_text_was_rejected(lesson_page):
    page = lesson_page("broadcast")
    page.get_by_label("Text", exact=True).evaluate(
        "(e, text) => e.value = text", "x" * 501
    )
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#problem")).to_have_text(NO_TEXT)
    assert "400" in page.problems.pop()
