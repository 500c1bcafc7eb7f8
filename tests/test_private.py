import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import (
    JSON,
    PROJECT,
    Server,
    free_port,
    log_in,
    open_stream,
    read_until,
    wait_until,
)
from playwright.sync_api import Page, expect

from broker import forget, newest, publish
from demos import private
from event_source import parse_events
from sse import Event

STREAM = "/stream/private"
LOG_IN = {"error": "Log in first: POST your name to /login."}
NO_NAME = "name must be text of 1 to 40 characters."
NO_RECIPIENT = "to must be text of 1 to 40 characters."
NO_TEXT = "text must be text of 1 to 500 characters."
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
FINAL = ("logout", "You are logged out.")
MARKUP = "<img src=x onerror=alert(1)><b>&amp;"


class User:
    """A browser of its own, with its cookies."""

    def __init__(self, app, opened: ExitStack, name: str | None):
        self._client, self._opened = app.test_client(), opened
        if name is not None:
            self.log_in(name)

    def log_in(self, name: str) -> None:
        answer = self._client.post("/login", json={"name": name})
        assert (answer.status_code, answer.json) == (200, {"name": name})

    def log_out(self) -> None:
        assert self._client.post("/logout").status_code == 204

    @property
    def cookie(self) -> str:
        return self._client.get_cookie("session").value

    def copy_cookie(self, cookie: str) -> None:
        self._client.set_cookie("session", cookie)

    def send(self, to: str, text: str) -> str:
        message = {"to": to, "text": text}
        answer = self._client.post("/messages", json=message)
        assert answer.status_code == 201
        return answer.json["id"]

    def open(self, last: str | None = None) -> Iterator[Event]:
        headers = {} if last is None else {"Last-Event-ID": last}
        response = self._client.get(STREAM, headers=headers, buffered=False)
        assert response.status_code == 200
        self._opened.enter_context(closing(response))
        return parse_events(response.response)

    def refused(self) -> bool:
        """Return whether the stream and a message both get 401."""
        message = {"to": "Ada", "text": "Hello"}
        stream = self._client.get(STREAM)
        sending = self._client.post("/messages", json=message)
        return [(one.status_code, one.json) for one in (stream, sending)] == [
            (401, LOG_IN),
            (401, LOG_IN),
        ]


@pytest.fixture
def user(app) -> Iterator[Callable[..., User]]:
    with ExitStack() as opened:
        yield lambda name=None: User(app, opened, name)


def begin(user: User) -> Iterator[Event]:
    events = user.open()
    assert next(events).event == "begin"
    return events


def message(event: Event) -> tuple[str, str, str]:
    assert event.event == "message"
    content = json.loads(event.data)
    assert list(content) == ["from", "text"]
    return event.id, content["from"], content["text"]


def is_final(events: Iterator[Event]) -> bool:
    """Return whether the next event is the last one, as the page expects."""
    final = next(events)
    return (final.event, final.data) == FINAL and next(events, None) is None


# Who gets what


def test_a_message_reaches_only_its_recipient_in_all_of_their_windows(
    store, user
):
    ada, ben = user("Ada"), user("Ben")
    windows = [begin(ada), begin(ada), begin(user("Ada"))]
    bens = begin(ben)
    to_ben = ada.send("Ben", "for Ben")
    to_ada = ben.send("Ada", "for Ada")
    note = ada.send("Ada", "for myself")
    for window in windows:
        assert message(next(window)) == (to_ada, "Ben", "for Ada")
        assert message(next(window)) == (note, "Ada", "for myself")
    assert message(next(bens)) == (to_ben, "Ada", "for Ben")


def test_a_client_that_reconnects_gets_what_it_missed(store, user):
    ada = user("Ada")
    place = next(ada.open()).id
    missed = ada.send("Ada", "missed")
    assert message(next(ada.open(place))) == (missed, "Ada", "missed")


def test_the_id_of_another_users_event_shows_none_of_their_events(store, user):
    ada, ben = user("Ada"), user("Ben")
    first = ada.send("Ada", "secret")
    ada.send("Ada", "another secret")
    own = ben.send("Ben", "mine")
    events = ben.open(first)
    assert next(events).event == "reset"
    assert message(next(events)) == (own, "Ben", "mine")
    live = ada.send("Ben", "live")
    assert message(next(events)) == (live, "Ada", "live")


def test_a_name_may_contain_any_character(store, user):
    for name in ("x", " ", "Ada'", "a/b:c", "\U0001f600" * 40, "\ud800", "\0"):
        one = user(name)
        events = begin(one)
        id = one.send(name, "Hello")
        assert next(events).id == id


# Without a login


def test_without_a_login_the_answer_is_401_in_json(user):
    assert user().refused()


