"""The lesson's page, with a clock that is faster than usual."""

import re

import pytest
from conftest import wait_until
from playwright.sync_api import Page, expect

from demos import clock

SIX = "6 open, 2 connecting"
STREAMS = 8
NOTHING = "no event yet"


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def state(page: Page):
    return page.locator("#state")


def last_events(page: Page) -> list[str]:
    return page.evaluate(
        """() => [...document.querySelectorAll("#streams li")].map(
          (item) => item.firstChild.data
        )"""
    )


def close_stream(page: Page, number: int) -> None:
    page.locator("#streams button").nth(number - 1).click()


def wait_for_events(page: Page, streams=range(1, 7)) -> None:
    """Wait until each of the streams has shown two more events."""
    for _ in range(2):
        before = last_events(page)
        wait_until(
            lambda before=before: all(
                last_events(page)[number - 1] != before[number - 1]
                for number in streams
            )
        )


def wait_for_same_event(*pages: Page) -> None:
    """Wait until all streams of all pages show the same event, twice."""
    seen = {NOTHING}

    def is_same_and_new() -> bool:
        shown = {text for page in pages for text in last_events(page)}
        return len(shown) == 1 and not shown <= seen

    wait_until(is_same_and_new)
    seen.update(last_events(pages[0]))
    wait_until(is_same_and_new)


@pytest.fixture
def asked(page) -> list:
    """The requests for the stream, from all windows."""
    requests = []

    def note(request):
        if request.url.endswith("/sse"):
            requests.append(request)

    page.context.on("request", note)
    yield requests
    page.context.remove_listener("request", note)


@pytest.fixture
def lesson(live, page, monkeypatch) -> Page:
    monkeypatch.setattr(clock, "INTERVAL_SECONDS", 0.1)
    # With microseconds, no two events are equal.
    sentences = {"en": "The time is {:%H:%M:%S.%f}"}
    monkeypatch.setattr(clock, "SENTENCES", sentences)
    page.goto(f"{live.url}/demos/six_connections")
    return page


def begin(page: Page, shared: bool = False) -> None:
    page.get_by_label("Share one connection").set_checked(shared)
    press(page, "Start")


def second_window(page: Page) -> Page:
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open a second window").click()
    popup.value.wait_for_load_state()
    return popup.value


def test_six_streams_of_all_windows_open_and_all_other_requests_wait(lesson):
    expect(lesson.locator("#protocol")).to_have_text("http/1.1")
    begin(lesson)
    expect(state(lesson)).to_have_text(SIX)
    wait_for_events(lesson)
    *shown, seventh, eighth = last_events(lesson)
    assert seventh == eighth == NOTHING
    for text in shown:
        assert re.fullmatch(r"The time is \d\d:\d\d:\d\d\.\d+", text)

    with lesson.context.expect_page() as opened:
        lesson.get_by_role("link", name="Open a second window").click()
        wait_for_events(lesson)
        assert not opened.is_done()
        press(lesson, "Stop")
    second = opened.value
    begin(lesson)
    expect(state(lesson)).to_have_text(SIX)
    begin(second)
    wait_for_events(lesson)
    expect(state(second)).to_have_text("8 connecting")
    press(lesson, "Stop")
    expect(state(second)).to_have_text(SIX)
    second.close()

    begin(lesson)
    close_stream(lesson, 3)  # so that another one opens
    expect(state(lesson)).to_have_text("6 open, 1 connecting")
    wait_for_events(lesson, [7])
    begin(lesson)
    expect(state(lesson)).to_have_text(SIX)
    assert len(last_events(lesson)) == STREAMS

    lesson.locator("a[rel=prev]").click()  # the next page does not hang
    lesson.get_by_role("heading", level=1, name="Reconnect").wait_for()
    lesson.go_back()
    begin(lesson)
    expect(state(lesson)).to_have_text(SIX)


def test_all_streams_of_all_windows_share_one_connection(lesson, asked):
    for shared in (True, False, True):  # each start replaces the one before
        begin(lesson, shared)
        expect(state(lesson)).to_have_text("open" if shared else SIX)
    wait_for_same_event(lesson)
    press(lesson, "Stop")
    expect(state(lesson)).to_have_text("closed")
    begin(lesson, shared=True)
    wait_for_same_event(lesson)
    assert len(asked) == 1 + STREAMS + 1 + 1

    second = second_window(lesson)
    begin(second, shared=True)
    wait_for_same_event(lesson, second)
    close_stream(lesson, 5)
    wait_for_events(lesson, [1, 2, 3, 4, 6, 7, 8])
    expect(state(second)).to_have_text("closed")
    assert len(asked) == 11

    close_stream(lesson, 1)  # the one with the connection: the next takes over
    wait_for_events(lesson, [2, 3, 4, 6, 7, 8])
    assert len(asked) == 12


def test_without_web_locks_the_page_cannot_share_a_connection(lesson):
    other = lesson.context.new_page()
    other.add_init_script("delete Navigator.prototype.locks")
    other.goto(lesson.url)
    expect(other.get_by_label("Share one connection")).to_be_disabled()
    press(other, "Start")
    expect(state(other)).to_have_text(SIX)
