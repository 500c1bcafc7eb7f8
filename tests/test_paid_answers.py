"""Four lessons that ask a model, which costs money, on every request."""

import re
from urllib.parse import quote

import pytest
from conftest import read_until, wait_until, without_comments
from upstream import FAULTS, PAUSE, delta, stream

from demos import agent, chat, completion, markdown
from sse import keep_alive

RETRY = b"retry: 86400000\n"
FAILED = b'event: failed\ndata: {"error":"%s"}\n\n'
LESSONS = {
    chat: (
        "/stream?prompt=",
        b'data: {"text":"Hello"}\n\n',
        b'data: {"action":"terminate","error":"%s"}\n\n',
    ),
    completion: ("/completion?prompt=", b"data: Hello\n\n", FAILED),
    markdown: (
        "/stream/markdown?prompt=",
        b'event: block\ndata: {"index":0,"html":"<p>Hello</p>\\n"}\n\n',
        FAILED,
    ),
    agent: (
        "/stream/agent?question=",
        b"event: text\ndata: Hello\n\n",
        FAILED,
    ),
}
"""Each lesson's URL, and its bytes for "Hello" and for a fault, without ids."""


@pytest.fixture
def app(online_app):
    return online_app


@pytest.fixture(params=LESSONS, ids=lambda lesson: lesson.bp.name)
def lesson(request):
    return request.param


def test_a_refused_request_costs_nothing(client, upstream, lesson):
    path, *_ = LESSONS[lesson]
    for last in ("1", ""):
        response = client.get(f"{path}Hi", headers={"Last-Event-ID": last})
        assert (response.status_code, response.data) == (204, b"")
    name = re.search(r"\w+(?==)", path)[0]
    sentence = f"{name} must be text of 1 to 4000 characters."
    for prompt in ("", "x" * 4001):
        response = client.get(f"{path}{prompt}")
        assert response.status_code == 400
        assert response.json == {"error": sentence}
    assert upstream.requests == []


def test_a_fault_loses_no_text_and_is_the_last_event(client, upstream, lesson):
    path, hello, failed = LESSONS[lesson]
    for name in ("401", "cut, chunked"):
        upstream.answer, sentence, texts = FAULTS[name]
        body = without_comments(client.get(f"{path}Hi").data)
        body = re.sub(rb"(?m)^id: \d+\n", b"", body)
        begun = hello if texts else RETRY
        assert body.endswith(begun + failed % sentence.encode())
    assert len(upstream.requests) == 2


def test_keep_alive_comments_are_sent_and_reveal_a_disconnect(
    client, upstream, lesson, monkeypatch
):
    kept = []  # or garbage collection could end the generator

    def keep(events, seconds, interrupt):
        assert seconds <= 1  # tokens cost money
        kept.append(keep_alive(events, 0.01, interrupt))
        return kept[0]

    monkeypatch.setattr(lesson, "keep_alive", keep)
    path, hello, _ = LESSONS[lesson]
    upstream.answer = stream(delta("Hello"), end="silent")
    with client.get(f"{path}Hi") as response:
        chunks = iter(response.response)
        read_until(chunks, hello)
        assert [next(chunks) for _ in range(3)] == [b":\n"] * 3
        (connection,) = upstream.connections
        assert not connection.disconnected.is_set()
    wait_until(connection.disconnected.is_set)


def test_both_servers_send_text_immediately_and_notice_a_disconnect(
    online, upstream
):
    upstream.answer = stream(PAUSE, delta("Hello"), end="silent")
    longest = quote("😀" * 4000)
    with online.get(f"/completion?prompt={longest}") as client:
        chunks = client.chunks()
        assert next(chunks) == RETRY
        wait_until(lambda: upstream.requests)
        upstream.resume()
        begun = read_until(chunks, b"Hello\n\n")
        assert without_comments(begun) == b"id: 1\ndata: Hello\n\n"
        (connection,) = upstream.connections
        assert not connection.disconnected.is_set()
    wait_until(connection.disconnected.is_set)
