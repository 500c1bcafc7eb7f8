"""The page, mostly with faster streams than those of a clock."""

import re

import pytest
from conftest import wait_until
from playwright.sync_api import Page, expect

ROWS = range(1, 9)
SIX = ["open"] * 6 + ["connecting"] * 2
TOGETHER = ["open"] + ["shared"] * 7
CLOSED = ["closed"] * 8

CLOCK = "/sse?interval=0.1"
NUMBERS = "/real-time-updates?interval=0.1"  # no two events are equal
OTHER_STREAM = """
    const Standard = EventSource;
    globalThis.EventSource = class extends Standard {{
      constructor(url) {{ super(url.replace(/^.sse$/, "{}")); }}
    }};
"""


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def states(page: Page):
    return page.locator("#streams td:nth-child(2)")


def last_events(page: Page) -> list[str]:
    return page.locator("#streams td:nth-child(3)").all_text_contents()


def wait_for_events(page: Page, rows=range(1, 7), count: int = 2) -> None:
    """Wait until each of the rows has shown `count` more events."""
    for _ in range(count):
        before = last_events(page)
        wait_until(
            lambda before=before: all(
                last_events(page)[row - 1] != before[row - 1] for row in rows
            )
        )


def wait_for_same_event(*pages: Page) -> None:
    """Wait until all rows of all pages show the same event, twice."""
    seen = {"–"}

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
    page.context.on(
        "request",
        lambda request: (
            request.url.endswith(NUMBERS) and requests.append(request)
        ),
    )
    return requests


@pytest.fixture(scope="module")
def used_pages() -> list:
    """Pages whose streams are replaced by faster ones."""
    return []


@pytest.fixture
def lesson(lesson_page, page, asked) -> Page:
    if not hasattr(page, "has_other_stream"):
        page.context.add_init_script(OTHER_STREAM.format(NUMBERS))
        page.has_other_stream = True
    return lesson_page("six_connections")


def begin(page: Page, shared: bool = False) -> None:
    page.get_by_label("Share one connection").set_checked(shared)
    press(page, "Start")
    expect(states(page)).to_have_text(TOGETHER if shared else SIX)


def second_window(page: Page) -> Page:
    with page.expect_popup() as popup:
        press(page, "Open a second window")
    expect(states(popup.value)).to_have_text(CLOSED)
    return popup.value


def test_six_streams_open_and_two_hang_while_events_arrive(lesson):
    begin(lesson)
    wait_for_events(lesson)
    expect(states(lesson)).to_have_text(SIX)
    assert last_events(lesson)[6:] == ["–", "–"]


def test_the_limit_is_not_the_servers(site):
    streams = [site.get("/sse") for _ in ROWS]
    assert [stream.status for stream in streams] == [200] * len(ROWS)
    for stream in streams:
        stream.close()


def test_when_one_is_closed_another_opens(lesson):
    begin(lesson)
    press(lesson, "Close 3")
    opened = ["open"] * 2 + ["closed"] + ["open"] * 4 + ["connecting"]
    expect(states(lesson)).to_have_text(opened)
    wait_for_events(lesson, [7])
    press(lesson, "Close 7")
    expect(states(lesson).last).to_have_text("open")


MORE_REQUESTS = """() => {
  globalThis.arrived = [];
  const tell = (what) => () => arrived.push(what);
  new EventSource("/stream/hello").onopen = tell("stream");
  const picture = new Image();
  picture.onload = tell("picture");
  picture.src = "/static/icon.svg?next";
  const page = document.createElement("iframe");
  page.onload = tell("page");
  page.src = "/demos/hello";
  document.body.append(page);
  fetch("/poll").then(tell("answer"));
}"""


def test_every_other_request_hangs(lesson):
    begin(lesson)
    lesson.evaluate(MORE_REQUESTS)
    wait_for_events(lesson)
    assert lesson.evaluate("arrived") == []
    press(lesson, "Stop")
    wait_until(lambda: len(lesson.evaluate("arrived")) == 4)


def test_six_connections_are_for_all_windows_together(lesson):
    second = second_window(lesson)
    begin(lesson)
    press(second, "Start")
    wait_for_events(lesson)
    expect(states(second)).to_have_text(["connecting"] * 8)
    press(lesson, "Stop")
    expect(states(second)).to_have_text(SIX)


def test_a_second_window_hangs_until_streams_are_closed(lesson):
    begin(lesson)
    with lesson.context.expect_page() as opened:
        press(lesson, "Open a second window")
        wait_for_events(lesson)
        assert not opened.is_done()
        press(lesson, "Stop")
    expect(states(opened.value)).to_have_text(CLOSED)


@pytest.mark.parametrize("shared", [False, True])
def test_stop_closes_all_and_start_opens_them_again(lesson, shared):
    for _ in range(2):
        begin(lesson, shared)
        press(lesson, "Stop")
        expect(states(lesson)).to_have_text(CLOSED)


