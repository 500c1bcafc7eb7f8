"""Try what each lesson suggests, and check what it promises."""

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import NAMES, PROJECT, wait_until
from flask.testing import FlaskClient
from playwright.sync_api import Page, expect
from upstream import Connection, Upstream, stream

import sse
from app import create_app
from demos import LESSONS
from event_source import parse_events
from website.pages import texts

TRIED: dict[str, tuple[str, ...]] = {
    # The tests of these lessons try the rest, which changes no code.
    "html": ('set "What fails" to mail', "After two seconds", "other parts"),
    "prices": ("interval to 0.05 there and to 2 here", "every fortieth"),
    "reconnect": ("status 503 and tick both boxes", "choose 200"),
}


def tries(name: str, *words: str) -> Callable:
    """Mark the test of what a lesson suggests, with words from its text."""
    TRIED[name] = words
    return lambda test: test


def changed(name: str, old: str, new: str) -> str:
    """Return a lesson's file after a change to one place in its code."""
    text = (PROJECT / f"demos/{name}.py").read_text("utf-8")
    docstring, code = text.split('"""\n\n', 1)
    assert code.count(old) == 1
    return f'{docstring}"""\n\n{code.replace(old, new)}'


@pytest.fixture
def change(monkeypatch) -> Callable[[str, str, str], ModuleType]:
    """Return a function that changes a lesson, and returns its new module."""

    def change(name: str, old: str, new: str) -> ModuleType:
        module = ModuleType(f"demos.{name}")
        exec(changed(name, old, new), vars(module))
        lesson = LESSONS[name]._replace(module=module)
        monkeypatch.setitem(LESSONS, name, lesson)
        return module

    return change


def app_client(word_seconds: float = 0) -> FlaskClient:
    """Return a client of the app with all changes so far."""
    app = create_app({"OFFLINE_WORD_SECONDS": word_seconds})
    return app.test_client()


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_every_suggestion_of_a_lesson_has_a_test():
    assert set(TRIED) == set(NAMES)
    for name, words in TRIED.items():
        attempt = texts(LESSONS[name]).attempt
        assert [one for one in words if one not in attempt] == [], name


