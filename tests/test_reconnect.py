import json
import re
import signal
from collections.abc import Iterator
from datetime import datetime
from urllib.parse import parse_qsl, urlsplit

import pytest
from conftest import new_page, wait_until
from playwright.sync_api import Page, expect

from demos import reconnect

STREAM = "/stream/reconnect"


@pytest.mark.parametrize(
    ("drop", "ending"),
    [
        ("end", []),
        ("cut", [b"id: 6\ndata: half an ev"]),
        ("silence", [60]),
    ],
)
def test_sends_the_events_after_the_last_and_then_drops(drop, ending):
    happened = []
    for one in reconnect.events({"a": 1}, 3, 2, drop, happened.append):
        happened.append(one if isinstance(one, bytes) else one.encode())
    assert happened == [
        b'event: asked\ndata: {"a":1}\n\n',
        0.5,
        b"id: 4\ndata: event 4\n\n",
        0.5,
        b"id: 5\ndata: event 5\n\n",
        0.5,
        *ending,
    ]


def test_a_cut_stream_is_exactly_these_bytes(server):
    path = f"{STREAM}?retry=500&drop_after=1&drop=cut"
    with server.get(path) as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        assert client.read().decode() == (
            "retry: 500\n"
            "event: asked\n"
            f'data: {{"url":"{path}","header":"none"}}\n\n'
            "id: 1\ndata: event 1\n\n"
            "id: 2\ndata: half an ev"
        )


@pytest.mark.parametrize(
    ("header", "query", "first"),
    [
        ("41", "", 42),
        (None, "&last=41", 42),
        ("41", "&last=7", 42),
        ("x", "&last=41", 42),
        ("", "&last=41", 42),
        ("9" * 16, "&last=41", 42),
        ("0", "&last=0", 1),
        (None, "&last=1000000000000000", 1000000000000001),
    ],
)
def test_resumes_after_the_last_event_id_or_else_last_in_the_url(
    client, monkeypatch, header, query, first
):
    monkeypatch.setattr(reconnect, "TICK_SECONDS", 0)
    headers = {} if header is None else {"Last-Event-ID": header}
    path = f"{STREAM}?drop_after=1{query}"
    answer = client.get(path, headers=headers)
    asked, event = answer.text.split("\n\n", 1)
    assert json.loads(asked.partition("data: ")[2]) == {
        "url": path,
        "header": "none" if header is None else header,
    }
    assert event == f"id: {first}\ndata: event {first}\n\n"


RECONNECTS = pytest.mark.parametrize(
    ("query", "headers", "last"),
    [
        ("", {"Last-Event-ID": "3"}, 3),
        ("&last=3", {}, 3),
        ("&drop_after=0", {}, 0),
    ],
    ids=["Last-Event-ID", "last", "drop_after=0"],
)


def test_the_first_request_gets_events_whatever_the_status(client):
    for status in reconnect.STATUSES.split():
        with client.get(f"{STREAM}?status={status}") as response:
            assert response.status_code == 200
            assert response.content_type == "text/event-stream"
            assert next(response.response) == b"retry: 1000\n"


@RECONNECTS
def test_a_reconnect_gets_the_status_and_no_body(client, query, headers, last):
    for status in (204, 401, 404, 500, 503):
        path = f"{STREAM}?status={status}{query}"
        response = client.get(path, headers=headers)
        assert response.status_code == status
        assert response.data == b""


@RECONNECTS
def test_a_reconnect_is_redirected_to_the_next_events(
    client, query, headers, last
):
    expected = {"drop": "cut", "retry": "500", "last": str(last)}
    if "drop_after" in query:
        expected["drop_after"] = "0"
    for status in (301, 307):
        path = f"{STREAM}?status={status}&drop=cut&retry=500{query}"
        response = client.get(path, headers=headers)
        assert response.status_code == status
        url = urlsplit(response.headers["Location"])
        assert (url.path, dict(parse_qsl(url.query))) == (STREAM, expected)


@RECONNECTS
def test_a_reconnect_gets_a_wrong_content_type(client, query, headers, last):
    response = client.get(f"{STREAM}?status=text{query}", headers=headers)
    assert response.status_code == 200
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.data == b"data: no event\n\n"


def test_204_has_no_body_and_a_redirect_a_relative_url(server):
    with server.get(f"{STREAM}?status=204&last=3") as client:
        assert (client.status, client.read()) == (204, b"")
    with server.get(f"{STREAM}?status=307&last=3") as client:
        assert client.status == 307
        assert client.header("Location") == f"{STREAM}?last=3"


