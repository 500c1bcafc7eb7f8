"""Every lesson works in Firefox and WebKit, also after Back and Reload."""

import signal

import pytest
from conftest import NAMES, Server, wait_until

import background
from demos import html

APP = "flask --app tests/engines/recording_app.py run"
START = "#start, #form button:not([type])"

PREPARE = """
() => {
  for (const field of document.querySelectorAll("#prompt")) {
    field.value = "Hello"; // the chat empties it
  }
  window.begun = performance.now();
  window.look = () => {
    const live = document.querySelector(".live");
    const frames = [...live.querySelectorAll("iframe")];
    const texts = frames.map((one) => one.contentDocument.body.textContent);
    return [live.innerHTML, ...texts].join();
  };
  window.before = look();
}
"""
PRESS = """
(selector, name) => {
  const isIt = ({ textContent }) => textContent.includes(name);
  [...document.querySelectorAll(selector)].find(isIt).click();
}
"""
# Some lessons are silent until somebody sends something.
SEND = """
() => {
  for (const form of document.querySelectorAll("#compose, #edit")) {
    form.querySelector("#text").value = `Hello ${Math.random()}`;
    form.querySelector("button").click();
  }
}
"""
CONNECTIONS = """
observed.lanes.flatMap(({ connections }) => connections)
  .filter(({ begun }) => begun >= window.begun)
"""
IS_OPEN = f"() => {CONNECTIONS}.some(({{ opened }}) => opened)"
SHOWS_EVENTS = f"""
() => {CONNECTIONS}.some(({{ marks }}) => marks.length) && look() !== before
"""
IS = "(word) => document.querySelector('#state').textContent === word"


@pytest.fixture(scope="module")
def site():
    """The app, with pages that record their own errors."""
    with Server(APP) as running:
        yield running


def start(engine) -> None:
    """Start the lesson, and wait until it shows what arrives."""
    engine.run(PREPARE)
    engine.run(PRESS, START, "")
    engine.wait_for(IS_OPEN)
    engine.run(SEND)
    engine.wait_for(SHOWS_EVENTS)


def stop(engine) -> None:
    engine.run(PRESS, "button", "Stop")
    engine.wait_for(IS, "closed")


def test_an_error_in_a_page_is_recorded(engine, site):
    engine.open(f"{site.url}/")
    engine.run("() => { setTimeout(() => { throw Error('late'); }); }")
    wait_until(lambda: engine.run("() => 1") and engine.problems)
    (problem,) = engine.problems
    assert "late" in problem
    engine.problems.clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_starts_stops_and_survives_back_and_reload(engine, site, name):
    engine.open(f"{site.url}/demos/{name}")
    start(engine)
    url = engine.run("() => location.href")  # a lesson may change it
    engine.open(f"{site.url}/record.js")
    engine.back(url)
    start(engine)
    engine.reload()
    start(engine)
    stop(engine)
    problems, engine.problems = engine.problems, []
    assert problems == []


HAS_TEXT = """
(pattern) => [...document.querySelectorAll("#timeline text")]
  .some(({ textContent }) => RegExp(pattern).test(textContent))
"""
COUNT = "(selector) => document.querySelectorAll(selector).length"


def test_the_timeline_draws_bars_marks_a_gap_and_the_last_event_id(
    engine, site
):
    engine.open(f"{site.url}/demos/numbers")
    start(engine)
    engine.wait_for(HAS_TEXT, r"^\d+$")
    assert engine.run(COUNT, "#timeline circle.mark")
    assert engine.run(COUNT, "#timeline rect.bar") == 1
    engine.run(PRESS, "button", "Cut the connection")
    engine.wait_for(HAS_TEXT, r"^connection lost for \d\.\d s$")
    engine.wait_for(HAS_TEXT, r"^reconnected, Last-Event-ID: \d+$")
    assert engine.run(COUNT, "#timeline rect.bar") == 2
    assert engine.run(COUNT, "#timeline line.waiting") == 1
    stop(engine)


