import json
import socket
import time

import pytest
from conftest import Client, Server, read_until, wait_until
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


def error(client: Client) -> tuple[int, str]:
    with client:
        assert client.header("Content-Type") == "application/json"
        body = json.loads(client.read())
    assert list(body) == ["error"]
    return client.status, body["error"]


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


def test_an_empty_object_results_in_no_messages(server):
    with post(server, FAST, b"{}") as client:
        assert client.read() == (
            b":\n"
            b"event: request\n"
            b'data: {"method":"POST","headers":{},"body":{}}\n\n'
            b'event: done\ndata: {"members":0}\n\n'
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


def test_an_event_is_sent_as_soon_as_it_is_produced(server):
    start = time.monotonic()
    with post(server, "?interval=10", b'{"a": 1}') as client:
        assert read_until(client.chunks(), b"\n\n") == (
            b":\nevent: request\n"
            b'data: {"method":"POST","headers":{},"body":{"a":1}}\n\n'
        )
    assert time.monotonic() - start < 10  # before the next event exists


@framings
def test_a_body_may_have_the_maximum_size_but_not_one_byte_more(server, framed):
    body = b'{"a": "' + b"x" * (MAX_BODY_BYTES - 9) + b'"}'
    with post(server, FAST, framed(body)) as client:
        assert client.read().endswith(b'data: {"members":1}\n\n')
    assert error(post(server, FAST, framed(body + b" "))) == (413, NO_ROOM)


@pytest.mark.parametrize(
    ("query", "sent", "status", "sentence"),
    [
        ("", {"json": []}, 400, NO_OBJECT),
        (
            "",
            {"data": "{}"},
            415,
            "The body must have the Content-Type application/json.",
        ),
        (
            "?interval=0",
            {"json": {}},
            400,
            "interval must be a number from 0.01 to 10, got '0'.",
        ),
    ],
)
def test_a_bad_request_is_refused_with_an_error_message(
    client, query, sent, status, sentence
):
    response = client.post(f"/api/sse{query}", **sent)
    assert response.status_code == status
    assert response.json == {"error": sentence}


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


def test_get_is_refused(client):
    response = client.get("/api/sse")
    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]


def status(server: Server) -> int:
    with post(server, FAST) as client:
        return client.status


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


def test_stop_ends_the_stream_on_the_server(start, command, page):
    server = start(command, FLASK_MAX_STREAMS="1")
    page.goto(f"{server.url}/demos/post")
    send(page, LONG)
    page.get_by_text("message:").first.wait_for()
    assert status(server) == 503
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Stop").click()
    wait_until(lambda: status(server) == 200)
    assert {text.partition(":")[0] for text in shown(page)} == {
        "request",
        "message",
    }


def test_page_shows_why_the_server_refused_its_request(lesson_page):
    page = lesson_page("post")
    send(page, '{"city": "Paris"')
    expect(page.locator("#list")).to_have_text(NO_OBJECT)
    assert "400" in page.problems.pop()


@pytest.mark.parametrize(
    "answer",
    [
        {"content_type": "text/event-stream", "body": "data: 1\n\n"},
        {"content_type": "text/html", "body": "<h1>Bad gateway</h1>"},
    ],
    ids=["stream", "page"],
)
def test_page_reports_an_incomplete_response(lesson_page, answer):
    page = lesson_page("post")
    page.route("**/api/sse", lambda route: route.fulfill(**answer))
    send(page, "{}")
    expect(page.locator("#list")).to_contain_text("The stream broke off.")


def test_sending_again_aborts_the_previous_stream(lesson_page):
    page = lesson_page("post")
    aborted = []
    page.on("requestfailed", lambda request: aborted.append(request.post_data))
    send(page, '{"first": 1, "more": 2}')
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
    assert aborted[:2] == ['{"first": 1, "more": 2}', LONG]
