import re
import threading
from collections.abc import Iterator
from datetime import datetime
from urllib.parse import parse_qsl, urlsplit

import pytest
from conftest import PATIENCE_SECONDS, new_page, wait_until
from playwright.sync_api import Page, expect

from demos import reconnect

STREAM = "/stream/reconnect"


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch):
    monkeypatch.setattr(reconnect, "TICK_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("drop", "ending"),
    [
        ("end", []),
        ("cut", [b"id: 6\ndata: half an ev"]),
        ("silence", [60]),
    ],
)
def test_sends_the_next_events_and_then_drops_the_connection(drop, ending):
    happened = []
    for one in reconnect.events(3, 2, drop, happened.append):
        happened.append(one if isinstance(one, bytes) else one.encode())
    assert happened == [
        0.01,
        b"id: 4\ndata: event 4\n\n",
        0.01,
        b"id: 5\ndata: event 5\n\n",
        0.01,
        *ending,
    ]


def test_a_cut_stream_is_exactly_these_bytes(client):
    assert client.get(f"{STREAM}?retry=500&drop_after=1&drop=cut").text == (
        "retry: 500\nid: 1\ndata: event 1\n\nid: 2\ndata: half an ev"
    )


@pytest.mark.parametrize(
    ("header", "query", "first"),
    [
        ("41", "", 42),
        (None, "&last=41", 42),
        ("41", "&last=7", 42),
        ("x", "&last=41", 42),
        ("0", "&last=0", 1),
        (None, "&last=1000000000000000", 1000000000000001),
    ],
)
def test_resumes_after_the_last_event_id_or_else_after_last_in_the_url(
    client, header, query, first
):
    headers = {} if header is None else {"Last-Event-ID": header}
    answer = client.get(f"{STREAM}?drop_after=1{query}", headers=headers)
    assert answer.text == f"retry: 1000\nid: {first}\ndata: event {first}\n\n"


def test_the_first_request_gets_events_whatever_the_status(client):
    for status in reconnect.STATUSES.split():
        with client.get(f"{STREAM}?status={status}") as response:
            assert response.status_code == 200
            assert response.content_type == "text/event-stream"


@pytest.mark.parametrize(
    ("query", "headers", "last"),
    [
        ("", {"Last-Event-ID": "3"}, "3"),
        ("&last=3", {}, "3"),
        ("&drop_after=0", {}, "0"),
    ],
    ids=["Last-Event-ID", "last", "drop_after=0"],
)
def test_a_reconnect_gets_what_the_status_says(client, query, headers, last):
    def get(status):
        path = f"{STREAM}?status={status}&retry=500{query}"
        return client.get(path, headers=headers)

    for status in (204, 401, 404, 500, 503):
        response = get(status)
        assert (response.status_code, response.data) == (status, b"")
    for status in (301, 307):
        response = get(status)
        assert response.status_code == status
        url = urlsplit(response.headers["Location"])
        kept = dict(parse_qsl(f"retry=500{query}")) | {"last": last}
        assert (url.netloc, url.path) == ("", STREAM)
        assert dict(parse_qsl(url.query)) == kept
    response = get("text")
    assert response.status_code == 200
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.data == b"data: no event\n\n"


# The page


AGAIN = "Retry failures"
WATCH = "Watch silence"
SILENT = "No event for 3000 ms: the page reconnects."
UNAVAILABLE = (
    "Failed to load resource: the server responded with a status of 503 "
    "(SERVICE UNAVAILABLE)"
)


def begin(page: Page, *boxes: str, **fields: str) -> None:
    for name, value in fields.items():
        field = page.locator(f".live [name={name}]")
        if name in ("drop", "status"):
            field.select_option(value)
        else:
            field.fill(value)
    for box in boxes:
        page.get_by_label(box).check()
    page.get_by_role("button", name="Start").click()


def log(page: Page) -> list[str]:
    """Return the lines that the page shows, oldest first."""
    return page.locator("#log > *").all_text_contents()[::-1]


def wait_for_event(page: Page, number: int) -> None:
    page.locator("#log > *").get_by_text(
        f"event {number}", exact=True
    ).wait_for()


def ids(page: Page) -> list[int]:
    """Return the numbers of the events that arrived."""
    found = re.findall(r"^event (\d+)$", "\n".join(log(page)), re.M)
    return [int(number) for number in found]


def waits(page: Page) -> list[int]:
    """Return the delays before each new EventSource, in milliseconds."""
    pattern = "creates a new EventSource in (.+) ms"
    return [int(ms) for ms in re.findall(pattern, "\n".join(log(page)))]


def expect_problems(page: Page, *problems: str) -> None:
    wait_until(
        lambda: {*problems} <= {*page.problems} or page.wait_for_timeout(10)
    )
    assert {*page.problems} == {*problems}
    page.problems.clear()


