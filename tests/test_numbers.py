import json

from conftest import wait_until
from playwright.sync_api import expect

from demos import numbers
from event_source import parse_events


def take(client, count):
    events = parse_events(client.chunks())
    return [next(events) for _ in range(count)]


def test_counts_from_one_and_repeats_the_id_in_the_data(server):
    with server.get("/real-time-updates?interval=0.01") as client:
        events = take(client, 20)
    assert [event.id for event in events] == [str(n) for n in range(1, 21)]
    for event in events:
        data = json.loads(event.data)
        assert event.event == "message"
        assert list(data) == ["id", "number"]
        assert str(data["id"]) == event.id
        assert data["number"] in range(100)


def test_sends_exactly_these_bytes():
    stream = numbers.numbers(
        41, 1, numbers.cable, choose=lambda stop: stop - 1, sleep=print
    )
    assert next(stream).encode() == b'id: 41\ndata: {"id":41,"number":99}\n\n'


def test_resumes_after_the_last_event_id(site):
    for last, first in {"41": "42", "0": "1", "x": "1"}.items():
        with site.get("/real-time-updates", Last_Event_ID=last) as client:
            assert take(client, 1)[0].id == first


def test_refuses_an_interval_out_of_range(client):
    for interval in ("0", "0.009", "10.1", "0_1", ""):
        response = client.get(f"/real-time-updates?interval={interval}")
        assert response.status_code == 400
        assert response.json["error"] == (
            f"interval must be a number from 0.01 to 10, got {interval!r}."
        )


def test_a_cut_ends_the_stream_at_its_next_tick(server):
    with server.get("/real-time-updates?interval=0.05") as client:
        take(client, 1)
        with server.post("/real-time-updates/cut") as cut:
            assert cut.status == 204
        assert len(client.read()) < 1000


def test_other_sites_may_read_but_cannot_cut(client):
    headers = {"Sec-Fetch-Site": "cross-site"}
    response = client.get("/real-time-updates", headers=headers)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    response.close()
    cut = client.post("/real-time-updates/cut", headers=headers)
    assert cut.status_code == 403


def test_page_shows_no_gap_after_its_connection_was_cut(lesson_page):
    page = lesson_page("numbers")
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
