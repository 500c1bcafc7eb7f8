import re
import time
from datetime import datetime

import pytest
from conftest import wait_until
from playwright.sync_api import expect

from demos.clock import SENTENCES, clock
from event_source import parse_events


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", r"The time is \d\d:\d\d:\d\d"),
        ("&lang=en", r"The time is \d\d:\d\d:\d\d"),
        ("&lang=zh", r"当前时间是 \d\d:\d\d:\d\d"),
    ],
)
def test_sends_the_time_as_plain_text(site, query, sentence):
    with site.get(f"/sse?interval=0.01{query}") as client:
        event = next(parse_events(client.chunks()))
    assert event.event == "message"
    assert re.fullmatch(sentence, event.data)


def test_sends_exactly_these_bytes():
    def now():
        return datetime(2026, 11, 21, 14, 3, 22)

    ticks = clock(1, SENTENCES["zh"], now=now, sleep=lambda _: None)
    assert next(ticks).encode() == "data: 当前时间是 14:03:22\n\n".encode()


def test_headers_are_sent_immediately_and_ticks_an_interval_later(server):
    start = time.monotonic()
    with server.get("/sse?interval=10") as client:
        assert client.status == 200
        assert next(client.chunks()) == b":\n"
    assert time.monotonic() - start < 5


def test_a_disconnect_logs_the_clean_up_with_its_ticks(server):
    before = len(server.log)

    def ticks():
        lines = "\n".join(server.log[before:])
        found = re.findall(r"(?m)^clock: closed after (\d+) ticks$", lines)
        return max(map(int, found), default=0)

    with server.get("/sse?interval=0.2") as client:
        events = parse_events(client.chunks())
        for _ in range(3):
            next(events)
    wait_until(lambda: ticks() >= 3)


def test_refuses_another_language(client):
    for lang in ("", "de", "EN"):
        response = client.get(f"/sse?lang={lang}")
        assert response.status_code == 400
        assert response.json["error"] == (
            f"lang must be en or zh, got {lang!r}."
        )


def test_page_opens_before_the_first_tick(lesson_page):
    page = lesson_page("clock")
    page.get_by_label("Interval in seconds").fill("10")
    page.get_by_role("button", name="Start").click()
    page.locator("#state", has_text="open").wait_for()
    assert page.locator("#time").text_content() == "…"


def test_page_shows_the_time_in_chinese(lesson_page):
    page = lesson_page("clock")
    page.get_by_label("Interval in seconds").fill("0.1")
    page.get_by_label("Language").select_option("zh")
    page.get_by_role("button", name="Start").click()
    page.locator("#time", has_text="当前时间是").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("closed")
