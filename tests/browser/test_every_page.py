"""Every page as visitors use it: from the last row, by keyboard, on a phone."""

import re

import axe
import npm
import pytest
from conftest import NAMES, PROJECT, Server, wait_until
from playwright.sync_api import Page, expect

from app import app as application
from demos import LESSONS
from website.pages import texts

LESSON_WITH_ALL_KINDS_OF_TOKENS = "/demos/relay"
ERROR = "/demos/nope"
OTHER_PATHS = [
    rule.rule
    for rule in application.url_map.iter_rules()
    if rule.endpoint.startswith("pages.") and not rule.arguments
]
START = "#start, #form button:not([type])"
DISTANCE = "e => e.getBoundingClientRect().top + scrollY"
# Until somebody sends something:
QUIET = ("broadcast", "notifications", "document", "private")
PHONE = {"width": 320, "height": 740}
# Open all panels. Return whether the page is narrow enough in every tab.
FITS = """
() => {
  for (const panel of document.querySelectorAll("details")) panel.open = true;
  const fits = () => document.documentElement.scrollWidth <= innerWidth;
  const tabs = [...document.querySelectorAll(".tabs label")];
  return fits() && tabs.every((tab) => { tab.click(); return fits(); });
}
"""
FONT_PX = 16
SERVER_LINES = 12

# Record the newest part of the live part.
WATCH = """
() => {
  const live = document.querySelector(".live");
  new MutationObserver((records) => {
    for (const { addedNodes, target } of records) {
      const isSeen = (node) => node.isConnected && node.textContent.trim();
      const added = [...addedNodes].findLast(isSeen);
      if (added || addedNodes.length === 0) window.newest = added ?? target;
    }
  }).observe(live, { childList: true, characterData: true, subtree: true });
  for (const frame of live.querySelectorAll("iframe")) {
    frame.addEventListener("load", () => { window.newest = frame; });
  }
}
"""
# Return what is not legible from the last row when a teacher shows it.
OUT_OF_SIGHT = """
([fontPx, serverLines]) => {
  const screen = { top: 0, left: 0, bottom: innerHeight, right: innerWidth };
  const within = (inner, outer) =>
    inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1 &&
    inner.left >= outer.left - 1 && inner.right <= outer.right + 1;
  const box = (element) => element.getBoundingClientRect();
  const isSeen = (element) => within(box(element), screen);
  const found = [];
  const live = document.querySelector(".live");
  const controls = live.firstElementChild.querySelectorAll("button, input");
  for (const control of controls) {
    if (!isSeen(control)) found.push(control.outerHTML);
  }
  if (!isSeen(document.querySelector("#timeline"))) found.push("timeline");

  const range = document.createRange();
  range.selectNode(newest);
  const place = range.getBoundingClientRect();
  const start = { ...place.toJSON(), bottom: place.top + 10 };
  start.right = Math.min(place.right, place.left + 10);
  let parent = newest.parentElement;
  for (; parent !== live; parent = parent.parentElement) {
    const isBox = getComputedStyle(parent).overflowY !== "visible";
    if (isBox && !within(start, box(parent))) found.push("in its box: newest");
  }
  if (!within(start, screen)) found.push(`newest: ${newest.textContent}`);

  const panel = document.querySelector(".Server");
  const seen = [...panel.querySelectorAll(".line")].filter((line) =>
    line.textContent.trim() && isSeen(line) && within(box(line), box(panel)));
  if (seen.length < serverLines) found.push(`${seen.length} server lines`);
  for (const line of document.querySelectorAll(".source .line")) {
    if (parseFloat(getComputedStyle(line).fontSize) < fontPx) {
      found.push(`small: ${line.textContent}`);
    }
    if (line.scrollWidth > line.clientWidth) {
      found.push(`cut: ${line.textContent}`);
    }
  }
  for (const line of seen) {
    const isWrapped = line.id.startsWith("demos/") && box(line).height > 30;
    if (isWrapped) found.push(`wrapped: ${line.textContent}`);
  }
  for (const button of document.querySelectorAll("[data-copies]")) {
    const pre = button.closest(".code").querySelectorAll("pre");
    for (const { top } of [...pre].map(box).filter(({ height }) => height)) {
      if (top < box(button).bottom) found.push(button.textContent);
    }
  }
  const wire = document.querySelector("section#wire .wire");
  if (wire && (box(wire).bottom > innerHeight || !wire.textContent)) {
    found.push("wire");
  }
  return found;
}
"""