@tries("hello", "`PAUSE_SECONDS = 0.7` to 2", "two seconds apart")
def test_events_come_two_seconds_apart(change, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    change("hello", "PAUSE_SECONDS = 0.7", "PAUSE_SECONDS = 2")
    assert b"Are you there?" in app_client().get("/stream/hello").data
    assert pauses == [2, 2]


@tries(
    "numbers",
    "press Start, change `choose(100)` to `choose(10)`",
    "The server restarts, the browser reconnects",
    "the ids continue, now with numbers below 10",
)
@tries(
    "thinking",
    "save `demos/thinking.py` while the server thinks",
    "no thought is lost or repeated",
    # test_timeline.py tests this:
    "only the Wire panel shows why",
)
def test_pages_resume_after_a_save_restarts_the_server(start, page, tmp_path):
    for path in filter(Path.is_file, PROJECT.iterdir()):
        shutil.copy2(path, tmp_path)
    for name in ("demos", "website", "templates", "static"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    server = start("flask run --reload", folder=tmp_path)
    page.goto(f"{server.url}/demos/numbers")
    page.get_by_label("Interval in seconds").fill("0.1")
    press(page, "Start")

    def received() -> list[tuple[int, int]]:
        text = page.locator("#list").text_content()
        lines = re.findall(r"id (\d+): (\d+)\n", text)
        return [(int(id), int(number)) for id, number in reversed(lines)]

    wait_until(lambda: any(number >= 10 for _, number in received()))
    with closing(page.context.new_page()) as second:
        second.goto(f"{server.url}/demos/thinking")
        press(second, "Ask")
        thoughts = second.locator("#thoughts > *")
        thoughts.first.wait_for()
        new = changed("numbers", "choose(100)", "choose(10)")
        (tmp_path / "demos/numbers.py").write_text(new, "utf-8")
        wait_until(lambda: server.logged("Restarting with"))
        expect(second.locator("#answer")).to_contain_text("is 42.")
        expect(thoughts).to_have_count(4)
    wait_until(lambda: all(number < 10 for _, number in received()[-15:]))
    ids = [id for id, _ in received()]
    assert ids == [*range(ids[0], ids[0] + len(ids))]
    expect(page.locator("#missing")).to_have_text("0")
    press(page, "Stop")
    server.stop()  # a killed reloader would leave the app running
    with socket.create_server(("127.0.0.1", server.port)):
        pass  # so the app has stopped as well
    page.expected = "Failed to load resource"


@tries(
    "clock",
    # test_clock.py tests these two:
    "set the interval to 2",
    "two seconds before",
    "the terminal logs the tick count twice",
)
def test_stop_ends_the_streams_of_the_page_and_of_the_wire(lesson_page, site):
    page = lesson_page("clock")
    page.get_by_label("Interval in seconds").fill("0.2")
    press(page, "Start")
    expect(page.locator("#time")).to_contain_text("The time is")
    expect(page.locator("#wire .wire")).to_contain_text("The time is")
    before = len(site.logged("clock: closed after"))
    press(page, "Stop")
    wait_until(lambda: len(site.logged("clock: closed after")) >= before + 2)


@tries("batch", "messages a second to 10000", "ten events a second")
def test_ten_events_a_second_carry_ten_thousand_messages(client):
    response = client.get("/stream/batch?rate=10000&flush=100")
    began, count, messages = time.monotonic(), 0, []
    with closing(response):
        events = parse_events(response.iter_encoded())
        while count < 3 or len(messages) < 900:
            count, messages = count + 1, json.loads(next(events).data)
    assert time.monotonic() - began > 0.09 * count


@tries("completion", "to `Event(text.upper(), id=id)`", "in capitals")
def test_the_answer_is_in_capitals(change):
    change("completion", "Event(text, id", "Event(text.upper(), id")
    response = app_client().get("/completion?prompt=Hello")
    events = parse_events([response.data])
    answer = "".join(one.data for one in events if one.event == "message")
    assert len(answer) > 100
    assert answer.isupper()


@tries("relay", "`NOTICE_SECONDS = 0.5` to 0.01", "Comments fill every pause")
def test_comments_fill_the_pauses(change):
    change("relay", "NOTICE_SECONDS = 0.5", "NOTICE_SECONDS = 0.01")
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    url = "/v1/chat/completions"
    response = app_client(word_seconds=0.2).post(url, json=body)
    comments = 0
    with closing(response):
        while comments < 10:
            comments += next(response.response) == b": keep-alive\n\n"


@tries(
    "agent",
    "`return max(numbers)`",
    "The model answers 23",
    '"What time is it in Atlantis?"',
    "The tool fails",
)
def test_the_model_believes_its_tools(change):
    change("agent", "return sum(numbers)", "return max(numbers)")

    def answer(question: str) -> str:
        query = {"question": question}
        response = app_client().get("/stream/agent", query_string=query)
        events = parse_events([response.data])
        return "".join(one.data for one in events if one.event == "text")

    assert "get_sum returned 23." in answer("Sum 19 + 23")
    failed = "No time zone found with key Atlantis'"
    assert failed in answer("What time is it in Atlantis?")


@tries("chat", 'send "Attack this page"', "the selection stays", "vanish")
def test_scripts_are_text_and_a_selection_stays(lesson_page):
    page = lesson_page("chat")
    page.get_by_label("Message").fill("Attack this page")
    press(page, "Send")
    answer = page.locator("#log .answer")
    expect(answer).to_contain_text("Nothing in this answer")
    answer.dblclick(position={"x": 30, "y": 20})
    selected = "() => getSelection().toString().trim()"
    assert page.evaluate(selected) == "Nothing"
    for text in ("<img src=", "</script>", "onerror="):
        expect(answer).to_contain_text(text)
    assert page.evaluate(selected) == "Nothing"
    assert answer.locator("*").count() == 0
    answer.evaluate("answer => { answer.textContent += ' more'; }")
    assert page.evaluate(selected) == ""


@tries("post", "add `?interval=2`", "two seconds after", "a 400")
def test_the_wire_shows_the_pause_and_the_refusal(lesson_page):
    page = lesson_page("post")
    wire = page.locator("#wire")
    wire.locator("summary").click()
    row = wire.locator("pre > div")

    def seconds(text: str) -> float:
        """Return when the bytes with this text arrived."""
        words = row.filter(has_text=text).inner_text()
        return float(words.partition(" s,")[0])

    wire.locator("[name=path]").fill("/api/sse?interval=1")
    press(wire, "Send")
    assert seconds('"key":"city"') - seconds("event: request") > 0.5
    wire.locator("[name=body]").fill('{"city": "Paris"')
    press(wire, "Send")
    row.filter(has_text="status 400, application/json").wait_for()
    row.filter(has_text="The body must be a JSON object").wait_for()
    page.expected = "Failed to load resource"


# test_markdown.py tests that no script of an attack runs.
@tries("markdown", "to 1, save", "once a second", "none of its scripts run")
def test_the_answer_grows_once_a_second(change):
    module = change("markdown", "DRAW_SECONDS = 0.1", "DRAW_SECONDS = 1")
    now, times = 0, []

    def words():
        nonlocal now
        for _ in range(30):
            yield "word "
            now += 1

    for _ in module.blocks(words(), clock=lambda: now / 10):
        times.append(now / 10)
    assert times[:3] == [0, 1, 2]


@tries(
    "broadcast",
    # test_broadcast.py tests these two:
    "both receive it immediately",
    "A `reset` event reports",
    "delete the line `self.published.notify_all()`",
    "up to 15 seconds",
)
def test_without_notify_a_text_waits_for_the_heartbeat(change, monkeypatch):
    channel = change("broadcast", "self.published.notify_all()", "").channel
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 1)
    arrived = []
    events = channel.subscribe(None)
    reader = threading.Thread(target=lambda: arrived.append(next(events)))
    began = time.monotonic()
    reader.start()
    wait_until(lambda: channel.published._waiters)
    channel.publish("Hello")
    reader.join()
    assert time.monotonic() - began > 0.9
    assert b"data: Hello\n" in arrived[0]


@tries(
    "notifications",
    # test_notifications.py tests these two:
    "both receive it",
    "A `reset` event reports",
    'delete "alert" from `LEVELS`',
    "rejects alerts",
)
def test_alerts_are_rejected(change):
    change("notifications", ', "alert")', ")")
    alert = {"text": "Fire", "level": "alert"}
    answer = app_client().post("/notifications", json=alert)
    assert answer.status_code == 400
    assert answer.json["error"] == "level must be one of info, warning."


# test_progress.py tests that the page reports that the job died.
@tries("progress", "`STEP_SECONDS = 0.2` to 0.02", "ten times as fast")
def test_the_steps_are_ten_times_as_fast(change):
    module = change("progress", "STEP_SECONDS = 0.2", "STEP_SECONDS = 0.02")
    pauses = []
    assert len([*module.work(3, sleep=pauses.append)]) == 4
    assert pauses == [0.02] * 3


@tries(
    "console",
    'change `"-u", "-c"` to `"-c"`',
    "Steps 3, 6 and 9 go to stderr",
    "All the others arrive together, at the end",
)
def test_without_u_stdout_arrives_at_the_end(change, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    module = change("console", '"-u", "-c"', '"-c"')
    module.COMMAND[-1] = module.PROGRAM.replace("sleep(0.5)", "sleep(0.05)")
    output = app_client().get("/stream/console").data
    events = [(one.event, one.data) for one in parse_events([output])]
    steps = [f"Step {step} of 10" for step in range(1, 11)]
    others = [("stdout", step) for step in steps if step not in steps[2::3]]
    place = events.index(others[0])
    assert events[place : place + 7] == others
    rest = events[:place] + events[place + 7 :]
    assert rest == [*(("stderr", step) for step in steps[2::3]), ("exit", "0")]


# test_document.py tests that otherwise the second save fails.
@tries(
    "document",
    "The second save fails: you see the text of the first",
    "change `return stale(current)` to `pass`",
    "overwrites the first without a warning",
)
def test_without_the_check_a_text_is_overwritten(change):
    change("document", "return stale(current)", "pass")
    client = app_client()
    for author in ("Ada", "Grace"):
        body = {"text": f"by {author}", "author": author}
        headers = {"If-Match": '"0"'}  # neither has seen the other's text
        answer = client.put("/document", json=body, headers=headers)
        assert answer.status_code == 200


# test_resume.py tests that otherwise a reload shows the complete answer.
@tries("resume", "reload mid-answer", "from_newest=True", "are missing")
def test_a_reload_shows_only_the_newest(change):
    old = 'follow("answers", id)'
    change("resume", old, 'follow("answers", id, from_newest=True)')
    client = app_client()
    prompt = {"prompt": "How do I reconnect?"}
    path = client.post("/answers", json=prompt).headers["Location"]
    first, again = (client.get(path).data for _ in range(2))
    assert b"event: finished" in first
    assert [one.event for one in parse_events([again])] == ["finished"]


# test_private.py tests that a logout ends the streams of all windows.
@tries(
    "private",
    "log out: both streams end",
    "change `time.time() + LIFETIME_SECONDS` to `time.time() + 5`",
    "Within 20 seconds, the login expires and the stream ends",
)
def test_an_expired_login_ends_its_stream(change, monkeypatch):
    module = change(
        "private", "time.time() + LIFETIME_SECONDS", "time.time() + 5"
    )
    client = app_client()
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    client.post("/login", json={"name": "Ada"})
    response = client.get("/stream/private")
    events = response.iter_encoded()
    next(events)
    later = time.time() + 6
    module.time = SimpleNamespace(time=lambda: later)
    assert b"event: logout\n" in b"".join(events)


@tries(
    "before_sse",
    "events to every 0.1 s. A poll returns twenty of them, a second late",
    "nineteen polls in twenty return none",
)
def test_rare_polls_are_late_and_frequent_polls_are_empty(client):
    def poll(query: str) -> dict:
        return client.get(f"/poll?{query}").json

    newest = poll("interval=0.1")["newest"]
    body = poll(f"interval=0.1&after={newest - 20}")
    delays = [body["now"] - tick["at"] for tick in body["ticks"]]
    assert len(delays) == 20 + body["newest"] - newest
    assert sum(delays[:20]) / 20 > 0.9
    newest = poll("interval=2")["newest"]
    assert any(
        poll(f"interval=2&after={newest}")["ticks"] == [] for _ in range(20)
    )


@tries(
    "client",
    "change `SILENCE_SECONDS = 15` to 0.5",
    "It reconnects for every event",
    "gets every id",
)
def test_python_reconnects_after_each_pause(change):
    change("client", "SILENCE_SECONDS = 15", "SILENCE_SECONDS = 0.5")

    def one_event(connection: Connection) -> None:
        last = connection.request.headers.get("Last-Event-ID", "0")
        body = b"retry: 10\nid: %d\ndata: a\n\n" % (int(last) + 1)
        stream(body, end="silent")(connection)

    began = time.monotonic()
    with Upstream(one_event) as own:
        sock = SimpleNamespace(getsockname=lambda: own.server_address)
        response = app_client().get(
            "/stream/client", environ_overrides={"werkzeug.socket": sock}
        )
        with closing(response):
            events = parse_events(response.iter_encoded())
            found = [next(events) for _ in range(6)]
    assert [(one.event, one.data) for one in found[::2]] == [
        ("connected", last) for last in ("", "1", "2")
    ]
    assert [one.id for one in found[1::2]] == ["1", "2", "3"]
    # Two of the old silences take longer, however fast the machine is.
    assert time.monotonic() - began < 2 * 15


# test_nginx.py tests the other suggestion.
@tries("six_connections", "STREAMS to 20", "fourteen of them hang")
def test_of_twenty_streams_fourteen_hang(page, site):
    def change(route) -> None:
        response = route.fetch()
        old, new = "STREAMS = 8", "STREAMS = 20"
        assert old in response.text()
        html = response.text().replace(old, new)
        # The policy allows only the script that the server knows.
        route.fulfill(body=html, content_type="text/html")

    url = f"{site.url}/demos/six_connections"
    page.route(url, change)
    page.goto(url)
    press(page, "Start")
    expect(page.locator("#state")).to_have_text("6 open, 14 connecting")