RETRY = "retry must be an integer from 0 to 60000, got {!r}."
DROP_AFTER = "drop_after must be an integer from 0 to 100, got {!r}."
LAST = "last must be an integer from 0 to 1000000000000000, got {!r}."
DROP = "drop must be one of end, cut, silence."
STATUS = "status must be one of 200, 204, 301, 307, 401, 404, 500, 503, text."


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        *(("retry", value, RETRY) for value in ("-1", "60001", "0.5", "x", "")),
        *(("drop_after", value, DROP_AFTER) for value in ("-1", "101", "")),
        *(("last", value, LAST) for value in ("-1", "1" + "0" * 14 + "1", "")),
        *(("drop", value, DROP) for value in ("cuts", "END", "")),
        *(("status", value, STATUS) for value in ("201", "text/plain", "")),
    ],
)
def test_refuses_what_is_out_of_range(client, name, value, sentence):
    answer = client.get(STREAM, query_string={name: value})
    assert answer.status_code == 400
    assert answer.json == {"error": sentence.format(value)}


NEW = "new EventSource: readyState is 0, CONNECTING."
UNDEFINED = "eventSource.reconnectTime is undefined."
OPEN = "open: readyState is 1, OPEN."
CONNECTING = "error: readyState is 0, CONNECTING."
CLOSED = "error: readyState is 2, CLOSED."
REDIRECTED = "The browser followed a redirect."
RECONNECTING = (
    "After the reconnection time, the browser reconnects with Last-Event-ID: "
)
SILENT = (
    "The page closed it after {} ms without an event: readyState is 2, CLOSED."
)
AGAIN = "Retry after a failure"
WATCH = "Watch for silence"
LONG_MS = 600_000
ANSWERED = "Failed to load resource: the server responded with a status of {}"
UNAVAILABLE = ANSWERED.format("503 (SERVICE UNAVAILABLE)")
WRONG_TYPE = (
    'EventSource\'s response has a MIME type ("text/plain") that is not '
    '"text/event-stream". Aborting the connection.'
)


def asked(query: str, header: str = "none") -> str:
    return (
        f"The server received a request for {STREAM}?{query} with "
        f"Last-Event-ID: {header}."
    )


def dropped(last: str) -> str:
    return (
        "The connection dropped. An incomplete event is discarded. "
        f"{RECONNECTING}{last}."
    )


def failed(last: str) -> str:
    return (
        f"The response to Last-Event-ID: {last} was not an event stream. "
        "The browser has failed the connection for good, and the page cannot "
        "see the status."
    )


def begin(page: Page, *boxes: str, **fields: str) -> None:
    for name, value in fields.items():
        field = page.locator(f"[name={name}]")
        if name in ("drop", "status"):
            field.select_option(value)
        else:
            field.fill(value)
    for box in boxes:
        page.get_by_label(box).check()
    page.get_by_role("button", name="Start").click()


def log(page: Page) -> list[str]:
    """Return the lines that the page shows, without the time of day."""
    lines = page.locator("#log > *").all_text_contents()
    return [re.sub(r"^[\d:]+\s[AP]M ", "", line) for line in lines]


def log_until(page: Page, sentence: str, count: int = 1) -> list[str]:
    """Return the lines up to the `count`th one with this sentence."""
    found = page.locator("#log > *", has_text=sentence)
    found.nth(count - 1).wait_for()
    lines = log(page)
    places = [place for place, one in enumerate(lines) if one == sentence]
    return lines[: places[count - 1] + 1]


def messages(lines: list[str]) -> list[int]:
    """Return the numbers of the events that arrived."""
    found = re.findall(r"^message: event (\d+)\.$", "\n".join(lines), re.M)
    return [int(number) for number in found]


def waits(lines: list[str]) -> list[int]:
    """Return the waits before each new EventSource, in milliseconds."""
    found = re.findall("creates a new EventSource in (.+) ms", "\n".join(lines))
    return [int(wait) for wait in found]


def expect_problems(page: Page, *problems: str) -> None:
    wait_until(
        lambda: len(page.problems) >= len(problems) or page.wait_for_timeout(10)
    )
    assert page.problems == [*problems]
    page.problems.clear()


@pytest.fixture(scope="module")
def used_pages(browser) -> Iterator[list]:
    """One page, whose timers run only when a test runs them."""
    page = new_page(browser)
    page.clock.install(time=datetime(2026, 1, 1))
    page.clock.pause_at(datetime(2026, 1, 2))
    yield [page]
    page.context.close()


@pytest.fixture
def lab(lesson_page) -> Page:
    return lesson_page("reconnect")


def run_timers(page: Page, ms: int) -> list[str]:
    page.clock.run_for(ms)
    return log(page)


