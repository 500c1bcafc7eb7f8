"""Every page by keyboard, in light and dark mode, and as judged by axe."""

import re

import npm
import pytest
from conftest import NAMES, Server, new_page
from playwright.sync_api import expect

from app import app as application

AXE_CORE = "4.14.1"
ERROR = "/demos/nope"
LESSON_PATHS = [f"/demos/{name}" for name in NAMES]
PATHS = [
    *(
        rule.rule
        for rule in application.url_map.iter_rules()
        if rule.endpoint.startswith("pages.") and not rule.arguments
    ),
    *LESSON_PATHS,
    ERROR,
]
MOST_STOPS = 100
RUN_AXE = """
async ([kinds, contrast]) => {
  const rules = {
    "target-size": { enabled: true }, // WCAG 2.2, else off
    "color-contrast": { enabled: contrast }, // takes the longest
  };
  // axe cannot judge the contrast of words in a picture. test_pictures.py can.
  const page = { exclude: ["svg text"] };
  const results = await axe.run(page, { rules, resultTypes: kinds });
  return kinds.flatMap((kind) => results[kind]).flatMap(
    ({ id, nodes }) => nodes.map(({ target }) => [id, target.join(" ")]),
  );
}
"""
# Tokens of the same kind look alike, so keep one of each. Otherwise, axe would
# judge a thousand tokens.
KEEP_ONE_TOKEN_OF_EACH_KIND = """
() => {
  const seen = new Set();
  for (const token of document.querySelectorAll("details pre span")) {
    if (seen.has(token.className)) token.replaceWith(token.textContent);
    seen.add(token.className);
  }
}
"""
LIVE_TEXT = """
() => {
  const live = document.querySelector(".live").cloneNode(true);
  live.querySelectorAll("output").forEach((output) => output.remove());
  const frame = document.querySelector("iframe")?.contentDocument.body;
  return live.textContent + (frame?.textContent ?? "");
}
"""
# axe cannot judge elements that are hidden, moving or scrolled out of sight.
# It also assumes that the canvas of a frame is white.
SHOW_ALL = """
() => {
  for (const box of document.querySelectorAll("pre, .log, .big")) {
    const still = box.cloneNode(true);
    still.style.height = "auto";
    box.replaceWith(still);
  }
  for (const panel of document.querySelectorAll(".source > .panel")) {
    panel.style.maxHeight = "none";
    panel.parentElement.style.position = "static";
  }
  for (const line of document.querySelectorAll(".line")) {
    line.style.cssText = "padding: 0; text-indent: 0; white-space: pre";
  }
  for (const part of document.querySelectorAll("[hidden]")) {
    part.hidden = false;
  }
  for (const { contentDocument } of document.querySelectorAll("iframe")) {
    contentDocument.documentElement.style.background = "Canvas";
  }
}
"""
INTERACTIVE = """
() => [...document.querySelectorAll(
  "a[href], button, input, select, textarea, summary, iframe, [tabindex='0']",
)].filter((element) => element.checkVisibility() && !element.disabled)
  .filter(({ type, checked }) => type !== "radio" || checked)
  .map((element) => element.outerHTML.slice(0, 60))
"""
FOCUSED = """
() => {
  const element = document.activeElement;
  if (element === document.body || element === window.first) return [];
  window.first ??= element;
  const isOutlined = getComputedStyle(element).outlineStyle !== "none";
  return [element.outerHTML.slice(0, 60), isOutlined];
}
"""
IS_OPEN = "() => document.activeElement.parentElement.open"


@pytest.fixture(scope="module")
def site():
    """The app, with a model that does not pause."""
    running = Server("flask run", FLASK_OFFLINE_WORD_SECONDS="0")
    yield running
    running.stop()


@pytest.fixture
def open_page(page, site):
    def open_page(path):
        page.goto(f"{site.url}{path}")
        return page

    yield open_page
    if page.url.endswith(ERROR):
        page.problems.clear()


