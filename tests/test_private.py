import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from types import SimpleNamespace

import pytest
from conftest import PROJECT, LiveServer
from flask import Flask
from playwright.sync_api import Page, expect

import sse
from broker import forget, newest, publish
from demos import private
from event_source import parse_events
from sse import Event

STREAM = "/stream/private"
LOG_IN = {"error": "Log in first: POST your name to /login."}
NO_NAME = "name must be text of 1 to 40 characters."
NO_RECIPIENT = "to must be text of 1 to 40 characters."
NO_TEXT = "text must be text of 1 to 500 characters."
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
        assert self._client.get_cookie("session") is None

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
        # Limit the chunks: an endless silence would hang.
        return parse_events(islice(response.response, 300))

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
    resumed = ada.open(to_ada)
    assert message(next(resumed)) == (note, "Ada", "for myself")
    assert message(next(bens)) == (to_ben, "Ada", "for Ben")


def test_a_name_may_contain_any_character(store, user):
    for name in ("x", " ", "Ada'", "a/b:c", "\U0001f600" * 40, "\ud800", "\0"):
        one = user(name)
        events = begin(one)
        id = one.send(name, "Hello")
        assert next(events).id == id


# Without a login


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


def test_a_copied_cookie_ends_with_the_logout(user):
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


def test_a_new_login_ends_the_one_before_it(user):
    browser = user("Ada")
    events, cookie = begin(browser), browser.cookie
    browser.log_in("Ben")
    browser.copy_cookie(cookie)
    assert browser.refused()
    assert is_final(events)


def test_a_logout_while_a_stream_opens_is_not_missed(user, monkeypatch):
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


def test_a_logout_that_was_discarded_ends_the_stream_after_the_gap(user):
    ada = user("Ada")
    events = begin(ada)
    ada.send("Ada", "seen")
    assert message(next(events))[2] == "seen"
    with ada._client.session_transaction() as session:
        forget(session["login"]["id"])
    forget(private.channel_of("Ada"))
    publish(private.channel_of("Ada"), Event("too late"))
    assert is_final(events)


@pytest.fixture
def pass_time(monkeypatch) -> Callable[[float], None]:
    def pass_time(seconds: float) -> None:
        later = time.time() + seconds
        clock = SimpleNamespace(time=lambda: later)
        monkeypatch.setattr(private, "time", clock)

    return pass_time


def test_a_login_that_expires_ends_its_silent_streams(
    user, pass_time, monkeypatch
):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
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

REFUSED = [
    ("/login", {"name": ""}, 400, NO_NAME),
    ("/login", {"name": "x" * 41}, 400, NO_NAME),
    ("/login", {}, 400, NO_NAME),
    (
        "/login",
        {"name": "Ada", "more": "x" * private.MAX_BODY_BYTES},
        413,
        "The body must have at most 16384 bytes.",
    ),
    ("/messages", {"to": "", "text": "a"}, 400, NO_RECIPIENT),
    ("/messages", {"to": "x" * 41, "text": "a"}, 400, NO_RECIPIENT),
    ("/messages", {"to": "Ada", "text": ""}, 400, NO_TEXT),
    ("/messages", {"to": "Ada", "text": "x" * 501}, 400, NO_TEXT),
]


def test_a_rejected_request_changes_nothing(client):
    client.post("/login", json={"name": "Ada"})
    for path, body, status, sentence in REFUSED:
        answer = client.post(path, json=body)
        found = answer.status_code, answer.json
        assert found == (status, {"error": sentence}), body
        assert "Set-Cookie" not in answer.headers
    for path in ("/login", "/messages"):
        headers = {"Sec-Fetch-Site": "cross-site"}
        body = {"name": "Ada", "to": "Ada", "text": "a"}
        answer = client.post(path, json=body, headers=headers)
        assert answer.status_code == 403
    assert newest(private.channel_of("Ada")) is None


def test_sends_exactly_these_bytes(user):
    with user("Ada")._client.get(STREAM) as response:
        chunks = iter(response.response)
        start = (next(chunks) + next(chunks)).decode()
        id = start.split()[2]
        assert start == f":\nid: {id}\nevent: begin\ndata: {id}\n\n"
        id = user("Ben").send("Ada", "Grüße\n")
        assert next(chunks).decode() == (
            f'id: {id}\ndata: {{"from":"Ben","text":"Grüße\\n"}}\n\n'
        )


