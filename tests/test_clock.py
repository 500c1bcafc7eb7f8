import re
import threading
import time
from datetime import datetime

from conftest import PATIENCE_SECONDS, wait_until
from playwright.sync_api import expect

from demos import clock as lesson
from demos.clock import SENTENCES, clock
from event_source import parse_events


def test_sends_the_time_as_plain_text(client):
    for query, sentence in {
        "": r"The time is \d\d:\d\d:\d\d",
        "&lang=en": r"The time is \d\d:\d\d:\d\d",
        "&lang=zh": r"当前时间是 \d\d:\d\d:\d\d",
    }.items():
        with client.get(f"/sse?interval=0.01{query}") as response:
            event = next(parse_events(response.iter_encoded()))
        assert event.event == "message"
        assert re.fullmatch(sentence, event.data)


def test_sends_exactly_these_bytes():
    def now():
        return datetime(2026, 11, 21, 14, 3, 22)

    ticks = clock(1, SENTENCES["zh"], now=now, sleep=lambda _: None)
    assert next(ticks).encode() == "data: 当前时间是 14:03:22\n\n".encode()


def test_a_disconnect_logs_the_clean_up_with_its_ticks(server):
    before = len(server.log)

    def ticks():
        lines = "\n".join(server.log[before:])
        found = re.findall(r"(?m)^clock: closed after (\d+) ticks$", lines)
        return max(map(int, found), default=0)

    with server.get("/sse?interval=0.05") as client:
        events = parse_events(client.chunks())
        for _ in range(3):
            next(events)
    wait_until(lambda: ticks() >= 3)


def test_page_opens_before_the_first_tick_and_shows_it_in_chinese(
    live, page, monkeypatch
):
    slept, due = [], threading.Event()

    def sleep(seconds):
        slept.append(seconds)
        due.wait(PATIENCE_SECONDS)
        time.sleep(seconds)

    monkeypatch.setattr(
        lesson, "clock", lambda *given: clock(*given, sleep=sleep)
    )
    page.goto(f"{live.url}/demos/clock")
    page.get_by_label("Interval in seconds").fill("0.1")
    page.get_by_label("Language").select_option("zh")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#state")).to_have_text("open")
    assert page.locator("#time").text_content() == "…"
    due.set()
    expect(page.locator("#time")).to_contain_text("当前时间是")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("closed")
    assert set(slept) == {0.1}
