import json
from urllib.parse import quote

import pytest
from conftest import read_until, wait_until, without_comments
from playwright.sync_api import expect
from upstream import (
    DONE,
    FAULT_OF_EACH_KIND,
    FAULTS,
    FINISH,
    KEY,
    PAUSE,
    ROLE,
    delta,
    stream,
)

import language_model
from app import create_app
from demos import completion
from event_source import parse_events

RETRY = b"retry: 86400000\n"
FINISHED = b"event: done\ndata: [DONE]\n\n"
PROMPT = "/completion?prompt=Hi"


@pytest.fixture
def app(upstream, monkeypatch):
    """The app in this process. No test reaches its timeout."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_MODEL", "test-model")
    yield create_app({"UPSTREAM_SILENCE_SECONDS": 300})
    language_model.session.close()


def answered(*texts: str) -> bytes:
    """Return the events of an answer in these pieces."""
    events = [
        f"id: {id}\ndata: {text}\n\n" for id, text in enumerate(texts, start=1)
    ]
    return RETRY + "".join(events).encode()


def failed(sentence: str) -> bytes:
    data = json.dumps({"error": sentence}, separators=(",", ":"))
    return f"event: failed\ndata: {data}\n\n".encode()


def test_an_answer_is_one_message_per_delta_and_then_done(client, upstream):
    upstream.answer = stream(
        ROLE, delta("  One\n\n two"), delta(" "), delta("\r\n三"), FINISH, DONE
    )
    response = client.get(PROMPT)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert without_comments(response.data) == (
        RETRY
        + b"id: 1\ndata:   One\ndata: \ndata:  two\n\n"
        + b"id: 2\ndata:  \n\n"
        + "id: 3\ndata: \ndata: 三\n\n".encode()
        + b"event: done\ndata: [DONE]\n\n"
    )


def test_the_prompt_goes_to_the_upstream_with_the_key(client, upstream):
    prompt = " 你好\n& = 😀 "
    body = client.get(f"/completion?prompt={quote(prompt)}").data
    assert without_comments(body) == answered("Hello") + FINISHED
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.json == {
        "model": "test-model",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
    }


def test_an_offline_answer_has_the_same_form():
    client = create_app({"OFFLINE_WORD_SECONDS": 0}).test_client()
    response = client.get("/completion?prompt=什么是事件流？")
    *messages, done = parse_events([response.data])
    text = "".join(one.data for one in messages)
    assert text.startswith("**服务器发送事件**")
    assert {one.event for one in messages} == {"message"}
    ids = [int(one.id) for one in messages]
    assert ids == list(range(1, len(messages) + 1))
    assert (done.event, done.data) == ("done", "[DONE]")


def test_comments_are_sent_while_the_model_thinks(
    client, upstream, monkeypatch
):
    assert completion.NOTICE_SECONDS <= 1  # tokens cost money
    monkeypatch.setattr(completion, "NOTICE_SECONDS", 0.01)
    upstream.answer = stream(delta("One"), PAUSE, FINISH, DONE)
    with client.get(PROMPT) as response:
        pieces = iter(response.response)
        read_until(pieces, answered("One").removeprefix(RETRY))
        assert [next(pieces) for _ in range(3)] == [b":\n"] * 3
        upstream.resume()
        assert without_comments(b"".join(pieces)) == FINISHED


@pytest.mark.parametrize("name", FAULT_OF_EACH_KIND)
def test_a_fault_becomes_a_failed_event_and_ends_the_stream(
    client, upstream, name
):
    upstream.answer, sentence, texts = FAULTS[name]
    body = without_comments(client.get(PROMPT).data)
    assert body == answered(*texts) + failed(sentence)
    assert len(upstream.requests) == 1


def test_text_is_sent_immediately_and_a_disconnect_stops_the_model(
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


def test_a_refused_request_costs_nothing(client, upstream):
    for last in ("1", ""):
        response = client.get(PROMPT, headers={"Last-Event-ID": last})
        assert (response.status_code, response.data) == (204, b"")
    for prompt in ("", "x" * 4001):
        response = client.get(f"/completion?prompt={prompt}")
        assert response.status_code == 400
        sentence = "prompt must be text of 1 to 4000 characters."
        assert response.json == {"error": sentence}
    assert upstream.requests == []


def test_no_page_contains_the_key(client):
    for path in ("/", "/demos/completion", "/nowhere"):
        response = client.get(path)
        assert KEY not in f"{response.headers}{response.text}", path


def test_page_shows_the_answer_or_why_it_failed_and_stop_stops_the_model(
    live, upstream, page
):
    upstream.answer = stream(
        ROLE, delta("Hello"), delta(" <b>you</b>"), FINISH, DONE
    )
    answer, state = page.locator("#answer"), page.locator("#state")
    ask = page.get_by_role("button", name="Ask")
    page.goto(f"{live.url}/demos/completion")
    ask.click()
    expect(answer).to_have_text("Hello <b>you</b>")
    expect(state).to_have_text("closed")
    assert len(upstream.requests) == 1
    upstream.answer, sentence, (text,) = FAULTS["cut, chunked"]
    ask.click()
    expect(answer).to_have_text(f"{text}\n\n{sentence}")
    expect(state).to_have_text("closed")
    upstream.answer = stream(delta("Half"), end="silent")
    ask.click()
    expect(answer).to_have_text("Half")
    page.get_by_role("button", name="Stop").click()
    wait_until(upstream.connections[-1].disconnected.is_set)