# Let the Tab key start at the beginning of an element.
START_BEFORE = """
(root) => {
  const start = document.createElement("span");
  start.tabIndex = -1;
  root.prepend(start);
  start.focus();
  start.remove();
}
"""
# Return what the Tab key should reach.
INTERACTIVE = """
(root) => [...root.querySelectorAll(
  "a[href], button, input, select, textarea, summary, iframe, [tabindex='0']",
)].filter((element) => element.checkVisibility() && !element.disabled)
  .filter(({ type, checked }) => type !== "radio" || checked)
  .map((element) => element.outerHTML.slice(0, 60))
"""
MOST_STOPS = 100
# Return the focused element, and whether it has an outline.
FOCUSED = """
(root) => {
  const element = document.activeElement;
  const isOutside = element === document.body || !root.contains(element);
  if (isOutside || element === window.first) return null;
  if (element === window.latest) return "within"; // a frame
  window.first ??= element;
  window.latest = element;
  const isOutlined = getComputedStyle(element).outlineStyle !== "none";
  return [element.outerHTML.slice(0, 60), isOutlined];
}
"""
IS_OPEN = "() => document.activeElement.parentElement.open"


@pytest.fixture(scope="module")
def site():
    """The app, with a model that does not pause."""
    with Server(
        "flask run",
        FLASK_OFFLINE_WORD_SECONDS="0",
        FLASK_TRUSTED_HOSTS="pi.test",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def axe_script(tmp_path_factory):
    return axe.script(npm.shared_folder(tmp_path_factory))


def state(page: Page):
    return page.locator("#state")


def press_start(page: Page) -> None:
    for field in page.locator("#prompt").all():
        field.fill("Show me Markdown")  # the chat empties it
    page.locator(START).first.click()
    for form in page.locator("#compose, #edit").all():  # silent until then
        expect(state(page)).to_have_text("open")
        form.locator("#text").fill("Hello")
        form.get_by_role("button").first.click()


def press_stop(page: Page) -> None:
    page.get_by_role("button", name="Stop", exact=True).first.click()
    expect(state(page)).to_have_text("closed")


def tab_through(page: Page, selector: str) -> None:
    """Check that Tab reaches everything in this element, and open all panels.

    Whatever has the focus has an outline.
    """
    root = page.locator(selector)
    root.evaluate(START_BEFORE)
    stops = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = root.evaluate(FOCUSED)
        if stop is None:
            break
        if stop == "within":
            continue
        stops.append(stop)
        if stop[0].startswith("<summary"):
            open_with_keys(page)
    assert [html for html, _ in stops] == root.evaluate(INTERACTIVE)
    # A focused frame matches no CSS selector, so no style can outline it.
    plain = [html for html, is_outlined in stops if not is_outlined]
    assert [html for html in plain if not html.startswith("<iframe")] == []


def open_with_keys(page: Page) -> None:
    was_open = page.evaluate(IS_OPEN)
    page.keyboard.press("Enter")
    assert page.evaluate(IS_OPEN) != was_open
    page.keyboard.press("Space")
    assert page.evaluate(IS_OPEN) == was_open
    if not was_open:
        page.keyboard.press("Enter")


def fits_a_phone(page: Page) -> bool:
    page.set_viewport_size(PHONE)
    return page.evaluate(FITS)


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_works_from_the_last_row_by_keyboard_and_on_a_phone(
    lesson_page, axe_script, name
):
    page = lesson_page(name)
    page.expected = "401" if name == "private" else ""  # before the login
    below = page.get_by_text("Notice:").first
    distance = below.evaluate(DISTANCE)
    page.evaluate(WATCH)
    assert state(page).text_content() == "closed"
    view = page.locator(".Server .line").filter(has_text=re.compile("^@bp"))
    expect(view.first).to_be_in_viewport()

    # A teacher shows it on a projector.
    press_start(page)
    page.wait_for_function("() => window.newest")
    if LESSONS[name].wire_beside:
        page.locator("#wire .wire").get_by_text(r"\n").first.wait_for()
    sizes = [FONT_PX, SERVER_LINES]  # a box scrolls in the next frame
    wait_until(lambda: page.evaluate(OUT_OF_SIGHT, sizes) == [])
    if name != "six_connections":  # because it shows that no connection is left
        assert below.evaluate(DISTANCE) == distance
    expect(page.locator(".live [aria-busy=true]")).to_have_count(0)
    press_stop(page)

    # Then with the Wire panel.
    if not LESSONS[name].wire_beside:
        page.locator("#wire > summary").click()
        opened = re.compile("status 200, text/(event-stream|html)")
        page.locator("#wire pre > div", has_text=opened).wait_for()
    for box in page.locator("#shared").all():
        box.check()  # so that a connection is left for the panel
    press_start(page)
    rows = page.locator("#wire pre > div")
    rows.nth(1 if name in QUIET else 2).wait_for()
    expect(page.locator(".live [aria-busy=true]")).to_have_count(0)
    press_stop(page)

    tab_through(page, ".live")
    assert fits_a_phone(page)
    # The next test judges the rest, which differs only in its words.
    assert axe.problems(page, axe_script, ".source", ".prose-text") == []


@pytest.mark.parametrize(
    "path", [*OTHER_PATHS, ERROR, LESSON_WITH_ALL_KINDS_OF_TOKENS]
)
def test_a_complete_page_works_by_keyboard_and_on_a_phone(
    page, site, axe_script, path
):
    page.goto(f"{site.url}{path}")
    tab_through(page, "body")
    assert fits_a_phone(page)
    assert axe.problems(page, axe_script) == []
    if path == ERROR:
        page.get_by_role("heading", name="Not Found").wait_for()
        page.expected = "Failed to load resource"


def test_axe_reports_violations_and_incomplete_checks(page, site, axe_script):
    html = """<!doctype html><html lang="en"><title>A</title><main><h1>A</h1>
        <iframe title="B" srcdoc="<h2>B</h2><button></button>"></iframe>
        <p style="background: url(/static/icon.svg)">C</p></main>"""
    page.route("**/*", lambda route: route.fulfill(body=html))
    page.goto(site.url)
    assert axe.problems(page, axe_script) == [
        ["button-name", "iframe button"],
        ["color-contrast", "p"],
        ["color-contrast", "p"],
    ]


def test_space_stops_what_enter_has_started(lesson_page):
    page = lesson_page("numbers")
    page.locator(START).first.press("Enter")
    expect(state(page)).to_have_text("open")
    page.get_by_role("button", name="Stop", exact=True).press("Space")
    expect(state(page)).to_have_text("closed")


def test_closing_the_wire_panel_aborts_its_request(lesson_page):
    page, requests = lesson_page("prices"), []
    page.on("request", lambda request: requests.append(request))
    summary = page.locator("#wire > summary")
    summary.click()
    page.get_by_text("sends a second request").wait_for()
    page.locator("#wire pre").get_by_text(r"\n").first.wait_for()
    fetched = [one for one in requests if one.resource_type == "fetch"]
    with page.expect_event("requestfailed", lambda one: one == fetched[-1]):
        summary.click()


def test_the_only_h1_is_the_title(client):
    lessons = [f"/demos/{name}" for name in NAMES]
    for path in [*OTHER_PATHS, *lessons, ERROR]:
        page = client.get(path, headers={"Accept": "text/html"}).text
        (title,) = re.findall("<title>(.+)</title>", page)
        assert re.findall("<h1>(.+)</h1>", page) == [title]


def test_the_arrow_keys_open_the_neighbouring_lessons_except_in_a_field(
    page, site
):
    page.goto(f"{site.url}/demos/{NAMES[1]}")
    for field in ("#interval", "#tab-Server"):
        page.locator(field).focus()
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-curl")).to_be_checked()
    page.locator("#tab-curl").blur()
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/demos/{NAMES[2]}")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/demos/{NAMES[1]}")


