from conftest import PROJECT

BODY = [
    b"data: Hello\n\n",
    b"data: Are you there?\n\n",
    b'id: 1\nevent: status\ndata: {"msg": "hi"}\n\n',
]


def test_sends_exactly_these_bytes_one_event_at_a_time(server):
    with server.get("/stream/hello") as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert list(client.chunks()) == BODY


def test_needs_no_helper_of_ours():
    source = (PROJECT / "demos/hello.py").read_text("utf-8")
    assert "import sse" not in source
    assert "from sse" not in source


def test_answers_204_once_the_browser_has_seen_the_last_event(server):
    with server.get("/stream/hello", Last_Event_ID="1") as client:
        assert client.status == 204
        assert client.read() == b""


def test_starts_over_after_any_other_id(server):
    with server.get("/stream/hello", Last_Event_ID="7") as client:
        assert next(client.chunks()) == BODY[0]


def test_page_closes_on_status(lesson_page):
    page = lesson_page("hello")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("status: hi").wait_for()
    assert page.locator("#list > *").all_text_contents() == [
        "message: Hello",
        "message: Are you there?",
        "status: hi",
    ]
    assert page.locator("#state").text_content() == "closed"


def test_page_that_does_not_close_is_stopped_by_204(lesson_page):
    page = lesson_page("hello")
    page.get_by_label("close on status").uncheck()
    with page.expect_response(lambda response: response.status == 204):
        page.get_by_role("button", name="Start").click()
        page.locator("#state", has_text="reconnecting").wait_for()
    page.locator("#state", has_text="closed").wait_for()
    assert page.locator("#list > *").count() == 3
