"""Every page as a visitor meets it."""

import re

import pytest
from conftest import NAMES, PROJECT
from playwright.sync_api import expect

START = "#start, #form > button:not([type])"
DISTANCE = "e => e.getBoundingClientRect().top + scrollY"
QUIET = ("notifications", "document")  # until somebody sends something
PHONE = {"width": 320, "height": 740}

pages = pytest.mark.parametrize("name", NAMES)


def state(page):
    return page.locator("#state, tbody tr:first-child td:nth-child(2)").first


@pages
def test_live_starts_stops_and_starts_again(lesson_page, name):
    page = lesson_page(name)
    assert state(page).text_content() == "closed"
    for _ in range(2):
        for field in page.locator("#prompt").all():
            field.fill("Hello")  # the chat empties it
        page.locator(START).click()
        expect(state(page)).to_have_text("open")
        page.get_by_role("button", name="Stop").click()
        expect(state(page)).to_have_text("closed")


@pages
def test_wire_shows_bytes_and_says_what_it_is(lesson_page, name):
    page = lesson_page(name)
    requests = []
    page.on("request", lambda request: requests.append(request))
    page.locator("#wire > summary").click()
    page.get_by_text("This is a second request").wait_for()
    page.locator("#wire pre").get_by_text(r"\n").first.wait_for()
    opened = page.get_by_text(
        re.compile("status 200, text/(event-stream|html)")
    )
    expect(page.locator("#wire pre > div").filter(has=opened)).to_have_count(1)
    with page.expect_event("requestfailed") as aborted:
        page.locator("#wire > summary").click()
    fetched = [r for r in requests if r.resource_type == "fetch"]
    assert fetched[-1] == aborted.value


@pages
def test_nothing_moves_while_events_arrive(lesson_page, name):
    page = lesson_page(name)
    below = page.get_by_text("Notice:").first
    before = below.evaluate(DISTANCE)
    for box in page.locator("#shared").all():
        box.check()  # or no connection is left for the panel
    page.locator(START).click()
    page.locator("#wire > summary").click()
    page.locator("#wire pre > div").nth(1 if name in QUIET else 2).wait_for()
    assert below.evaluate(DISTANCE) == before


@pytest.mark.parametrize(
    "path", ["/", "/cheatsheet", *(f"/demos/{name}" for name in NAMES)]
)
def test_no_page_scrolls_sideways_on_a_phone(page, site, path):
    page.set_viewport_size(PHONE)
    page.goto(f"{site.url}{path}")
    for summary in page.locator("summary").all():
        if summary.locator("..").get_attribute("open") is None:
            summary.click()
    wide = "document.documentElement.scrollWidth > innerWidth"
    assert page.evaluate(f"() => {wide}") is False


def test_copy_puts_the_very_file_on_the_clipboard(lesson_page, site):
    page = lesson_page("hello")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-copies='demos/hello.py']").click()
    page.get_by_role("button", name="Copied").wait_for()
    text = page.evaluate("() => navigator.clipboard.readText()")
    assert text == (PROJECT / "demos/hello.py").read_text("utf-8")


def test_the_course_can_be_walked_with_the_keyboard(page, site):
    page.goto(site.url)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/demos/hello")
    for name in NAMES[1:]:
        page.locator("a[rel=next]").press("Enter")
        page.wait_for_url(f"**/demos/{name}")


def test_an_error_page_is_a_page(page, site):
    page.goto(f"{site.url}/demos/nope")
    page.get_by_role("heading", name="Not Found").wait_for()
    page.problems.clear()