@pytest.mark.parametrize("shared", [False, True])
def test_a_second_start_replaces_the_first(lesson, asked, shared):
    begin(lesson, shared)
    wait_for_events(lesson, count=1)
    begin(lesson, shared)
    wait_for_events(lesson)
    expect(states(lesson)).to_have_text(TOGETHER if shared else SIX)
    assert len(asked) == (2 if shared else 16)


@pytest.mark.parametrize("shared", [False, True])
def test_the_next_page_does_not_hang(lesson, shared):
    begin(lesson, shared)
    lesson.locator("a[rel=prev]").click()
    lesson.wait_for_url("**/demos/reconnect")
    lesson.get_by_role("heading", level=1, name="Reconnect").wait_for()
    lesson.go_back()
    expect(states(lesson)).to_have_text(CLOSED)
    begin(lesson, shared)


def test_eight_share_one_connection(lesson, asked):
    begin(lesson, shared=True)
    wait_for_same_event(lesson)
    expect(states(lesson)).to_have_text(TOGETHER)
    assert len(asked) == 1


def test_a_second_window_shares_the_connection(lesson, asked):
    begin(lesson, shared=True)
    second = second_window(lesson)
    second.get_by_label("Share one connection").check()
    press(second, "Start")
    expect(states(second)).to_have_text(["shared"] * 8)
    wait_for_same_event(lesson, second)
    assert len(asked) == 1


def test_when_the_reader_is_closed_the_next_takes_over(lesson, asked):
    begin(lesson, shared=True)
    wait_for_same_event(lesson)
    press(lesson, "Close 1")
    taken_over = ["closed", "open"] + ["shared"] * 6
    expect(states(lesson)).to_have_text(taken_over)
    wait_for_events(lesson, range(2, 9))
    assert len(asked) == 2


def test_when_another_is_closed_the_reader_continues(lesson, asked):
    begin(lesson, shared=True)
    press(lesson, "Close 5")
    expect(states(lesson).nth(4)).to_have_text("closed")
    wait_for_events(lesson, [1, 2, 3, 4, 6, 7, 8])
    press(lesson, "Close 1")
    expect(states(lesson).nth(1)).to_have_text("open")
    assert len(asked) == 2


def press_stop(page: Page) -> None:
    press(page, "Stop")


def close_the_tab(page: Page) -> None:
    page.close()


def reload(page: Page) -> None:
    page.reload()


@pytest.mark.parametrize("end", [press_stop, close_the_tab, reload])
def test_when_its_window_stops_another_window_takes_over(lesson, asked, end):
    begin(lesson, shared=True)
    second = second_window(lesson)
    second.get_by_label("Share one connection").check()
    press(second, "Start")
    wait_for_same_event(lesson, second)
    end(lesson)
    expect(states(second)).to_have_text(TOGETHER)
    wait_for_same_event(second)
    assert len(asked) == 2


@pytest.mark.own_page
@pytest.mark.parametrize(
    ("shared", "asked", "streams"), [(False, 8, 6), (True, 1, 1)]
)
def test_stop_ends_every_stream(start, page, shared, asked, streams):
    server, given_up = start("flask run"), []
    page.on("requestfailed", lambda request: given_up.append(request))
    page.add_init_script(OTHER_STREAM.format(CLOCK))
    page.goto(f"{server.url}/demos/six_connections")
    begin(page, shared)
    wait_until(lambda: "–" not in last_events(page)[:streams])
    press(page, "Stop")
    ended = "^clock: closed after"
    wait_until(lambda: len(server.logged(ended)) >= streams)
    wait_until(lambda: len(given_up) == asked or page.wait_for_timeout(10))


def test_streams_alone_and_together_take_turns(lesson, asked):
    for shared in (False, True, False, True):
        begin(lesson, shared)
    wait_for_same_event(lesson)
    assert len(asked) == 8 + 1 + 8 + 1


@pytest.mark.own_page
def test_without_locks_nothing_can_be_shared(page, lesson_page):
    page.add_init_script("delete Navigator.prototype.locks")
    lesson_page("six_connections")
    expect(page.get_by_label("Share one connection")).to_be_disabled()
    press(page, "Start")
    expect(states(page)).to_have_text(SIX)


@pytest.mark.own_page
def test_the_page_was_loaded_over_http_1_1_and_shows_the_time(lesson_page):
    page = lesson_page("six_connections")
    expect(page.locator("#protocol")).to_have_text("http/1.1")
    begin(page)
    wait_for_events(page, count=1)
    for text in last_events(page)[:6]:
        assert re.fullmatch(r"The time is \d\d:\d\d:\d\d", text)


def test_no_word_is_cut_on_a_phone(lesson_page):
    page = lesson_page("six_connections")
    page.set_viewport_size({"width": 390, "height": 844})
    lines = page.locator(".streams").evaluate(
        """(table) => [...table.querySelectorAll("th, button")].map((cell) => {
          const text = document.createRange();
          text.selectNodeContents(cell);
          return text.getClientRects().length;
        })"""
    )
    assert lines == [1] * (3 + 8)