def test_rejects_a_forged_cookie(user):
    thief, cookie = user(), user("Ada").cookie
    for place in (5, cookie.rindex(".") + 1):  # in content and signature
        other = "A" if cookie[place] != "A" else "B"
        forged = f"{cookie[:place]}{other}{cookie[place + 1 :]}"
        thief.copy_cookie(forged)
        assert thief.refused()


def test_scripts_cannot_read_the_cookie_and_other_sites_cannot_send_it(client):
    answer = client.post("/login", json={"name": "Ada"})
    name, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert name.startswith("session=")
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=Strict"]


# The end of a login


def test_a_logout_ends_all_streams_of_that_login_and_no_other(store, user):
    ada, phone, ben = user("Ada"), user("Ada"), user("Ben")
    tabs = [begin(ada) for _ in range(3)]
    others = [begin(phone), begin(ben)]
    ada.log_out()
    assert all(map(is_final, tabs))
    assert next(others[0]).event == "ended"  # ignored by the page
    for other, name in zip(others, ("Ada", "Ben"), strict=True):
        id = ben.send(name, "still here")
        assert message(next(other)) == (id, "Ben", "still here")
    assert ada.refused()


def test_a_copied_cookie_ends_with_the_logout(store, user):
    ada, thief = user("Ada"), user()
    thief.copy_cookie(ada.cookie)
    stolen, place = begin(thief), ada.send("Ada", "one")
    assert message(next(stolen)) == (place, "Ada", "one")
    cookie = ada.cookie
    ada.log_out()
    assert is_final(stolen)
    for _ in range(2):  # after a new login as well
        thief.copy_cookie(cookie)
        assert thief.refused()
        ada.log_in("Ada")


def test_a_new_login_ends_the_one_before_it(store, user):
    browser = user("Ada")
    events, cookie = begin(browser), browser.cookie
    browser.log_in("Ben")
    assert is_final(events)
    browser.copy_cookie(cookie)
    assert browser.refused()


def test_a_logout_while_a_stream_opens_is_not_missed(store, user, monkeypatch):
    ada, thief = user("Ada"), user()
    thief.copy_cookie(ada.cookie)
    subscribe = private.subscribe

    def subscribe_late(*arguments):
        if ada:
            ada.log_out()
        return subscribe(*arguments)

    monkeypatch.setattr(private, "subscribe", subscribe_late)
    answer = thief._client.get(STREAM)
    assert (answer.status_code, answer.json) == (401, LOG_IN)


def test_a_logout_that_was_discarded_ends_the_stream_after_the_gap(store, user):
    ada = user("Ada")
    events = begin(ada)
    ada.send("Ada", "seen")
    assert message(next(events))[2] == "seen"
    with ada._client.session_transaction() as session:
        forget(session["login"]["id"])
    forget(private.channel_of("Ada"))
    publish(private.channel_of("Ada"), Event("too late"))
    received = [(event.event, event.data) for event in events]
    assert received == [FINAL]


@pytest.fixture
def pass_time(monkeypatch) -> Callable[[float], None]:
    def pass_time(seconds: float) -> None:
        later = time.time() + seconds
        clock = SimpleNamespace(time=lambda: later)
        monkeypatch.setattr(private, "time", clock)

    return pass_time


def test_a_login_that_expires_ends_its_silent_streams(store, user, pass_time):
    ada = user("Ada")
    events = begin(ada)
    pass_time(private.LIFETIME_SECONDS - 60)
    still = begin(ada)
    pass_time(private.LIFETIME_SECONDS + 60)
    assert is_final(events)
    assert is_final(still)
    assert ada.refused()


def test_an_expired_login_gets_no_more_messages(user, pass_time):
    ada, ben = user("Ada"), user("Ben")
    events = begin(ada)
    ben.send("Ada", "too late")
    pass_time(private.LIFETIME_SECONDS + 60)
    assert is_final(events)


# Invalid requests

LONG = "x" * 41
REFUSED = [
    ("/login", b'{"name": ""}', JSON, 400, NO_NAME),
    ("/login", f'{{"name": "{LONG}"}}'.encode(), JSON, 400, NO_NAME),
    ("/login", b'{"name": ["Ada"]}', JSON, 400, NO_NAME),
    ("/login", b"{}", JSON, 400, NO_NAME),
    ("/login", b'"Ada"', JSON, 400, NO_OBJECT),
    (
        "/login",
        b"name=Ada",
        "application/x-www-form-urlencoded",
        415,
        "The body must have the Content-Type application/json.",
    ),
    (
        "/login",
        b'{"name": "Ada"}'.ljust(private.MAX_BODY_BYTES + 1),
        JSON,
        413,
        "The body must have at most 16384 bytes.",
    ),
    ("/messages", b'{"text": "a"}', JSON, 400, NO_RECIPIENT),
    ("/messages", b'{"to": "", "text": "a"}', JSON, 400, NO_RECIPIENT),
    ("/messages", b'{"to": null, "text": "a"}', JSON, 400, NO_RECIPIENT),
    ("/messages", b'{"to": "Ada"}', JSON, 400, NO_TEXT),
    ("/messages", b'{"to": "Ada", "text": ""}', JSON, 400, NO_TEXT),
]


