"""Every page as a visitor uses it, in one visit per page."""

import re

import pytest
from conftest import NAMES, PROJECT, wait_until
from playwright.sync_api import Page, expect

from demos import LESSONS
from website.pages import texts

START = "#start, #form button:not([type])"
DISTANCE = "e => e.getBoundingClientRect().top + scrollY"
# Until somebody sends something:
QUIET = ("broadcast", "notifications", "document", "private")
PHONE = {"width": 320, "height": 740}
IS_WIDE = "() => document.documentElement.scrollWidth > innerWidth"
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


def state(page: Page):
    return page.locator("#state")


def start(page: Page) -> None:
    for field in page.locator("#prompt").all():
        field.fill("Hello")  # the chat empties it
    page.locator(START).first.click()
    expect(state(page)).to_have_text(re.compile("open"))


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop", exact=True).first.click()
    expect(state(page)).to_have_text("closed")


def open_and_close_wire(page: Page) -> None:
    """Check that Wire explains itself, shows bytes, and aborts its request."""
    wire = page.locator("#wire")
    requests = []
    page.on("request", lambda request: requests.append(request))
    wire.locator("summary").click()
    page.get_by_text("sends a second request").wait_for()
    wire.locator("pre").get_by_text(r"\n").first.wait_for()
    fetched = [one for one in requests if one.resource_type == "fetch"]
    with page.expect_event("requestfailed", lambda one: one == fetched[-1]):
        wire.locator("summary").click()
    opened = re.compile("status 200, text/(event-stream|html)")
    rows = wire.locator("pre > div").filter(has_text=opened)
    expect(rows).to_have_count(1)


def fits_a_phone(page: Page) -> bool:
    """Return whether, with all panels open, nothing is too wide."""
    page.set_viewport_size(PHONE)
    for tab in page.locator(".tabs label").all():
        tab.click()
        for summary in page.locator("summary:visible").all():
            if summary.locator("..").get_attribute("open") is None:
                summary.click()
        if page.evaluate(IS_WIDE):
            return False
    return not page.evaluate(IS_WIDE)


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_can_be_read_from_the_last_row(lesson_page, name):
    page = lesson_page(name)
    below = page.get_by_text("Notice:").first
    distance = below.evaluate(DISTANCE)
    page.evaluate(WATCH)
    assert state(page).text_content() == "closed"
    view = page.locator(".Server .line").filter(has_text=re.compile("^@bp"))
    expect(view.first).to_be_in_viewport()
    start(page)
    for form in page.locator("#compose, #edit").all():  # silent until then
        form.locator("#text").fill("Hello")
        form.get_by_role("button").first.click()
    page.wait_for_function("() => window.newest")
    if LESSONS[name].wire_beside:
        page.locator("#wire .wire").get_by_text(r"\n").first.wait_for()
    sizes = [FONT_PX, SERVER_LINES]  # a box scrolls in the next frame
    wait_until(lambda: page.evaluate(OUT_OF_SIGHT, sizes) == [])
    if name != "six_connections":  # because it shows that no connection is left
        assert below.evaluate(DISTANCE) == distance
    stop(page)


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_can_start_twice_shows_its_bytes_and_fits_a_phone(
    lesson_page, name
):
    page = lesson_page(name)
    if name == "private":  # without its cookie, the panel shows a 401
        start(page)
        stop(page)
    if not LESSONS[name].wire_beside:
        open_and_close_wire(page)
        page.locator("#wire > summary").click()
    for box in page.locator("#shared").all():
        box.check()  # so that a connection is left for the panel
    for _ in range(2):
        start(page)
        rows = page.locator("#wire pre > div")
        rows.nth(1 if name in QUIET else 2).wait_for()
        stop(page)
    assert fits_a_phone(page)


def test_the_arrow_keys_open_the_neighbouring_lessons(page, site):
    page.goto(f"{site.url}/demos/{NAMES[1]}")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/demos/{NAMES[2]}")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/demos/{NAMES[1]}")


def test_the_arrow_keys_in_a_field_open_no_other_lesson(lesson_page):
    page = lesson_page("clock")
    for field in ("#interval", "#tab-Server"):
        page.locator(field).focus()
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-curl")).to_be_checked()
    assert page.url.endswith("/demos/clock")


@pytest.mark.parametrize("path", ["/", "/cheatsheet", "/faq"])
def test_other_pages_fit_a_phone(page, site, path):
    page.goto(f"{site.url}{path}")
    assert fits_a_phone(page)


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


def test_copy_works_over_plain_http_on_a_local_network(page, start):
    server = start("flask run", FLASK_TRUSTED_HOSTS="pi.test")
    page.goto(f"http://pi.test:{server.port}/demos/hello")
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


def test_an_error_page_has_its_error_as_a_heading(page, site):
    page.goto(f"{site.url}/demos/nope")
    page.get_by_role("heading", name="Not Found").wait_for()
    page.problems.clear()