def test_another_process_accepts_a_login_only_with_the_same_secret_key():
    for key, is_accepted in ((None, False), ("a key for this test", True)):
        users = []
        for _ in range(2):
            app = Flask(__name__)
            app.secret_key = key
            app.register_blueprint(private.bp)
            users.append(User(app, ExitStack(), None))
        ada, other = users
        ada.log_in("Ada")
        other.copy_cookie(ada.cookie)
        answer = other._client.post("/messages", json={"to": "B", "text": "a"})
        assert (answer.status_code == 201) is is_accepted


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


def test_each_window_shows_only_its_own_messages_until_the_logout(
    live, page, user
):
    page.goto(f"{live.url}/demos/private")
    with closing(page.context.new_page()) as tab:  # has the same cookie
        tab.goto(page.url)
        log_in_as(page, "Ada")
        press(tab, "Start")
        expect(tab.locator("#state")).to_have_text("open")
        ben = user("Ben")
        events = begin(ben)

        send_to(page, "Ada", MARKUP)
        send_to(page, "Ben", "Hello, Ben")
        assert message(next(events))[1:] == ("Ada", "Hello, Ben")
        ben.send("Ada", "Hello, Ada")
        expected = ["Ben: Hello, Ada", f"Ada: {MARKUP}"]
        for one in (page, tab):
            expect(shown(one)).to_have_text(expected)
        assert page.locator("#list > * > *").count() == 0

        press(page, "Log out")
        for one in (page, tab):
            expect(one.locator("#state")).to_have_text("closed")
            expect(shown(one).first).to_have_text("You are logged out.")

        press(tab, "Start")
        rejected = "The server rejected the stream: log in."
        expect(tab.locator("#note")).to_have_text(rejected)


def test_the_page_shows_why_a_request_was_rejected(lesson_page):
    page = lesson_page("private")
    page.expected = "Failed to load resource"
    press(page, "Send")
    expect(page.locator("#note")).to_have_text(LOG_IN["error"])
    page.route("**/login", lambda route: route.abort())
    press(page, "Log in")
    expect(page.locator("#note")).to_have_text("Failed to fetch")


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


def program(**replaced: str) -> Flask:
    """Run the program of the README, and return its app."""
    names = {"__name__": "program"}
    exec(snippet("python", **replaced), names)
    return names["app"]


def test_a_page_of_another_origin_listens_with_a_header_or_a_ticket(
    page, tmp_path, caplog
):
    shutil.copy(PROJECT / "static/event-stream.js", tmp_path)
    own = Flask(__name__, static_folder=tmp_path, static_url_path="")
    with ExitStack() as running:

        def serve(app: Flask) -> str:
            return running.enter_context(LiveServer(app)).url

        origin = serve(own)
        api = serve(program(app=origin))
        script = snippet("js", api=api).replace("3000", "10") + SCRIPT
        (tmp_path / "index.html").write_text(
            '<link rel="icon" href="data:,"><title></title>'
            f'<script type="module">{script}</script>'
        )
        page.goto(f"{origin}/index.html")
        page.evaluate("() => window.ways.listenWithHeader()")
        expect(page).to_have_title("Hello, Ada;")
        page.evaluate("() => window.ways.listenWithTicket()")
        # It reconnects with another ticket.
        expect(page).to_have_title(re.compile("(Hello, Ada;){3}"))
        page.goto("about:blank")
    assert len(set(re.findall(r"ticket=\S{43} HTTP/1.1", caplog.text))) >= 2
    assert "a-secret-token" not in caplog.text


def test_a_ticket_works_once_and_requires_a_token():
    client = program().test_client()
    token = {"Authorization": "Bearer a-secret-token"}
    for headers in ({}, {"Authorization": "Bearer x"}):
        for answer in (
            client.post("/tickets", headers=headers),
            client.get("/events", headers=headers),
        ):
            assert answer.status_code == 401
    ticket = client.post("/tickets", headers=token).json["ticket"]
    statuses = [
        client.get(f"/events?ticket={used}").status_code
        for used in (ticket, ticket, "x", "")
    ]
    assert statuses == [200, 401, 401, 401]
