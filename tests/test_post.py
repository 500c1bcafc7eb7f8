import json
import socket

import pytest
from conftest import Client, Server
from playwright.sync_api import expect

from demos.post import echo
from sse import Event

FAST = "?interval=0.01"
MAX_BODY_BYTES = 65536
LONG = json.dumps({f"member {number}": number for number in range(100)})
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
NO_ROOM = f"The body must have at most {MAX_BODY_BYTES} bytes."

# How http.client frames a body: with a Content-Length, and in chunks.
FRAMINGS = {"length": bytes, "chunked": lambda body: iter([body])}
framings = pytest.mark.parametrize("framed", FRAMINGS.values(), ids=FRAMINGS)


def post(server: Server, query: str, body: bytes = b"{}", **headers) -> Client:
    headers = {"Content_Type": "application/json"} | headers
    return server.post(f"/api/sse{query}", body, **headers)


@framings
def test_the_stream_is_exactly_these_bytes(server, framed):
    body = framed('{"city": "Zürich", "空": [null, "👋"], "": 1.5}'.encode())
    headers = {
        "X_Demo": "hello",
        "x_b": "1",
        "Max_Forwards": "1",
        "Cookie": "x-c",
    }
    with post(server, FAST, body, **headers) as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.read().decode() == (
            ":\n"
            "event: request\n"
            'data: {"method":"POST","headers":{"X-Demo":"hello","X-B":"1"},'
            '"body":{"city":"Zürich","空":[null,"👋"],"":1.5}}\n\n'
            'data: {"key":"city","value":"Zürich"}\n\n'
            'data: {"key":"空","value":[null,"👋"]}\n\n'
            'data: {"key":"","value":1.5}\n\n'
            'event: done\ndata: {"members":3}\n\n'
        )


def test_messages_are_an_interval_apart():
    asked = {"method": "POST", "headers": {}, "body": {"a": 1, "b": None}}
    happened = []
    for event in echo(asked, 0.5, sleep=happened.append):
        happened.append(event)
    assert happened == [
        Event(asked, event="request"),
        0.5,
        Event({"key": "a", "value": 1}),
        0.5,
        Event({"key": "b", "value": None}),
        Event({"members": 2}, event="done"),
    ]


@framings
def test_a_body_may_have_the_maximum_size_but_not_one_byte_more(server, framed):
    body = b'{"a": "' + b"x" * (MAX_BODY_BYTES - 9) + b'"}'
    with post(server, FAST, framed(body)) as client:
        assert client.read().endswith(b'data: {"members":1}\n\n')
    with post(server, FAST, framed(body + b" ")) as client:
        assert client.status == 413
        assert json.loads(client.read()) == {"error": NO_ROOM}


@pytest.mark.parametrize("chunk", [b"zz\r\n{}\r\n0\r\n\r\n", b"9\r\n{}"])
def test_an_incomplete_body_is_refused(server, chunk):
    head = (
        "POST /api/sse HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    before = len(server.log)
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(head.encode() + chunk)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as lines:
            answer = lines.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b'{"error":"The body is incomplete."}\n')
    assert "Traceback" not in "\n".join(server.log[before:])


def send(page, body: str) -> None:
    page.get_by_role("textbox", name="JSON").fill(body)
    page.get_by_role("button", name="Send").click()


def shown(page) -> list[str]:
    return page.locator("#list").text_content().splitlines()


def test_page_shows_every_event_as_text_in_order(lesson_page):
    page = lesson_page("post")
    page.get_by_label("X-Demo").fill("from the page")
    send(page, '{"b": "<img src=x onerror=alert(1)>", "a": "你好"}')
    page.get_by_text("done:").wait_for()
    assert page.locator("#list *").count() == 0
    assert shown(page) == [
        'request: {"method":"POST","headers":{"X-Demo":"from the page"},'
        '"body":{"b":"<img src=x onerror=alert(1)>","a":"你好"}}',
        'message: {"key":"b","value":"<img src=x onerror=alert(1)>"}',
        'message: {"key":"a","value":"你好"}',
        'done: {"members":2}',
    ]


def test_page_shows_why_there_is_no_complete_answer(lesson_page):
    page = lesson_page("post")
    shown = page.locator("#list")
    send(page, '{"city": "Paris"')
    expect(shown).to_have_text(NO_OBJECT)
    answers = [
        {"content_type": "text/event-stream", "body": "data: 1\n\n"},
        {"content_type": "text/html", "body": "<h1>Bad gateway</h1>"},
    ]
    page.route("**/api/sse", lambda route: route.fulfill(**answers.pop()))
    for _ in range(2):
        send(page, "{}")
        expect(shown).to_contain_text("The stream broke off.")
    page.expected = "400"


def test_stop_and_sending_again_abort_the_previous_stream(lesson_page):
    page = lesson_page("post")
    aborted = []
    page.on("requestfailed", lambda request: aborted.append(request.post_data))
    other = LONG.replace("member", "entry")
    send(page, other)
    send(page, LONG)
    page.get_by_text("message:").first.wait_for()
    send(page, '{"last": 3}')
    page.get_by_text("done:").wait_for()
    assert [text.partition(":")[0] for text in shown(page)] == [
        "request",
        "message",
        "done",
    ]
    assert shown(page)[1] == 'message: {"key":"last","value":3}'
    assert aborted[:2] == [other, LONG]  # the page also leaves the last one

    send(page, LONG)
    page.get_by_text("message:").first.wait_for()
    with page.expect_event("requestfailed", lambda one: one.post_data == LONG):
        page.get_by_role("button", name="Stop").click()
    types = {text.partition(":")[0] for text in shown(page)}
    assert types == {"request", "message"}  # and no error
