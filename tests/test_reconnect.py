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
def test_sends_the_next_events_and_then_drops_the_connection(drop, ending):
    happened = []
    for one in reconnect.events(3, 2, drop, happened.append):
        happened.append(one if isinstance(one, bytes) else one.encode())
    assert happened == [
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
            "retry: 500\nid: 1\ndata: event 1\n\nid: 2\ndata: half an ev"
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
def test_resumes_after_the_last_event_id_or_else_after_last_in_the_url(
    client, monkeypatch, header, query, first
):
    monkeypatch.setattr(reconnect, "TICK_SECONDS", 0)
    headers = {} if header is None else {"Last-Event-ID": header}
    path = f"{STREAM}?drop_after=1{query}"
    answer = client.get(path, headers=headers)
    event = f"id: {first}\ndata: event {first}\n\n"
    assert answer.text == f"retry: 1000\n{event}"


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


def test_204_has_no_body_and_a_redirect_has_a_relative_url(server):
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
def test_refuses_values_out_of_range(client, name, value, sentence):
    answer = client.get(STREAM, query_string={name: value})
    assert answer.status_code == 400
    assert answer.json == {"error": sentence.format(value)}


SILENT = "No event for 3000 ms: the page reconnects."
AGAIN = "Retry failures"
WATCH = "Watch silence"
LONG_MS = 600_000
ANSWERED = "Failed to load resource: the server responded with a status of {}"
UNAVAILABLE = ANSWERED.format("503 (SERVICE UNAVAILABLE)")
WRONG_TYPE = (
    'EventSource\'s response has a MIME type ("text/plain") that is not '
    '"text/event-stream". Aborting the connection.'
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


def wait_for(page: Page, sentence: str, count: int = 1) -> None:
    line = page.locator("#log > *").get_by_text(sentence)
    line.nth(count - 1).wait_for()


def ids(page: Page) -> list[int]:
    """Return the numbers of the events that arrived."""
    found = re.findall(r"^event (\d+)$", "\n".join(log(page)), re.M)
    return [int(number) for number in found]


def waits(page: Page) -> list[int]:
    """Return the delays before each new EventSource, in milliseconds."""
    pattern = "creates a new EventSource in (.+) ms"
    return [int(ms) for ms in re.findall(pattern, "\n".join(log(page)))]


def expect_state(page: Page, word: str) -> None:
    expect(page.locator("#state")).to_have_text(word)


def expect_problems(page: Page, *problems: str) -> None:
    wait_until(
        lambda: len(page.problems) >= len(problems) or page.wait_for_timeout(10)
    )
    assert set(page.problems) == {*problems}
    page.problems.clear()


@pytest.fixture
def lab(lesson_page) -> Page:
    return lesson_page("reconnect")


@pytest.mark.parametrize("drop", ["end", "cut"])
def test_the_browser_reconnects_a_dropped_connection(lab, drop):
    begin(lab, retry="0", drop_after="2", drop=drop)
    wait_for(lab, "event 5")
    assert ids(lab)[:5] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("status", ["301", "307"])
def test_the_browser_follows_a_redirect_with_the_last_event_id(lab, status):
    begin(lab, retry="0", drop_after="1", status=status)
    wait_for(lab, "event 3")
    assert ids(lab)[:3] == [1, 2, 3]


@pytest.mark.parametrize(
    ("status", "problems"),
    [
        ("401", [ANSWERED.format("401 (UNAUTHORIZED)")]),
        ("404", [ANSWERED.format("404 (NOT FOUND)")]),
        ("500", [ANSWERED.format("500 (INTERNAL SERVER ERROR)")]),
        ("503", [UNAVAILABLE]),
        ("text", [WRONG_TYPE]),
    ],
)
def test_the_browser_gives_up_after_a_failure(lab, status, problems):
    begin(lab, retry="0", drop_after="1", status=status)
    expect_state(lab, "failed")
    assert lab.evaluate("source.readyState") == 2
    assert ids(lab) == [1]
    wire = lab.locator("#wire .wire")
    answer = "200, text/plain" if status == "text" else status
    expect(wire).to_contain_text(f"status {answer}")
    expect_problems(lab, *problems)


def test_204_stops_a_browser_that_reconnects(lab):
    begin(lab, retry="0", drop_after="1", status="204")
    expect_state(lab, "failed")
    assert lab.evaluate("source.readyState") == 2
    assert ids(lab) == [1]


@pytest.mark.own_page
def test_the_browser_reconnects_by_itself_to_a_restarted_server(page, start):
    server = start("flask run")
    page.goto(f"{server.url}/demos/reconnect")
    begin(page, retry="100", drop_after="100")
    wait_for(page, "event 1")
    server.stop(signal.SIGKILL)
    expect_state(page, "reconnecting")
    last = ids(page)[-1]
    start("flask run", port=server.port)
    wait_for(page, f"event {last + 1}")
    received = ids(page)  # more events may have arrived by now
    assert received == [*range(1, len(received) + 1)]
    page.close()
    assert all("net::ERR_" in problem for problem in page.problems)
    page.problems.clear()


@pytest.fixture
def timed(browser, site) -> Iterator[Page]:
    """A page whose timers run only when the test runs them."""
    page = new_page(browser)
    page.clock.install(time=datetime(2026, 1, 1))
    page.clock.pause_at(datetime(2026, 1, 2))
    page.goto(f"{site.url}/demos/reconnect")
    yield page
    page.context.close()


@pytest.mark.parametrize(
    ("chance", "expected"),
    [
        ("0", [500, 1000, 2000, 4000, 8000, 15_000, 15_000]),
        ("1", [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]),
    ],
)
def test_the_delays_of_the_page_double_up_to_30_seconds(
    timed, chance, expected
):
    timed.evaluate(f"Math.random = () => {chance}")
    begin(timed, AGAIN, drop_after="0", status="503")
    for count, wait in enumerate(expected, start=1):
        wait_until(lambda count=count: len(waits(timed)) == count)
        timed.evaluate("window.previous = source")
        timed.clock.run_for(wait - 1)
        assert timed.evaluate("source === previous")
        timed.clock.run_for(1)
        assert not timed.evaluate("source === previous")
    assert waits(timed)[: len(expected)] == expected


def test_the_page_retries_until_the_server_recovers_and_resumes(lab):
    begin(lab, AGAIN, retry="0", drop_after="1", status="503")
    wait_until(lambda: len(waits(lab)) == 2)
    lab.locator("[name=status]").select_option("200")
    wait_for(lab, "event 2")
    assert ids(lab)[:2] == [1, 2]
    first, second = waits(lab)[:2]
    assert 500 <= first <= 1000
    assert 1000 <= second <= 2000
    expect_problems(lab, UNAVAILABLE)


def test_the_page_notices_silence_and_resumes(timed):
    begin(timed, WATCH, drop_after="1", drop="silence")
    wait_for(timed, "event 1")
    timed.clock.run_for(2999)
    assert SILENT not in log(timed)
    timed.clock.run_for(1)
    assert SILENT in log(timed)
    wait_for(timed, "event 2")
    assert ids(timed) == [1, 2]


def test_each_event_restarts_the_watchdog(timed):
    begin(timed, WATCH, drop_after="100")
    for _ in range(2):
        wait_for(timed, f"event {len(ids(timed)) + 1}")
        timed.clock.run_for(2000)
        assert SILENT not in log(timed)


@pytest.mark.parametrize(
    ("fields", "problems"),
    [
        ({"drop_after": "100"}, []),
        ({"drop_after": "1", "drop": "silence"}, []),
        ({"drop_after": "0", "status": "503"}, [UNAVAILABLE]),
    ],
    ids=["open", "silent", "the page waits"],
)
def test_stop_ends_everything(timed, fields, problems):
    begin(timed, AGAIN, WATCH, **fields)
    if problems:
        wait_until(lambda: len(waits(timed)) == 1)
    else:
        wait_for(timed, "event 1")
    timed.get_by_role("button", name="Stop", exact=True).click()
    assert timed.evaluate("source.readyState") == 2
    timed.evaluate("window.previous = source")
    timed.clock.run_for(LONG_MS)
    assert timed.evaluate("source === previous")
    assert set(timed.problems) == {*problems}


def test_a_second_start_replaces_the_first(lab):
    begin(lab, AGAIN, WATCH, drop_after="100")
    wait_for(lab, "event 1")
    lab.evaluate("window.first = source")
    begin(lab)
    assert lab.evaluate("first.readyState") == 2
    wait_for(lab, "event 1")
