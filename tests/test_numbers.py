from functools import partial

from conftest import wait_until
from playwright.sync_api import expect

from demos import numbers
from event_source import parse_events
from sse import EventStream

PATH = "/real-time-updates"


def take(response, count):
    events = parse_events(response.response)
    return [next(events) for _ in range(count)]


def test_sends_exactly_these_bytes():
    naps = []
    stream = numbers.numbers(
        41, 2, numbers.cable, choose=lambda stop: stop - 1, sleep=naps.append
    )
    assert [next(stream).encode() for _ in range(2)] == [
        b'id: 41\ndata: {"id":41,"number":99}\n\n',
        b'id: 42\ndata: {"id":42,"number":99}\n\n',
    ]
    assert set(naps) == {2}


def test_resumes_after_the_last_event_id(client):
    for last, first in {"41": "42", "0": "1", "x": "1"}.items():
        with client.get(PATH, headers={"Last-Event-ID": last}) as response:
            assert take(response, 1)[0].id == first


def test_page_shows_no_gap_after_its_connection_was_cut(
    live, page, monkeypatch
):
    monkeypatch.setattr(numbers, "EventStream", partial(EventStream, retry=50))
    page.goto(f"{live.url}/demos/numbers")
    page.get_by_label("Interval in seconds").fill("0.05")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("id 3:").wait_for()
    page.get_by_role("button", name="Cut the connection").click()
    page.locator("#state", has_text="reconnecting").wait_for()
    page.locator("#state", has_text="open").wait_for()
    before = int(page.locator("#received").text_content())
    wait_until(lambda: int(page.locator("#received").text_content()) > before)
    assert page.locator("#missing").text_content() == "0"
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("closed")