def test_the_browser_reconnects_after_a_drop_but_not_after_a_failure(
    live, page
):
    page.goto(f"{live.url}/demos/reconnect")
    begin(page, AGAIN, retry="100", drop_after="100")
    wait_for_event(page, 1)
    page.evaluate("window.first = source")
    for drop, status in (("cut", "200"), ("end", "301")):
        begin(page, drop_after="2", drop=drop, status=status)
        assert page.evaluate("first.readyState") == 2
        wait_for_event(page, 5)
        assert ids(page)[:5] == [1, 2, 3, 4, 5]
        assert waits(page) == []  # the browser reconnects by itself

    page.get_by_label(AGAIN).uncheck()
    for status in ("503", "204"):
        begin(page, drop_after="1", drop="end", status=status)
        expect(page.locator("#state")).to_have_text("failed")
        assert page.evaluate("source.readyState") == 2
        assert (ids(page), waits(page)) == ([1], [])
        expect(page.locator("#wire .wire")).to_contain_text(f"status {status}")
    expect_problems(page, UNAVAILABLE)


@pytest.fixture(scope="module")
def paused_page(browser) -> Iterator[Page]:
    page = new_page(browser)
    page.clock.install(time=datetime(2026, 1, 1))
    page.clock.pause_at(datetime(2026, 1, 2))
    yield page
    page.context.close()


@pytest.fixture
def timed(paused_page, live) -> Iterator[Page]:
    """A page whose timers run only when the test runs them."""
    paused_page.goto(f"{live.url}/demos/reconnect")
    yield paused_page
    paused_page.goto("about:blank")


def expect_new_source_after(page: Page, ms: int) -> None:
    page.evaluate("window.previous = source")
    page.clock.run_for(ms - 1)
    assert page.evaluate("source === previous")
    page.clock.run_for(1)
    assert not page.evaluate("source === previous")


def expect_that_stop_ends_everything(page: Page) -> None:
    page.get_by_role("button", name="Stop", exact=True).click()
    assert page.evaluate("source.readyState") == 2
    page.evaluate("window.previous = source")
    page.clock.run_for(600_000)
    assert page.evaluate("source === previous")


def test_the_page_retries_ever_more_slowly_until_the_server_recovers(timed):
    delays = [500, 2000, 4000, 8000, 16_000, 30_000, 30_000]
    timed.evaluate("Math.random = () => 0")  # the shortest delay
    begin(timed, AGAIN, retry="0", drop_after="1", status="503")
    for count, ms in enumerate(delays, start=1):
        wait_until(lambda count=count: len(waits(timed)) == count)
        timed.evaluate("Math.random = () => 1")  # from now on, the longest
        if count == len(delays):  # the server recovers
            timed.locator("[name=status]").select_option("200")
        expect_new_source_after(timed, ms)
    assert waits(timed) == delays
    wait_for_event(timed, 2)
    assert ids(timed)[:2] == [1, 2]
    assert timed.evaluate("failures") == 0
    begin(timed, status="503")
    wait_until(lambda: waits(timed) == [1000])
    expect_that_stop_ends_everything(timed)
    expect_problems(timed, UNAVAILABLE)


@pytest.fixture
def send_next(monkeypatch):
    """Return a function that lets each open stream send its next event."""
    events, gates = reconnect.events, []

    def gated(*arguments):
        gate = threading.Semaphore(0)
        gates.append(gate)
        return events(
            *arguments, sleep=lambda _: gate.acquire(timeout=PATIENCE_SECONDS)
        )

    def send_next(count=1):
        for gate in gates:
            gate.release(count)

    monkeypatch.setattr(reconnect, "events", gated)
    yield send_next
    send_next(200)


def wait_until_open(page: Page) -> None:
    wait_until(lambda: page.evaluate("source.readyState") == 1)


def expect_silence_after(page: Page, ms: int) -> None:
    before = log(page).count(SILENT)
    page.clock.run_for(ms - 1)
    assert log(page).count(SILENT) == before
    page.clock.run_for(1)
    assert log(page).count(SILENT) == before + 1


def test_the_page_notices_silence_and_resumes(timed, send_next):
    begin(timed, WATCH, drop_after="100")
    wait_until_open(timed)
    expect_silence_after(timed, 3000)
    wait_until_open(timed)
    for number in (1, 2):
        send_next()
        wait_for_event(timed, number)
        timed.clock.run_for(2000)
    expect_silence_after(timed, 1000)  # each event restarted the watchdog
    wait_until_open(timed)
    send_next()
    wait_for_event(timed, 3)
    assert ids(timed) == [1, 2, 3]
    expect_that_stop_ends_everything(timed)
