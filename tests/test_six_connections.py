"""The lesson's page, mostly with faster streams than a clock's."""

import re

import pytest
from conftest import wait_until
from playwright.sync_api import Page, expect

SIX = "6 open, 2 connecting"
STREAMS = 8
NOTHING = "no event yet"

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


def wait_for_events(page: Page, streams=range(1, 7), count: int = 2) -> None:
    """Wait until each of the streams has shown `count` more events."""
    for _ in range(count):
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
    expect(state(page)).to_have_text("open" if shared else SIX)


def second_window(page: Page) -> Page:
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open a second window").click()
    popup.value.wait_for_load_state()
    return popup.value


def test_six_streams_open_and_two_hang_while_events_arrive(lesson):
    begin(lesson)
    wait_for_events(lesson)
    expect(state(lesson)).to_have_text(SIX)
    assert last_events(lesson)[6:] == [NOTHING] * 2


def test_the_server_does_not_impose_the_limit(site):
    streams = [site.get("/sse") for _ in range(STREAMS)]
    assert [stream.status for stream in streams] == [200] * STREAMS
    for stream in streams:
        stream.close()


def test_when_a_stream_is_closed_another_one_opens(lesson):
    begin(lesson)
    close_stream(lesson, 3)
    expect(state(lesson)).to_have_text("6 open, 1 connecting")
    wait_for_events(lesson, [7])
    close_stream(lesson, 7)
    expect(state(lesson)).to_have_text("6 open")


MORE_REQUESTS = """() => {
  globalThis.arrived = [];
  const note = (what) => () => arrived.push(what);
  new EventSource("/stream/hello").onopen = note("stream");
  const picture = new Image();
  picture.onload = note("picture");
  picture.src = "/static/icon.svg?next";
  const page = document.createElement("iframe");
  page.onload = note("page");
  page.src = "/demos/hello";
  document.body.append(page);
  fetch("/poll").then(note("answer"));
}"""


def test_every_other_request_hangs(lesson):
    begin(lesson)
    lesson.evaluate(MORE_REQUESTS)
    wait_for_events(lesson)
    assert lesson.evaluate("arrived") == []
    press(lesson, "Stop")
    wait_until(lambda: len(lesson.evaluate("arrived")) == 4)


def test_all_windows_together_get_six_connections(lesson):
    second = second_window(lesson)
    begin(lesson)
    press(second, "Start")
    wait_for_events(lesson)
    expect(state(second)).to_have_text("8 connecting")
    press(lesson, "Stop")
    expect(state(second)).to_have_text(SIX)


def test_a_second_window_hangs_until_streams_are_closed(lesson):
    begin(lesson)
    with lesson.context.expect_page() as opened:
        lesson.get_by_role("link", name="Open a second window").click()
        wait_for_events(lesson)
        assert not opened.is_done()
        press(lesson, "Stop")
    expect(state(opened.value)).to_have_text("closed")


@pytest.mark.parametrize("shared", [False, True])
def test_a_second_start_replaces_the_first(lesson, asked, shared):
    begin(lesson, shared)
    wait_for_events(lesson, count=1)
    begin(lesson, shared)
    wait_for_events(lesson)
    assert len(last_events(lesson)) == STREAMS
    assert len(asked) == (2 if shared else 16)
    press(lesson, "Stop")
    expect(state(lesson)).to_have_text("closed")


@pytest.mark.parametrize("shared", [False, True])
def test_the_next_page_does_not_hang(lesson, shared):
    begin(lesson, shared)
    lesson.locator("a[rel=prev]").click()
    lesson.wait_for_url("**/demos/reconnect")
    lesson.get_by_role("heading", level=1, name="Reconnect").wait_for()
    lesson.go_back()
    begin(lesson, shared)


def test_eight_streams_share_one_connection(lesson, asked):
    begin(lesson, shared=True)
    wait_for_same_event(lesson)
    assert len(asked) == 1


def test_a_second_window_shares_the_connection(lesson, asked):
    begin(lesson, shared=True)
    second = second_window(lesson)
    second.get_by_label("Share one connection").check()
    press(second, "Start")
    wait_for_same_event(lesson, second)
    expect(state(second)).to_have_text("closed")
    assert len(asked) == 1


def test_when_the_connected_stream_is_closed_the_next_takes_over(lesson, asked):
    begin(lesson, shared=True)
    wait_for_same_event(lesson)
    close_stream(lesson, 1)
    wait_for_events(lesson, range(2, 9))
    assert len(asked) == 2


def test_when_another_stream_is_closed_the_connection_continues(lesson, asked):
    begin(lesson, shared=True)
    close_stream(lesson, 5)
    wait_for_events(lesson, [1, 2, 3, 4, 6, 7, 8])
    assert len(asked) == 1
    close_stream(lesson, 1)
    wait_for_events(lesson, [2, 3, 4, 6, 7, 8])
    assert len(asked) == 2


def press_stop(page: Page) -> None:
    press(page, "Stop")


def close_the_tab(page: Page) -> None:
    page.close()


def reload(page: Page) -> None:
    page.reload()


@pytest.mark.parametrize("end", [press_stop, close_the_tab, reload])
def test_when_the_connected_window_stops_another_takes_over(lesson, asked, end):
    begin(lesson, shared=True)
    second = second_window(lesson)
    second.get_by_label("Share one connection").check()
    press(second, "Start")
    wait_for_same_event(lesson, second)
    end(lesson)
    expect(state(second)).to_have_text("open")
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
    wait_until(lambda: NOTHING not in last_events(page)[:streams])
    press(page, "Stop")
    ended = "^clock: closed after"
    wait_until(lambda: len(server.logged(ended)) >= streams)
    wait_until(lambda: len(given_up) == asked or page.wait_for_timeout(10))


def test_separate_and_shared_streams_can_alternate(lesson, asked):
    for shared in (False, True, False, True):
        begin(lesson, shared)
    wait_for_same_event(lesson)
    assert len(asked) == 8 + 1 + 8 + 1


@pytest.mark.own_page
def test_without_web_locks_the_page_cannot_share_a_connection(
    page, lesson_page
):
    page.add_init_script("delete Navigator.prototype.locks")
    lesson_page("six_connections")
    expect(page.get_by_label("Share one connection")).to_be_disabled()
    press(page, "Start")
    expect(state(page)).to_have_text(SIX)


@pytest.mark.own_page
def test_the_page_was_loaded_over_http_1_1_and_shows_the_time(lesson_page):
    page = lesson_page("six_connections")
    expect(page.locator("#protocol")).to_have_text("http/1.1")
    begin(page)
    wait_for_events(page, count=1)
    for text in last_events(page)[:6]:
        assert re.fullmatch(r"The time is \d\d:\d\d:\d\d", text)
