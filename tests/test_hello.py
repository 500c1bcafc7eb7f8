import pytest
from conftest import PROJECT
from parts import needed
from playwright.sync_api import expect

from demos import hello as lesson
from demos.hello import hello

BODY = [
    b"data: Hello\n\n",
    b"data: Are you there?\n\n",
    b'event: status\ndata: {"msg": "hi"}\n\n',
]


@pytest.fixture
def _no_pause(monkeypatch):
    monkeypatch.setattr(lesson, "PAUSE_SECONDS", 0)


@pytest.mark.usefixtures("_no_pause")
def test_sends_exactly_these_bytes_one_event_at_a_time(client):
    with client.get("/stream/hello") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert list(response.iter_encoded()) == BODY


def test_pauses_between_events():
    happened = []
    for event in hello(2, sleep=happened.append):
        happened.append(event.encode())
    assert happened == [BODY[0], 2, BODY[1], 2, BODY[2]]


def test_needs_no_part():
    assert needed(PROJECT / "demos/hello.py") == []


@pytest.mark.usefixtures("_no_pause")
def test_page_closes_the_stream_on_the_status_event(live, page):
    page.goto(f"{live.url}/demos/hello")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#list > *")).to_have_text(
        ["status: hi", "message: Are you there?", "message: Hello"]
    )
    expect(page.locator("#state")).to_have_text("closed")
