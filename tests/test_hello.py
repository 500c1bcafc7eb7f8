from conftest import PROJECT
from parts import needed
from playwright.sync_api import expect

from demos.hello import hello

BODY = [
    b"data: Hello\n\n",
    b"data: Are you there?\n\n",
    b'event: status\ndata: {"msg": "hi"}\n\n',
]


def test_sends_exactly_these_bytes_one_event_at_a_time(server):
    with server.get("/stream/hello") as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Access-Control-Allow-Origin") == "*"
        assert list(client.chunks()) == BODY


def test_pauses_between_events():
    happened = []
    for event in hello(2, sleep=happened.append):
        happened.append(event.encode())
    assert happened == [BODY[0], 2, BODY[1], 2, BODY[2]]


def test_needs_no_part():
    assert needed(PROJECT / "demos/hello.py") == []


def test_page_closes_the_stream_on_the_status_event(lesson_page):
    page = lesson_page("hello")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("status: hi").wait_for()
    assert page.locator("#list > *").all_text_contents() == [
        "status: hi",
        "message: Are you there?",
        "message: Hello",
    ]
    expect(page.locator("#state")).to_have_text("closed")
