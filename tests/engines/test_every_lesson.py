"""Every lesson works in Firefox and WebKit, also after Back and Reload."""

import pytest
from conftest import NAMES, Server

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
    running = Server(APP)
    yield running
    running.stop()


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
    engine.wait_for(HAS_TEXT, "^2$")
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
