"""The cheat sheet, measured, printed and run."""

import re

import pytest
from conftest import PROJECT, Server

from event_source import parse_events

MARGIN_MM = 6
PAPER_MM = {"A4": (210, 297), "Letter": (215.9, 279.4)}
PIXELS_PER_MM = 96 / 25.4
SMALLEST_PRINT_PIXELS = 10  # 7.5 points
SCREENS = [(1280, 720), (640, 360), (390, 844)]  # the second is 200 %
CUT_OFF = """
() => [document.documentElement, ...document.querySelectorAll("body *")]
  .filter((box) => box.clientWidth && (
    box.scrollWidth > box.clientWidth
    || box.matches("pre") && box.scrollHeight > box.clientHeight
  ))
  .map((box) => box.outerHTML.slice(0, 80))
"""
TOO_SMALL = """
(pixels) => [...document.querySelectorAll("main *")]
  .filter((box) => parseFloat(getComputedStyle(box).fontSize) < pixels)
  .map((box) => box.outerHTML.slice(0, 80))
"""
# The names that the Flask lines use, and a page for the EventSource lines.
APP = """
from flask import Flask

app = Flask(__name__)
app.add_url_rule("/", view_func=lambda: '<link rel="icon" href="data:,">')
"""


@pytest.fixture
def sheet(page, site):
    page.goto(f"{site.url}/cheatsheet")
    return page


@pytest.mark.parametrize("paper", PAPER_MM)
def test_it_prints_on_one_page(sheet, paper):
    for scheme in ("light", "dark"):
        sheet.emulate_media(color_scheme=scheme)
        printed = sheet.pdf(format=paper)
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1, scheme


@pytest.mark.parametrize("paper", PAPER_MM)
def test_no_text_is_cut_off_or_too_small_on_paper(sheet, paper):
    width, height = (
        int((side - 2 * MARGIN_MM) * PIXELS_PER_MM) for side in PAPER_MM[paper]
    )
    sheet.emulate_media(media="print")
    sheet.set_viewport_size({"width": width, "height": height})
    assert sheet.evaluate(CUT_OFF) == []
    assert sheet.evaluate(TOO_SMALL, SMALLEST_PRINT_PIXELS) == []


@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_no_text_is_cut_off_on_a_screen(sheet, width, height):
    sheet.set_viewport_size({"width": width, "height": height})
    assert sheet.evaluate(CUT_OFF) == []


@pytest.fixture
def flask_lines(sheet):
    return sheet.locator("#flask-lines").text_content()


@pytest.fixture
def own_app(flask_lines, tmp_path):
    """A server that runs the Flask lines as an app."""
    (tmp_path / "shown.py").write_text(APP + flask_lines, "utf-8")
    command = "flask --app shown run"
    with Server(command, tmp_path, PYTHONPATH=str(PROJECT)) as running:
        yield running


def test_its_flask_lines_stream(flask_lines, own_app):
    view = flask_lines.strip().partition("def ")[2]
    assert len(view.splitlines()) == 5
    with own_app.get("/stream/thinking") as client:
        assert client.header("Content-Type") == "text/event-stream"
        events = list(parse_events(client.chunks()))
    assert [(event.event, event.data) for event in events] == [
        ("thinking", "Let me think."),
        ("answer", "42"),
    ]


def test_its_eventsource_lines_read_the_flask_lines(sheet, own_app):
    lines = sheet.locator("#five-lines").text_content().strip()
    assert len(lines.splitlines()) == 5
    sheet.goto(own_app.url)
    logged = []
    sheet.on("console", lambda message: logged.append(message.text))
    state = sheet.evaluate(
        f"""() => {{
          {lines}
          return new Promise((resolve) => {{
            source.addEventListener("answer", () => resolve(source.readyState));
          }});
        }}"""
    )
    assert state == 2  # the lines have closed it, so it never reconnects
    assert logged == ["Let me think."]