def test_tab_and_enter_skip_to_the_first_lesson(page, site):
    page.goto(site.url)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/demos/{NAMES[0]}")


def test_copy_puts_exactly_the_file_on_the_clipboard(lesson_page):
    page = lesson_page("hello")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy demos/hello.py").click()
    page.get_by_role("button", name="Copied").wait_for()
    text = page.evaluate("() => navigator.clipboard.readText()")
    assert text == (PROJECT / "demos/hello.py").read_text("utf-8")


def test_copy_works_over_plain_http_on_a_local_network(page, site):
    page.goto(f"http://pi.test:{site.port}/demos/hello")
    assert not page.evaluate("() => isSecureContext")
    page.get_by_role("button", name="Copy demos/hello.py").click()
    page.get_by_role("button", name="Copied").wait_for()
    page.evaluate(
        """() => {
          document.body.append(document.createElement("textarea"));
          document.querySelector("textarea").focus();
        }"""
    )
    page.keyboard.press("Control+V")
    pasted = page.locator("textarea").input_value()
    assert pasted == (PROJECT / "demos/hello.py").read_text("utf-8")


def test_a_link_shows_the_line_to_change(lesson_page):
    page = lesson_page("hello")
    page.locator("#tab-curl").check()
    page.get_by_role("link", name=re.compile("is the line to change")).click()
    marked = page.locator(".Server .marked")
    expect(marked).to_be_in_viewport()
    snippet = texts(LESSONS["hello"]).attempt_snippets
    assert any(one in marked.text_content() for one in snippet)


def test_an_imported_name_links_to_its_definition(lesson_page):
    page = lesson_page("clock")
    page.get_by_text("docstring and imports").click()
    page.get_by_role("link", name="EventStream").click()
    definition = page.get_by_role("region", name="sse.EventStream")
    expect(definition).to_be_in_viewport()
    expect(definition).to_contain_text("class EventStream(Response):")


def test_a_page_explains_what_is_missing_without_javascript(
    browser, client, site
):
    assert "Without JavaScript" in client.get("/demos/hello").text
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site.url}/demos/hello")
    page.locator("#tab-Browser").check()
    expect(page.locator(".Browser pre").first).to_be_visible()
    context.close()
