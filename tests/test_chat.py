import json
import time
from urllib.parse import quote

import pytest
from conftest import Server, read_until, wait_until, without_comments
from playwright.sync_api import Page, expect
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
from event_source import parse_events

NOTICE_SECONDS = 2
RETRY = b"retry: 86400000\n"
PROMPT = "/stream?prompt=Hi"
FAILED = "The connection failed."

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


def written(*texts: str, **error: str) -> bytes:
    """Return the complete stream of an answer in these pieces."""
    data = [{"text": text} for text in texts]
    data.append({"action": "terminate"} | error)
    events = [
        f"id: {id}\ndata: {json.dumps(one, separators=(',', ':'))}\n\n"
        for id, one in enumerate(data, start=1)
    ]
    return RETRY + "".join(events).encode()


# The answer


def test_an_answer_is_an_event_per_delta_and_then_an_action(client, upstream):
    upstream.answer = stream(
        ROLE, delta(' "One"\n\n'), delta(" "), delta("三😀"), FINISH, DONE
    )
    response = client.get(PROMPT)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-cache, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert without_comments(response.data) == (
        RETRY
        + b'id: 1\ndata: {"text":" \\"One\\"\\n\\n"}\n\n'
        + b'id: 2\ndata: {"text":" "}\n\n'
        + 'id: 3\ndata: {"text":"三😀"}\n\n'.encode()
        + b'id: 4\ndata: {"action":"terminate"}\n\n'
    )


@pytest.mark.parametrize("name", FAULT_OF_EACH_KIND)
def test_a_fault_is_in_the_last_event(client, upstream, name):
    upstream.answer, sentence, texts = FAULTS[name]
    response = client.get(PROMPT)
    assert response.status_code == 200
    assert without_comments(response.data) == written(*texts, error=sentence)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [("Compare", "## Event streams or"), ("什么是事件流？", "**服务器发送")],
)
def test_an_offline_answer_has_the_same_form(prompt, beginning):
    client = create_app({"OFFLINE_WORD_SECONDS": 0}).test_client()
    response = client.get(f"/stream?prompt={quote(prompt)}")
    events = list(parse_events([response.data]))
    assert [event.id for event in events] == [
        str(number) for number, _ in enumerate(events, start=1)
    ]
    *texts, end = [json.loads(event.data) for event in events]
    assert "".join(one["text"] for one in texts).startswith(beginning)
    assert end == {"action": "terminate"}


def test_deltas_are_sent_immediately(client, upstream):
    upstream.answer = stream(
        *(PAUSE, delta("One"), PAUSE, delta("Two"), PAUSE, FINISH, DONE)
    )
    with client.get(PROMPT) as response:
        chunks = iter(response.response)
        assert next(chunks) == RETRY
        assert next(chunks) == b":\n"
        upstream.resume()
        begun = read_until(chunks, b'"One"}\n\n')
        assert without_comments(begun) == b'id: 1\ndata: {"text":"One"}\n\n'
        upstream.resume()
        begun = read_until(chunks, b'"Two"}\n\n')
        assert without_comments(begun) == b'id: 2\ndata: {"text":"Two"}\n\n'
        upstream.resume()
        rest = without_comments(b"".join(chunks))
        assert rest == b'id: 3\ndata: {"action":"terminate"}\n\n'


def test_the_prompt_goes_to_the_upstream_with_the_key(client, upstream):
    prompt = " 你好\n& = 😀 " + "x" * 3989
    response = client.get(f"/stream?prompt={quote(prompt)}")
    assert without_comments(response.data) == written("Hello")
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.json == {
        "model": "test-model",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
    }


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


@pytest.mark.parametrize("last", ["", "0", "1", "x"])
def test_a_reconnect_gets_204_and_sends_no_prompt(client, upstream, last):
    response = client.get(PROMPT, headers={"Last-Event-ID": last})
    assert (response.status_code, response.data) == (204, b"")
    assert upstream.requests == []


@pytest.mark.parametrize("query", ["", "?prompt=", "?prompt=" + "x" * 4001])
def test_an_empty_or_too_long_prompt_is_refused(client, upstream, query):
    response = client.get(f"/stream{query}")
    assert response.status_code == 400
    assert response.json == {
        "error": "prompt must be text of 1 to 4000 characters."
    }
    assert upstream.requests == []


def test_our_own_page_may_ask_but_no_other_origin_may_read(client, upstream):
    response = client.get(PROMPT, headers={"Sec-Fetch-Site": "same-origin"})
    assert without_comments(response.data) == written("Hello")
    assert "Access-Control-Allow-Origin" not in response.headers
    response = client.get(PROMPT, headers={"Sec-Fetch-Site": "same-site"})
    assert response.status_code == 403
    assert len(upstream.requests) == 1


