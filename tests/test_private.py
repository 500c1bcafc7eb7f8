import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace

import pytest

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
JSON = "application/json"


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


def test_a_name_may_hold_anything_that_json_can(store, user):
    for name in ("x", " ", "Ada'", "a/b:c", "\U0001f600" * 40, "\ud800", "\0"):
        one = user(name)
        events = begin(one)
        id = one.send(name, "Hello")
        assert next(events).id == id


# Without a login


def test_without_a_login_the_answer_is_401_in_json(user):
    assert user().refused()


def test_a_forged_cookie_is_no_login(user):
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
        forget(f"login:{session['login']['id']}")
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


def test_what_is_refused_changes_nothing(client):
    client.post("/login", json={"name": "Ada"})
    for path, body, media_type, status, sentence in REFUSED:
        answer = client.post(path, data=body, content_type=media_type)
        found = answer.status_code, answer.json
        assert found == (status, {"error": sentence}), body[:40]
        assert "Set-Cookie" not in answer.headers
    assert newest(private.channel_of("Ada")) is None


def test_a_logout_without_a_login_is_no_error(client):
    assert client.post("/logout").status_code == 204