@pytest.fixture(scope="module")
def axe_core(tmp_path_factory):
    folder = tmp_path_factory.mktemp("npm")
    npm.unpack({"axe-core": AXE_CORE}, folder)
    return folder / "axe-core/package/axe.min.js"


@pytest.fixture(scope="module")
def used_pages(browser, axe_core):
    """A page with axe in all of its frames."""
    page = new_page(browser)
    page.add_init_script(path=axe_core)
    yield [page]
    page.context.close()


@pytest.fixture
def check(page):
    """Return a function that lists what axe finds in light and dark mode."""

    def check(*kinds, schemes=("light", "dark"), contrast=True):
        found = []
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            found += page.evaluate(RUN_AXE, [kinds, contrast])
        return found

    return check


def start(page):
    """Start the live part, and wait until its text changes."""
    before = page.evaluate(LIVE_TEXT)
    page.locator(".live button").first.press("Enter")
    for form in page.locator("#compose, #edit").all():  # silent until then
        expect(page.locator("#state")).to_have_text("open")
        form.locator("#text").fill("Hello")
        form.get_by_role("button").click()
    has_changed = f"(before) => ({LIVE_TEXT})() !== before"
    page.wait_for_function(has_changed, arg=before)
    expect(page.locator(".live [aria-busy=true]")).to_have_count(0)


def tab_through(page):
    """Tab once around the page, open every panel, and return the stops."""
    stops = []
    while len(stops) < MOST_STOPS:
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if not stop:
            break
        stops.append(stop)
        if stop[0].startswith("<summary"):
            open_with_keys(page)
    return stops


def open_with_keys(page):
    was_open = page.evaluate(IS_OPEN)
    page.keyboard.press("Enter")
    assert page.evaluate(IS_OPEN) != was_open
    page.keyboard.press("Space")
    assert page.evaluate(IS_OPEN) == was_open
    if not was_open:
        page.keyboard.press("Enter")


@pytest.mark.parametrize("path", PATHS)
def test_tab_reaches_everything_and_axe_finds_no_problem(
    check, open_page, path
):
    page = open_page(path)
    page.expected = "401" if path == "/demos/private" else ""  # in the panel
    stops = tab_through(page)
    assert [html for html, _ in stops] == page.evaluate(INTERACTIVE)
    # A focused frame matches no CSS selector, so no style can outline it.
    plain = [html for html, is_outlined in stops if not is_outlined]
    assert [html for html in plain if not html.startswith("<iframe")] == []

    page.evaluate(KEEP_ONE_TOKEN_OF_EACH_KIND)
    if path in LESSON_PATHS:
        assert check("violations", schemes=["light"], contrast=False) == []
        start(page)
    page.evaluate(SHOW_ALL)
    assert check("violations", "incomplete") == []


def test_axe_reports_violations_and_incomplete_checks(check, page, site):
    html = """<!doctype html><html lang="en"><title>A</title><main><h1>A</h1>
        <iframe title="B" srcdoc="<h2>B</h2><button></button>"></iframe>
        <p style="background: url(/static/icon.svg)">C</p></main>"""
    page.route("**/*", lambda route: route.fulfill(body=html))
    page.goto(site.url)
    assert check("violations", "incomplete", schemes=["light"]) == [
        ["button-name", "iframe button"],
        ["color-contrast", "p"],
    ]


def test_space_stops_what_enter_has_started(open_page):
    page = open_page("/demos/numbers")
    start(page)
    expect(page.locator("#state")).to_have_text("open")
    page.get_by_role("button", name="Stop", exact=True).press("Space")
    expect(page.locator("#state")).to_have_text("closed")


def test_the_only_h1_is_the_title(client):
    for path in PATHS:
        page = client.get(path, headers={"Accept": "text/html"}).text
        (title,) = re.findall("<title>(.+)</title>", page)
        assert re.findall("<h1>(.+)</h1>", page) == [title]