# The page


@pytest.fixture
def chat(online, upstream, page) -> Page:
    page.goto(f"{online.url}/demos/chat")
    return page


def send(page: Page, message: str = "Hi") -> None:
    page.get_by_label("Message").fill(message)
    page.get_by_role("button", name="Send").click()


def expect_answer(page: Page, text: str) -> None:
    expect(page.locator("#log .answer").last).to_have_text(text)


def expect_state(page: Page, state: str) -> None:
    expect(page.locator("#state")).to_have_text(state)


def bubbles(page: Page) -> list[list[str]]:
    return page.locator("#log > *").evaluate_all(
        "all => all.map((one) => [one.className, one.textContent])"
    )


@one_server
def test_question_and_answer_become_bubbles_of_plain_text(chat, upstream):
    upstream.answer = stream(
        *(delta("<img src=x onerror="), delta("alert(1)> &amp;\n 你好")),
        *(FINISH, DONE),
    )
    send(chat, "<b>Why?</b>")
    expect_state(chat, "closed")
    assert bubbles(chat) == [
        ["question", "<b>Why?</b>"],
        ["answer", "<img src=x onerror=alert(1)> &amp;\n 你好"],
    ]
    assert chat.locator("#log > * > *").count() == 0
    # CLOSED. Without `close`, the EventSource would reconnect after a day.
    assert chat.evaluate("source.readyState") == 2
    assert len(upstream.requests) == 1


@one_server
def test_a_message_is_sent_unless_it_is_empty(chat, upstream):
    field = chat.get_by_label("Message")
    send(chat, "")
    assert bubbles(chat) == []
    send(chat, "First")
    assert bubbles(chat)[0] == ["question", "First"]
    expect(field).to_have_value("")
    expect_state(chat, "closed")
    field.fill("Second")
    field.press("Enter")
    assert bubbles(chat)[2] == ["question", "Second"]
    expect(field).to_have_value("")
    expect_state(chat, "closed")
    assert len(upstream.requests) == 2


def log_for_screen_readers(page: Page) -> dict:
    """Return how Chromium describes the log to assistive technology."""
    tree = page.context.new_cdp_session(page).send(
        "Accessibility.getFullAXTree"
    )
    (log,) = (
        {one["name"]: one["value"]["value"] for one in node["properties"]}
        for node in tree["nodes"]
        if node.get("name", {}).get("value") == "Conversation"
    )
    return {key: log.get(key) for key in ("live", "busy")}


@one_server
def test_log_is_busy_and_a_progressbar_waits_for_the_first_token(
    chat, upstream
):
    idle = {"live": "polite", "busy": None}
    bar = chat.get_by_role("progressbar", name="Waiting for the first token")
    assert log_for_screen_readers(chat) == idle
    assert bar.count() == 0
    upstream.answer = stream(PAUSE, delta("Hello"), PAUSE, FINISH, DONE)
    send(chat)
    expect_state(chat, "open")
    assert log_for_screen_readers(chat) == idle | {"busy": True}
    assert bar.is_visible()
    wait_until(lambda: upstream.requests)
    upstream.resume()
    expect_answer(chat, "Hello")
    assert log_for_screen_readers(chat) == idle | {"busy": True}
    assert bar.count() == 0
    upstream.resume()
    expect_state(chat, "closed")
    assert log_for_screen_readers(chat) == idle


SELECT_AND_WATCH = """
(answer) => {
  const first = answer.firstChild;
  getSelection().setBaseAndExtent(first, 1, first, 3);
  window.isFirst = () => answer.firstChild === first;
  window.rewritten = [];
  const observer = new MutationObserver((records) => {
    for (const { type, removedNodes } of records) {
      if (type === "characterData") window.rewritten.push(type);
      for (const node of removedNodes) window.rewritten.push(node.nodeName);
    }
  });
  observer.observe(document.querySelector("#log"), {
    childList: true, subtree: true, characterData: true
  });
}
"""
NODES = "one => [...one.childNodes].map((node) => [node.nodeType, node.data])"