def test_a_rejected_request_changes_nothing(client):
    client.post("/login", json={"name": "Ada"})
    for path, body, media_type, status, sentence in REFUSED:
        answer = client.post(path, data=body, content_type=media_type)
        found = answer.status_code, answer.json
        assert found == (status, {"error": sentence}), body[:40]
        assert "Set-Cookie" not in answer.headers
    assert newest(private.channel_of("Ada")) is None


def test_a_logout_without_a_login_is_not_an_error(client):
    assert client.post("/logout").status_code == 204


# Servers


def post(server: Server, path: str, cookie: str, **body: str) -> int:
    headers = {"Content_Type": JSON, "Cookie": cookie}
    with server.post(path, json.dumps(body).encode(), **headers) as answer:
        return answer.status


def test_sends_exactly_these_bytes(server):
    with open_stream(server, "private") as client:
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        assert client.header("Access-Control-Allow-Origin") is None
        chunks = client.chunks()
        start = read_until(chunks, b"\n\n").decode()
        id = start.split()[2]
        assert start == f":\nid: {id}\nevent: begin\ndata: {id}\n\n"
        ben = log_in(server, "Ben")
        assert post(server, "/messages", ben, to="Ada", text="Grüße\n") == 201
        received = read_until(chunks, b"\n\n").decode()
        id, data = received.split("\n", 1)
        assert id.startswith("id: ")
        assert data == 'data: {"from":"Ben","text":"Grüße\\n"}\n\n'


@pytest.fixture
def workers(start, redis_server) -> Iterator[tuple[Server, Callable]]:
    """A gunicorn with two workers, and a way to choose one of them."""
    server = start("gunicorn -w 2", REDIS_URL=redis_server.url)
    booted = r"Booting worker with pid: (\d+)"
    wait_until(lambda: len(server.logged(booted)) == 2)
    pids = [int(line.rsplit(" ", 1)[1]) for line in server.logged(booted)]

    @contextmanager
    def only(worker: int) -> Iterator[None]:
        """Let only this worker accept connections."""
        other = pids[1 - worker]
        os.kill(other, signal.SIGSTOP)
        stat = Path(f"/proc/{other}/stat")
        wait_until(lambda: stat.read_text().split()[2] == "T")
        try:
            yield
        finally:
            os.kill(other, signal.SIGCONT)

    return server, only


def test_a_logout_ends_the_streams_in_all_processes(workers):
    server, only = workers
    with only(0):
        ada = log_in(server, "Ada")
    with only(1):  # which has the same random key
        ben = log_in(server, "Ben")
    with ExitStack() as opened:

        def listen(cookie: str) -> Iterator[Event]:
            client = opened.enter_context(server.get(STREAM, Cookie=cookie))
            events = parse_events(client.chunks())
            assert next(events).event == "begin"
            return events

        streams = []
        for worker in (0, 1):
            with only(worker):
                streams.append((listen(ada), listen(ben)))
        with only(0):
            assert post(server, "/messages", ben, to="Ada", text="Hi") == 201
        for of_ada, _ in streams:
            assert message(next(of_ada))[1:] == ("Ben", "Hi")
        with only(1):
            assert post(server, "/logout", ada) == 204
        for of_ada, _ in streams:
            assert is_final(of_ada)
        for worker in (0, 1):
            with only(worker), server.get(STREAM, Cookie=ada) as replayed:
                assert replayed.status == 401
        assert post(server, "/messages", ben, to="Ben", text="Still") == 201
        for _, of_ben in streams:
            assert message(next(of_ben))[1:] == ("Ben", "Still")


def test_a_login_survives_a_restart_only_with_a_secret_key(start, redis_server):
    shared = {"REDIS_URL": redis_server.url}
    given = shared | {"SECRET_KEY": "a key for this test"}
    for environ, status in ((shared, 401), (given, 201)):
        one, other = (start("flask run", **environ) for _ in range(2))
        cookie = log_in(one, "Ada")
        assert post(other, "/messages", cookie, to="Ada", text="a") == status


# The page


def shown(page: Page):
    return page.locator("#list > *")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def log_in_as(page: Page, name: str) -> None:
    page.get_by_label("Your name").fill(name)
    press(page, "Log in")
    expect(page.locator("#state")).to_have_text("open")