@pytest.mark.parametrize("drop", ["end", "cut"])
def test_the_browser_reconnects_a_dropped_connection(lab, drop):
    query = f"retry=0&drop_after=1&drop={drop}&status=200&last=0"
    begin(lab, retry="0", drop_after="1", drop=drop)
    assert log_until(lab, asked(query, "1")) == [
        *(NEW, UNDEFINED, OPEN, asked(query), "message: event 1."),
        *(CONNECTING, dropped("1"), OPEN, asked(query, "1")),
    ]


@pytest.mark.parametrize("status", ["301", "307"])
def test_the_browser_follows_a_redirect_with_the_last_event_id(lab, status):
    begin(lab, retry="0", drop_after="1", status=status)
    redirected = asked("retry=0&drop_after=1&drop=end&last=1", "1")
    lines = log_until(lab, redirected)
    assert lines[5:] == [CONNECTING, dropped("1"), OPEN, REDIRECTED, redirected]


@pytest.mark.parametrize(
    ("status", "problems"),
    [
        ("204", []),
        ("401", [ANSWERED.format("401 (UNAUTHORIZED)")]),
        ("404", [ANSWERED.format("404 (NOT FOUND)")]),
        ("500", [ANSWERED.format("500 (INTERNAL SERVER ERROR)")]),
        ("503", [UNAVAILABLE]),
        ("text", [WRONG_TYPE]),
    ],
)
def test_the_browser_fails_the_connection_for_good(lab, status, problems):
    begin(lab, drop_after="0", status=status)
    expected = [NEW, UNDEFINED, CLOSED, failed("none")]
    assert log_until(lab, failed("none")) == expected
    expect(lab.locator("#state")).to_have_text("closed")
    assert run_timers(lab, LONG_MS) == expected
    expect_problems(lab, *problems)


def test_204_stops_a_browser_that_reconnects(lab):
    begin(lab, retry="0", drop_after="1", status="204")
    lines = log_until(lab, failed("1"))
    assert lines[4:] == [
        *("message: event 1.", CONNECTING, dropped("1"), CLOSED, failed("1")),
    ]
    assert run_timers(lab, LONG_MS) == lines


@pytest.mark.parametrize(
    ("retry", "less_than"), [("100", 3000), ("1500", 30_000)]
)
def test_the_browser_waits_for_the_reconnection_time(lab, retry, less_than):
    requests = []
    lab.on("request", lambda one: STREAM in one.url and requests.append(one))
    begin(lab, retry=retry, drop_after="0")
    log_until(lab, OPEN, 2)
    first, second = (one.timing["startTime"] for one in requests[:2])
    waited = second - first - reconnect.TICK_SECONDS * 1000
    assert int(retry) - 20 <= waited < less_than


@pytest.mark.own_page
def test_the_browser_reconnects_by_itself_to_a_restarted_server(page, start):
    server = start("flask run")
    page.goto(f"{server.url}/demos/reconnect")
    begin(page, retry="100", drop_after="100")
    log_until(page, "message: event 1.")
    server.stop(signal.SIGKILL)
    last = messages(log_until(page, CONNECTING, 2))[-1]
    gone = f"The browser could not connect. {RECONNECTING}{last}."
    log_until(page, gone)
    start("flask run", port=server.port)
    lines = log_until(page, f"message: event {last + 1}.")
    assert (lines.count(NEW), lines.count(OPEN)) == (1, 2)
    assert messages(lines) == [*range(1, last + 2)]
    page.close()
    assert all("net::ERR_" in problem for problem in page.problems)
    page.problems.clear()


@pytest.mark.parametrize(
    ("chance", "expected"),
    [
        ("0", [500, 1000, 2000, 4000, 8000, 15_000, 15_000]),
        ("1", [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]),
    ],
)
def test_the_waits_of_the_page_double_up_to_30_seconds(lab, chance, expected):
    lab.evaluate(f"Math.random = () => {chance}")
    begin(lab, AGAIN, drop_after="0", status="503")
    for count, wait in enumerate(expected, start=1):
        log_until(lab, failed("none"), count)
        before = log(lab)
        assert waits(before) == expected[:count]
        assert run_timers(lab, wait - 1) == before
        assert run_timers(lab, 1)[len(before)] == NEW
    log_until(lab, failed("none"), len(expected) + 1)
    expect_problems(lab, *[UNAVAILABLE] * (len(expected) + 1))


