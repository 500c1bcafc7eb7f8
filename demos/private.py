"""Private: log in, receive only your own events

Each user has a channel, named by the session cookie, never by the
URL. Without a login, the stream answers 401 before its first event.
The cookie is signed: nobody can forge it, but anyone who copies it
can send it again. So the server keeps a record of each login, and
deletes it at logout. This lesson accepts any name: check a password
before you deploy it.

Notice: when a login ends or expires, all its streams end with a
final `logout` event, in every tab and process. EventSource sends
cookies, but no Authorization header. If you have a token, use
`fetch` or a one-time ticket, as the README shows. Never put a token
into a URL, because URLs end up in logs.

Try: log in, open a second window, press Start in it, and log out:
both streams end. Then, with `flask run --reload`, change
`time.time() + LIFETIME_SECONDS` to `time.time() + 5`, save, and log
in. Within 20 seconds, the login expires and the stream ends.

    curl -N -b "" --json '{"name": "Ada"}' \
    http://127.0.0.1:5000/login --next \
    -N -b "" http://127.0.0.1:5000/stream/private
"""

import time
from secrets import token_hex

from flask import Blueprint, abort, request, session

from broker import forget, newest, publish, subscribe
from checks import json_object, json_text, same_origin_only
from sse import Event, EventStream

LIFETIME_SECONDS = 8 * 60 * 60  # the broker keeps a record for 24 h
MAX_BODY_BYTES = 16 * 1024

bp = Blueprint("private", __name__)
bp.before_request(same_origin_only)


@bp.record
def set_up_cookie(state):
    # Only this process can check a cookie signed with a random key.
    state.app.secret_key = state.app.secret_key or token_hex()
    state.app.config["SESSION_COOKIE_SAMESITE"] = "Strict"


@bp.post("/login")
def log_in():
    name = json_text(json_object(MAX_BODY_BYTES), "name", 1, 40)
    # Check a password here.
    log_out()
    id, end = f"login:{token_hex()}", time.time() + LIFETIME_SECONDS
    publish(id, Event(name))
    session["login"] = {"id": id, "name": name, "end": end}
    return {"name": name}


@bp.post("/logout")
def log_out():
    if login := session.get("login"):
        forget(login["id"])
        # Make each stream of this user check its own login.
        publish(channel_of(login["name"]), Event("", event="ended"))
    session.clear()
    return "", 204


@bp.post("/messages")
def send():
    login, body = current_login(), json_object(MAX_BODY_BYTES)
    to = json_text(body, "to", 1, 40)
    text = json_text(body, "text", 1, 500)
    event = Event({"from": login["name"], "text": text})
    return {"id": publish(channel_of(to), event)}, 201


def channel_of(name):
    return f"private:{name!a}"  # in ASCII, whatever the name is


def current_login():
    if (login := session.get("login")) and not has_ended(login):
        return login
    abort(401, "Log in first: POST your name to /login.")


def has_ended(login):
    return newest(login["id"]) is None or time.time() > login["end"]


@bp.get("/stream/private")
def stream():
    login = current_login()
    last_event_id = request.headers.get("Last-Event-ID")
    events = subscribe(channel_of(login["name"]), last_event_id)
    current_login()  # again: a logout before `subscribe`
    return EventStream(until_logout(events, login))


def until_logout(events, login):
    for event in events:
        is_due = time.time() > login["end"]
        if event and event.event in ("ended", "reset"):
            is_due = has_ended(login)
        if is_due:
            yield Event("You are logged out.", event="logout")
            return
        yield event
