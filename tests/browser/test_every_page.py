"""Every page as a visitor uses it, with one visit per page."""

import re

import pytest
from conftest import NAMES, PROJECT
from playwright.sync_api import Page, expect

START = "#start, #form > button:not([type])"
DISTANCE = "e => e.getBoundingClientRect().top + scrollY"
QUIET = ("notifications", "document")  # until somebody sends something
PHONE = {"width": 320, "height": 740}
IS_WIDE = "() => document.documentElement.scrollWidth > innerWidth"


def state(page: Page):
    return page.locator("#state, tbody tr:first-child td:nth-child(2)").first


def start(page: Page) -> None:
    for field in page.locator("#prompt").all():
        field.fill("Hello")  # the chat empties it
    page.locator(START).click()
    expect(state(page)).to_have_text("open")


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop").click()
    expect(state(page)).to_have_text("closed")


def open_and_close_wire(page: Page) -> None:
    """Check that Wire explains itself, shows bytes, and aborts its request."""
    wire = page.locator("#wire")
    requests = []
    page.on("request", lambda request: requests.append(request))
    wire.locator("summary").click()
    page.get_by_text("This is a second request").wait_for()
    wire.locator("pre").get_by_text(r"\n").first.wait_for()
    fetched = [one for one in requests if one.resource_type == "fetch"]
    with page.expect_event("requestfailed", lambda one: one == fetched[-1]):
        wire.locator("summary").click()
    opened = re.compile("status 200, text/(event-stream|html)")
    rows = wire.locator("pre > div").filter(has_text=opened)
    expect(rows).to_have_count(1)


def fits_a_phone(page: Page) -> bool:
    """Tell whether nothing makes it scroll sideways, with all panels open."""
    page.set_viewport_size(PHONE)
    for summary in page.locator("summary").all():
        if summary.locator("..").get_attribute("open") is None:
            summary.click()
    return not page.evaluate(IS_WIDE)


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_starts_stops_and_starts_again_and_nothing_moves(
    lesson_page, name
):
    page = lesson_page(name)
    below = page.get_by_text("Notice:").first
    distance = below.evaluate(DISTANCE)
    assert state(page).text_content() == "closed"
    start(page)
    stop(page)
    open_and_close_wire(page)

    for box in page.locator("#shared").all():
        box.check()  # or no connection is left for the panel
    start(page)
    page.locator("#wire > summary").click()
    page.locator("#wire pre > div").nth(1 if name in QUIET else 2).wait_for()
    assert below.evaluate(DISTANCE) == distance
    stop(page)

    assert fits_a_phone(page)
    for following in NAMES[NAMES.index(name) + 1 :][:1]:
        page.locator("a[rel=next]").press("Enter")
        page.wait_for_url(f"**/demos/{following}", wait_until="commit")


@pytest.mark.parametrize("path", ["/", "/cheatsheet"])
def test_other_pages_fit_a_phone(page, site, path):
    page.goto(f"{site.url}{path}")
    assert fits_a_phone(page)


def test_tab_and_enter_open_the_first_lesson(page, site):
    page.goto(site.url)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/demos/{NAMES[0]}")


def test_copy_puts_the_very_file_on_the_clipboard(lesson_page):
    page = lesson_page("hello")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-copies='demos/hello.py']").click()
    page.get_by_role("button", name="Copied").wait_for()
    text = page.evaluate("() => navigator.clipboard.readText()")
    assert text == (PROJECT / "demos/hello.py").read_text("utf-8")


def test_an_error_page_is_a_page(page, site):
    page.goto(f"{site.url}/demos/nope")
    page.get_by_role("heading", name="Not Found").wait_for()
    page.problems.clear()