def test_the_page_retries_until_the_server_recovers_and_resumes(lab):
    begin(lab, AGAIN, retry="0", drop_after="1", status="503")
    log_until(lab, failed("1"))
    run_timers(lab, 1000)
    log_until(lab, failed("none"))
    lines = log(lab)

    lab.locator("[name=status]").select_option("200")
    run_timers(lab, 2000)
    query = "retry=0&drop_after=1&drop=end&status=200&last=1"
    assert log_until(lab, "message: event 2.")[len(lines) :] == [
        *(NEW, OPEN, asked(query), "message: event 2."),
    ]

    lab.route(f"**{STREAM}?*", lambda route: route.fulfill(status=503))
    wait_until(lambda: len(waits(log(lab))) == 3)
    first, second, after_recovery = waits(log(lab))
    assert 500 <= first <= 1000
    assert 1000 <= second <= 2000
    assert 500 <= after_recovery <= 1000
    by_route = ANSWERED.format("503 (Service Unavailable)")
    expect_problems(lab, UNAVAILABLE, UNAVAILABLE, by_route)


def test_the_page_notices_silence_and_resumes(lab):
    begin(lab, WATCH, drop_after="1", drop="silence")
    lines = log_until(lab, "message: event 1.")
    assert run_timers(lab, 2999) == lines
    run_timers(lab, 1)
    query = "retry=1000&drop_after=1&drop=silence&status=200&last=1"
    assert log_until(lab, "message: event 2.")[len(lines) :] == [
        *(SILENT.format(3000), NEW, OPEN, asked(query), "message: event 2."),
    ]


def test_each_event_restarts_the_watchdog(lab):
    begin(lab, WATCH, drop_after="100")
    for _ in range(2):
        number = len(messages(log(lab))) + 1
        log_until(lab, f"message: event {number}.")
        assert SILENT.format(3000) not in run_timers(lab, 2000)


def test_the_page_notices_a_request_without_a_response(lab):
    begin(lab, WATCH, retry="0", drop_after="1")
    log_until(lab, "open: readyState is 1, OPEN.")
    lab.route(f"**{STREAM}?*", lambda route: None)
    lines = log_until(lab, dropped("1"))
    assert run_timers(lab, 2999) == lines
    assert run_timers(lab, 1)[len(lines) :] == [SILENT.format(3000), NEW]


def test_the_box_takes_effect_during_a_silence(lab):
    box = lab.get_by_label(WATCH)
    begin(lab, drop_after="0", drop="silence")
    log_until(lab, OPEN)
    run_timers(lab, 5000)
    box.check()
    run_timers(lab, 2000)
    box.uncheck()
    assert NEW not in run_timers(lab, 5000)[1:]
    box.check()
    assert SILENT.format(3000) in run_timers(lab, 3000)


def test_the_page_does_not_retry_once_the_box_is_unticked(lab):
    begin(lab, AGAIN, drop_after="0", status="503")
    lines = log_until(lab, failed("none"))
    lab.get_by_label(AGAIN).uncheck()
    assert NEW not in run_timers(lab, LONG_MS)[len(lines) :]
    expect_problems(lab, UNAVAILABLE)


@pytest.mark.parametrize(
    ("boxes", "fields"),
    [
        ([AGAIN], {"drop": "silence"}),
        ([AGAIN, WATCH], {"retry": "60000"}),
    ],
    ids=["silence", "the browser waits"],
)
def test_the_page_does_nothing_without_a_failure(lab, boxes, fields):
    begin(lab, *boxes, drop_after="0", **fields)
    lines = log_until(lab, dropped("none") if "retry" in fields else OPEN)
    assert NEW not in run_timers(lab, 60_000)[len(lines) :]


@pytest.mark.parametrize(
    ("fields", "sentence", "problems"),
    [
        ({"drop_after": "100"}, OPEN, []),
        ({"drop_after": "0", "retry": "60000"}, dropped("none"), []),
        ({"drop_after": "0", "status": "503"}, failed("none"), [UNAVAILABLE]),
    ],
    ids=["open", "the browser waits", "the page waits"],
)
def test_stop_ends_everything(lab, fields, sentence, problems):
    stop = lab.get_by_role("button", name="Stop")
    stop.click()
    begin(lab, AGAIN, WATCH, **fields)
    log_until(lab, sentence)
    stop.click()
    lines = log(lab)
    expect(lab.locator("#state")).to_have_text("closed")
    assert lab.evaluate("source.readyState") == 2

    requests = []
    lab.on("request", lambda one: requests.append(one.url))
    assert run_timers(lab, LONG_MS) == lines
    lab.evaluate("fetch('/static/icon.svg')")
    assert [url.rpartition("/")[2] for url in requests] == ["icon.svg"]
    expect_problems(lab, *problems)


def test_a_second_start_replaces_the_first(lab):
    begin(lab, AGAIN, WATCH, drop_after="100")
    log_until(lab, "message: event 1.")
    lab.evaluate("window.first = source")
    begin(lab)
    assert lab.evaluate("first.readyState") == 2
    query = "retry=1000&drop_after=100&drop=end&status=200&last=0"
    lines = log_until(lab, asked(query))
    assert lines == [NEW, UNDEFINED, OPEN, asked(query)]