@one_server
def test_tokens_are_appended_and_nothing_is_rewritten(chat, upstream):
    upstream.answer = stream(
        *(delta("One "), PAUSE, delta("two "), delta("three"), FINISH, DONE)
    )
    send(chat)
    expect_answer(chat, "One ")
    answer = chat.locator("#log .answer")
    answer.evaluate(SELECT_AND_WATCH)
    upstream.resume()
    expect_state(chat, "closed")
    assert answer.evaluate(NODES) == [[3, "One "], [3, "two "], [3, "three"]]
    assert chat.evaluate("isFirst()")
    assert chat.evaluate("getSelection().toString()") == "ne"
    assert chat.evaluate("rewritten") == []


TO_END = "log => log.scrollHeight - log.clientHeight - log.scrollTop"


@one_server
def test_the_log_scrolls_only_while_its_end_is_in_sight(chat, upstream):
    page_long = "line\n" * 40
    upstream.answer = stream(
        *(delta(page_long + "one"), PAUSE, delta(page_long + "two"), PAUSE),
        *(delta(page_long + "three"), FINISH, DONE),
    )
    log, answer = chat.locator("#log"), chat.locator("#log .answer")
    send(chat)
    expect(answer).to_contain_text("one")
    assert log.evaluate(TO_END) < 1
    log.evaluate("log => { log.scrollTop -= 100; }")
    before = log.evaluate("log => log.scrollTop")
    assert before > 100
    upstream.resume()
    expect(answer).to_contain_text("two")
    assert log.evaluate("log => log.scrollTop") == before
    log.evaluate("log => { log.scrollTop = log.scrollHeight; }")
    upstream.resume()
    expect(answer).to_contain_text("three")
    assert log.evaluate(TO_END) < 1


@one_server
@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (silent_after_headers, []),
        (silent_in_mid_answer, [["answer", "Hello"]]),
    ],
)
def test_stop_keeps_the_text_so_far_and_stops_the_model(
    chat, upstream, answer, kept
):
    upstream.answer = answer
    send(chat)
    wait_until(lambda: upstream.requests)
    if kept:
        expect_answer(chat, "Hello")
    chat.get_by_role("button", name="Stop").click()
    stopped = time.monotonic()
    assert chat.locator("#state").text_content() == "closed"
    assert chat.locator("#log").get_attribute("aria-busy") == "false"
    assert bubbles(chat) == [["question", "Hi"], *kept]
    (connection,) = upstream.connections
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - stopped < NOTICE_SECONDS


@one_server
def test_a_new_question_stops_the_previous_answer_and_keeps_it(chat, upstream):
    upstream.answer = silent_in_mid_answer
    send(chat, "First?")
    expect_answer(chat, "Hello")
    upstream.answer = stream(delta("Second"), end="silent")
    send(chat, "Second?")
    wait_until(upstream.connections[0].disconnected.is_set, NOTICE_SECONDS + 1)
    expect_answer(chat, "Second")
    expect_state(chat, "open")
    assert bubbles(chat) == [
        ["question", "First?"],
        ["answer", "Hello"],
        ["question", "Second?"],
        ["answer", "Second"],
    ]


@one_server
def test_page_shows_why_an_answer_is_incomplete(chat, upstream):
    expected = []
    for name in ("401", "hangs up", "cut, chunked"):
        upstream.answer, sentence, texts = FAULTS[name]
        send(chat)
        expect_state(chat, "closed")
        expected += [
            ["question", "Hi"],
            *(["answer", text] for text in texts),
            ["problem", sentence],
        ]
        assert bubbles(chat) == expected
    assert len(upstream.requests) == 3


@one_server
def test_page_shows_that_the_server_refused_the_message(chat, upstream):
    field = chat.get_by_label("Message")
    field.evaluate("field => { field.value = 'x'.repeat(4001); }")
    with chat.expect_event("console") as console:
        chat.get_by_role("button", name="Send").click()
    expect(chat.locator("#log > * + *")).to_have_text(FAILED)
    assert "400" in console.value.text
    assert upstream.requests == []
    chat.problems.clear()


def test_page_shows_that_the_connection_failed(start, page):
    server: Server = start("flask run", FLASK_OFFLINE_WORD_SECONDS="0.2")
    page.goto(f"{server.url}/demos/chat")
    send(page, "First")
    answer = page.locator("#log .answer")
    expect(answer).to_contain_text("Server")
    with page.expect_event("console"):
        server.stop()
    expect(page.locator("#log .problem")).to_have_count(1)
    with page.expect_event("console"):
        send(page, "Second")
    expect(page.locator("#log .problem")).to_have_count(2)
    assert bubbles(page) == [
        ["question", "First"],
        ["answer", answer.text_content()],
        ["problem", FAILED],
        ["question", "Second"],
        ["problem", FAILED],
    ]
    page.problems.clear()