HAS_PAINTED = """
() => frame.contentDocument.readyState === "loading" &&
  frame.contentWindow.performance.getEntriesByName("first-contentful-paint")
    .length === 1
"""


def test_a_page_is_painted_while_its_slow_parts_are_still_missing(
    engine, live, monkeypatch
):
    for part in html.PARTS:
        monkeypatch.setitem(html.PARTS, part, 600)
    engine.open(f"{live.url}/demos/html")
    engine.run(PRESS, START, "")
    engine.wait_for(HAS_PAINTED)
    stop(engine)


# What these pages show after a crash. None: they just have to reconnect.
RECONNECT = {
    "six_connections": None,
    "progress": background.LOST,  # early, to get an id before the crash
    "resume": background.LOST,
    "hello": "^status: hi$",
    "before_sse": None,
    "private": "The server rejected the stream: log in.",
    "clock": None,
    "thinking": "^The answer to .+ is 42.$",
    "numbers": None,
    "batch": None,
    "reconnect": None,
    "client": None,
    "broadcast": None,
    "notifications": None,
    "prices": None,
    "document": None,
}
# What the other pages show. They must not repeat their request.
FAIL = {
    "post": "The stream broke off.$|Error in input stream$",
    "console": "The connection failed.$",
    "chat": "^The connection failed.$",
    "completion": "The connection failed.$",
    "relay": "The answer broke off.$|Error in input stream$",
    "markdown": "The connection failed.$",
    "html": "^closed$",
    "agent": "The connection failed.$",
}
HAS_RECONNECTED = f"""
(lesson) => {CONNECTIONS}.some(({{ kind, opened }}) =>
  kind === "EventSource" && opened > window.killed)
"""
HAS_REPEATED = f"""
() => {CONNECTIONS}.some(({{ kind, begun, opened }}) =>
  (kind === "fetch" ? begun : opened) > window.killed)
"""
SHOWS = """
(lesson, pattern) =>
  [...document.querySelectorAll("#state, .live :not(script)")]
    .some(({ textContent }) => RegExp(pattern).test(textContent))
"""


def host(number: int) -> str:
    """Return an address that at most two lessons share.

    A browser opens at most six connections to a host, and the first lesson in
    RECONNECT needs them all.
    """
    return f"127.0.0.{2 + (number + 1) // 2}"


# Two tables, because WebKit is five times as slow from the 17th tab on.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("table", [RECONNECT, FAIL], ids=["reconnect", "fail"])
def test_lessons_reconnect_or_report_a_failure_after_a_crash(engine, table):
    assert RECONNECT.keys() | FAIL.keys() == set(NAMES)
    options = {
        "FLASK_RUN_HOST": "0.0.0.0",
        "SECRET_KEY": "of the test, and of no use elsewhere",
    }
    server = Server(APP.replace(".py", ".py:create_app(True)"), **options)
    tabs = {}
    for number, name in enumerate(table):
        tabs[name] = engine.new_tab()
        engine.switch(tabs[name])
        engine.open(f"http://{host(number)}:{server.port}/demos/{name}")
        engine.run(PREPARE)
        engine.run(PRESS, START, "")
        engine.wait_for(IS_OPEN)
    server.stop(signal.SIGKILL)
    for tab in tabs.values():
        engine.switch(tab)
        engine.run("() => { window.killed = performance.now(); }")
    with Server(APP, port=server.port, **options):
        for name, pattern in table.items():
            engine.switch(tabs[name])
            if pattern is None:
                engine.wait_for(HAS_RECONNECTED, name)
            else:
                engine.wait_for(SHOWS, name, pattern)
                assert table is RECONNECT or not engine.run(HAS_REPEATED)
                start(engine)
            engine.close_tab()
    engine.switch(engine.first_tab)
    engine.problems.clear()