def send_to(page: Page, name: str, text: str) -> None:
    page.get_by_label("To", exact=True).fill(name)
    page.get_by_label("Text", exact=True).fill(text)
    press(page, "Send")
    expect(page.locator("#note")).to_have_text(f"Sent to {name}.")


def test_two_browsers_on_two_processes(start, redis_server, page, browser):
    shared = {"REDIS_URL": redis_server.url, "SECRET_KEY": "shared"}
    servers = [start("gunicorn -w 1", **shared) for _ in range(2)]
    tab = page.context.new_page()  # a cookie is the same for all ports
    other = browser.new_context().new_page()
    with closing(tab), closing(other.context):
        for one, server in ((page, 0), (tab, 1), (other, 1)):
            one.goto(f"{servers[server].url}/demos/private")
        log_in_as(page, "Ada")
        press(tab, "Start")
        expect(tab.locator("#state")).to_have_text("open")
        log_in_as(other, "Ben")

        send_to(page, "Ada", MARKUP)
        send_to(page, "Ben", "Hello, Ben")
        send_to(other, "Ada", "Hello, Ada")
        expected = ["Ben: Hello, Ada", f"Ada: {MARKUP}"]
        expect(shown(page)).to_have_text(expected)
        expect(shown(tab)).to_have_text(expected)
        expect(shown(other)).to_have_text(["Ada: Hello, Ben"])
        assert page.locator("#list > * > *").count() == 0

        press(page, "Log out")
        for one in (page, tab):
            expect(one.locator("#state")).to_have_text("closed")
            expect(shown(one).first).to_have_text("You are logged out.")
        expect(other.locator("#state")).to_have_text("open")

        press(tab, "Start")
        rejected = "The server rejected the stream: log in."
        expect(tab.locator("#note")).to_have_text(rejected)


def test_the_page_shows_why_a_request_was_rejected(lesson_page):
    page = lesson_page("private")
    page.expected = "401"
    press(page, "Send")
    expect(page.locator("#note")).to_have_text(LOG_IN["error"])
    page.route("**/login", lambda route: route.abort())
    press(page, "Log in")
    expect(page.locator("#note")).to_have_text("Failed to fetch")
    page.problems.clear()


# The alternatives in the README


SECTION = (PROJECT / "README.md").read_text("utf-8").split("\n## Only for")[1]
SCRIPT = """
const show = (text) => { document.title = `${document.title}${text};`; };
window.ways = { listenWithHeader, listenWithTicket };
"""


def snippet(language: str, **replaced: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.S)[:1]
    for host, url in replaced.items():
        text = text.replace(f"https://{host}.example", url)
    return text


@pytest.fixture
def api_and_page(start, tmp_path) -> tuple[Server, str]:
    """The program of the README, and the URL of a page on another origin."""
    folder, port = tmp_path / "page", free_port()
    (tmp_path / "api").mkdir()
    folder.mkdir()
    shutil.copy(PROJECT / "sse.py", tmp_path / "api")
    shutil.copy(PROJECT / "static/event-stream.js", folder)
    origin = f"http://127.0.0.1:{port}"
    (tmp_path / "api/app.py").write_text(snippet("python", app=origin))
    api = start("flask run", folder=tmp_path / "api")
    script = snippet("js", api=api.url) + SCRIPT
    (folder / "index.html").write_text(
        '<link rel="icon" href="data:,"><title></title>'
        f'<script type="module">{script}</script>'
    )
    start(f"http.server {port} --bind 127.0.0.1", folder=folder, port=port)
    return api, origin


def test_a_page_of_another_origin_listens_with_a_header_or_a_ticket(
    api_and_page, page
):
    api, origin = api_and_page
    page.goto(origin)
    page.evaluate("() => window.ways.listenWithHeader()")
    expect(page).to_have_title("Hello, Ada;")
    page.evaluate("() => window.ways.listenWithTicket()")
    # It reconnects with another ticket.
    expect(page).to_have_title(re.compile("(Hello, Ada;){3}"))
    assert len(api.logged(r"ticket=\S{43} HTTP/1.1")) >= 2
    assert api.logged("a-secret-token") == []


def test_a_ticket_works_once_and_requires_a_token(api_and_page):
    api, _ = api_and_page
    token = {"Authorization": "Bearer a-secret-token"}
    for headers in ({}, {"Authorization": "Bearer x"}):
        for answer in (api.post("/tickets", **headers), api.get("/events")):
            with answer:
                assert answer.status == 401
    with api.post("/tickets", **token) as answer:
        path = f"/events?ticket={json.loads(answer.read())['ticket']}"
    statuses = []
    for used in (path, path, "/events?ticket=x", "/events?ticket="):
        with api.get(used) as answer:
            statuses.append(answer.status)
    assert statuses == [200, 401, 401, 401]
