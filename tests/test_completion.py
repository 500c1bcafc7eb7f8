import json
import time
from urllib.parse import quote

import pytest
from conftest import read_until, wait_until, without_comments
from playwright.sync_api import expect
from upstream import (
    DONE,
    FAULTS,
    FINISH,
    FRAMINGS,
    KEY,
    PAUSE,
    ROLE,
    delta,
    silence,
    stream,
)

import language_model
from app import create_app
from demos import completion
from event_source import parse_events

NOTICE_SECONDS = 2
RETRY = b"retry: 86400000\n"
FINISHED = b"event: done\ndata: [DONE]\n\n"
PROMPT = "/completion?prompt=Hi"

one_server = pytest.mark.parametrize("command", ["flask"], indirect=True)

silent_after_headers = stream(end="silent")
silent_in_mid_answer = stream(delta("Hello"), end="silent")


@pytest.fixture
def app(upstream, monkeypatch):
    """The app in this process, with an upstream."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_MODEL", "test-model")
    yield create_app()
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


# The answer


def test_an_answer_is_one_message_per_delta_and_then_done(client, upstream):
    upstream.answer = stream(
        ROLE, delta("  One\n\n two"), delta(" "), delta("\r\n三"), FINISH, DONE
    )
    response = client.get(PROMPT)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-cache, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert without_comments(response.data) == (
        RETRY
        + b"id: 1\ndata:   One\ndata: \ndata:  two\n\n"
        + b"id: 2\ndata:  \n\n"
        + "id: 3\ndata: \ndata: 三\n\n".encode()
        + b"event: done\ndata: [DONE]\n\n"
    )


def test_the_prompt_goes_to_the_upstream_with_the_key(client, upstream):
    prompt = " 你好\n& = 😀 "
    body = without_comments(
        client.get(f"/completion?prompt={quote(prompt)}").data
    )
    assert body == answered("Hello") + FINISHED
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.json == {
        "model": "test-model",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
    }


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        ("Compare", "## Event streams or WebSockets?"),
        ("什么是事件流？", "**服务器发送事件**"),
    ],
)
def test_an_offline_answer_has_the_same_form(prompt, beginning):
    client = create_app({"OFFLINE_WORD_SECONDS": 0}).test_client()
    response = client.get(f"/completion?prompt={quote(prompt)}")
    *messages, done = parse_events([response.data])
    assert "".join(one.data for one in messages).startswith(beginning)
    assert {one.event for one in messages} == {"message"}
    assert [int(one.id) for one in messages] == [
        number for number, _ in enumerate(messages, start=1)
    ]
    assert (done.event, done.data) == ("done", "[DONE]")


@pytest.mark.parametrize("framing", FRAMINGS)
def test_headers_and_deltas_are_sent_immediately(online, upstream, framing):
    upstream.answer = stream(
        *(PAUSE, delta("One"), PAUSE, delta("Two"), PAUSE, FINISH, DONE),
        framing=framing,
    )
    with online.get(PROMPT) as client:
        chunks = client.chunks()
        assert next(chunks) == RETRY
        wait_until(lambda: upstream.requests)
        upstream.resume()
        begun = read_until(chunks, b"One\n\n")
        assert without_comments(begun) == b"id: 1\ndata: One\n\n"
        upstream.resume()
        begun = read_until(chunks, b"Two\n\n")
        assert without_comments(begun) == b"id: 2\ndata: Two\n\n"
        upstream.resume()
        assert without_comments(b"".join(chunks)) == FINISHED


def test_comments_are_sent_while_the_model_thinks(
    client, upstream, monkeypatch
):
    monkeypatch.setattr(completion, "NOTICE_SECONDS", 0.01)
    upstream.answer = stream(delta("One"), PAUSE, FINISH, DONE)
    with client.get(PROMPT) as response:
        pieces = iter(response.response)
        read_until(pieces, answered("One").removeprefix(RETRY))
        assert [next(pieces) for _ in range(3)] == [b":\n"] * 3
        upstream.resume()
        assert without_comments(b"".join(pieces)) == FINISHED


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_becomes_a_failed_event_and_ends_the_stream(
    client, upstream, name
):
    upstream.answer, sentence, texts = FAULTS[name]
    response = client.get(PROMPT)
    assert response.status_code == 200
    assert without_comments(response.data) == answered(*texts) + failed(
        sentence
    )
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("answer", "texts", "sentence"),
    [
        (silence, (), "The language model is silent."),
        (silent_in_mid_answer, ("Hello",), "The language model fell silent."),
    ],
)
def test_a_long_silence_is_a_fault(
    client, upstream, monkeypatch, answer, texts, sentence
):
    monkeypatch.setattr(language_model, "SILENCE_SECONDS", 1 if texts else 0.1)
    upstream.answer = answer
    body = without_comments(client.get(PROMPT).data)
    assert body == answered(*texts) + failed(sentence)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/v1", "http://no-such-host.invalid/v1"]
)
def test_an_unreachable_upstream_is_a_fault(client, monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    body = without_comments(client.get(PROMPT).data)
    assert body == RETRY + failed("The language model is unreachable.")


@pytest.mark.parametrize(
    "answer",
    [silent_after_headers, silent_in_mid_answer],
    ids=["after headers", "in mid-answer"],
)
def test_a_disconnect_closes_the_connection_to_the_upstream(
    online, upstream, answer
):
    upstream.answer = answer
    client = online.get(PROMPT)
    begun = RETRY if answer is silent_after_headers else b"Hello"
    read_until(client.chunks(), begun)
    wait_until(lambda: upstream.requests)
    (connection,) = upstream.connections
    assert not connection.disconnected.is_set()
    client.close()
    closed_at = time.monotonic()
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - closed_at < NOTICE_SECONDS


# Refused requests, which cost nothing


@pytest.mark.parametrize("last", ["", "0", "1", "7"])
def test_a_reconnect_gets_204_and_sends_no_prompt(client, upstream, last):
    response = client.get(PROMPT, headers={"Last-Event-ID": last})
    assert (response.status_code, response.data) == (204, b"")
    assert upstream.requests == []


@pytest.mark.parametrize("query", ["", "?prompt=", "?prompt=" + "x" * 4001])
def test_an_empty_or_too_long_prompt_is_refused(client, upstream, query):
    response = client.get(f"/completion{query}")
    assert response.status_code == 400
    assert response.json == {
        "error": "prompt must be text of 1 to 4000 characters."
    }
    assert upstream.requests == []


def test_a_prompt_of_4000_characters_is_accepted(online, upstream):
    prompt = "😀" * 4000
    with online.get(f"/completion?prompt={quote(prompt)}") as client:
        assert without_comments(client.read()) == answered("Hello") + FINISHED
    assert upstream.requests[0].json["messages"][0]["content"] == prompt


def test_our_own_page_may_ask_but_no_other_origin_may_read(client, upstream):
    response = client.get(PROMPT, headers={"Sec-Fetch-Site": "same-origin"})
    assert without_comments(response.data) == answered("Hello") + FINISHED
    assert "Access-Control-Allow-Origin" not in response.headers
    response = client.get(PROMPT, headers={"Sec-Fetch-Site": "same-site"})
    assert response.status_code == 403
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("path", ["/", "/demos/completion", "/nowhere"])
def test_no_page_contains_the_key(client, path):
    response = client.get(path)
    assert KEY not in f"{response.headers}{response.text}"


# The page


@one_server
def test_page_shows_the_answer_or_the_reason_for_a_failure(
    online, upstream, page
):
    upstream.answer = stream(
        ROLE, delta("Hello"), delta(" <b>you</b>"), FINISH, DONE
    )
    page.goto(f"{online.url}/demos/completion")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_have_text("Hello <b>you</b>")
    expect(page.locator("#state")).to_have_text("closed")
    assert len(upstream.requests) == 1
    upstream.answer, sentence, (text,) = FAULTS["cut, chunked"]
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_have_text(f"{text}\n\n{sentence}")
    expect(page.locator("#state")).to_have_text("closed")


@one_server
def test_the_stop_button_stops_the_model(online, upstream, page):
    upstream.answer = silent_in_mid_answer
    page.goto(f"{online.url}/demos/completion")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_have_text("Hello")
    page.get_by_role("button", name="Stop").click()
    stopped_at = time.monotonic()
    (connection,) = upstream.connections
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - stopped_at < NOTICE_SECONDS


RECONNECTING_PAGE = """
() => new Promise((resolve) => {
  const paid = new EventSource("/completion?prompt=Hi");
  const failures = [];
  paid.onerror = () => failures.push(paid.readyState);
  const free = new EventSource("/stream/hello");
  let count = 0;
  free.onopen = () => {
    count += 1;
    if (count < 2) return;
    free.close();
    resolve(failures);
  };
})
"""


@one_server
def test_a_browser_without_an_id_does_not_send_a_prompt_twice(
    online, upstream, page
):
    """By the time `hello` reconnects, `completion` could have, too."""
    upstream.answer = FAULTS["401"].answer
    page.goto(f"{online.url}/demos/completion")
    assert page.evaluate(RECONNECTING_PAGE) == [0]
    assert len(upstream.requests) == 1
