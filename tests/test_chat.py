import json
import re
import time
from urllib.parse import quote

import pytest
from conftest import Server, read_until, spoken, wait_until
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
    event,
    silence,
    stream,
)

from event_source import parse_events

LEAVE_SECONDS = 2
RETRY = b"retry: 86400000\n"
PROMPT = "/stream?prompt=Hi"
LOST = "The connection was refused or lost."

silent_in_mid_answer = stream(delta("Hello"), end="silent")


def written(*texts: str, **error: str) -> bytes:
    """Return the whole stream of an answer in these pieces."""
    data = [{"text": text} for text in texts]
    data.append({"action": "terminate"} | error)
    events = [
        f"id: {id}\ndata: {json.dumps(one, separators=(',', ':'))}\n\n"
        for id, one in enumerate(data, start=1)
    ]
    return RETRY + "".join(events).encode()


def test_answer_is_an_event_per_delta_and_then_an_action(online, upstream):
    upstream.answer = stream(
        ROLE, delta(' "One"\n\n'), delta(" "), delta("三😀"), FINISH, DONE
    )
    with online.get(PROMPT) as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache"
        assert client.header("X-Accel-Buffering") == "no"
        assert spoken(client.read()) == (
            RETRY
            + b'id: 1\ndata: {"text":" \\"One\\"\\n\\n"}\n\n'
            + b'id: 2\ndata: {"text":" "}\n\n'
            + 'id: 3\ndata: {"text":"三😀"}\n\n'.encode()
            + b'id: 4\ndata: {"action":"terminate"}\n\n'
        )


@pytest.mark.parametrize("name", FAULT_OF_EACH_KIND)
def test_a_fault_is_said_in_the_last_event(online, upstream, name):
    upstream.answer, sentence, texts = FAULTS[name]
    with online.get(PROMPT) as client:
        assert client.status == 200
        assert spoken(client.read()) == written(*texts, error=sentence)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [("Compare", "## Event streams or"), ("什么是事件流？", "**服务器发送")],
)
def test_offline_answer_has_the_same_form(offline, prompt, beginning):
    with offline.get(f"/stream?prompt={quote(prompt)}") as client:
        events = list(parse_events(client.chunks()))
    assert [event.id for event in events] == [
        str(number) for number, _ in enumerate(events, start=1)
    ]
    *texts, end = [json.loads(event.data) for event in events]
    assert "".join(one["text"] for one in texts).startswith(beginning)
    assert end == {"action": "terminate"}


@pytest.mark.parametrize("last", ["", "0", "1", "x"])
def test_reconnect_gets_204_and_asks_nothing(online, upstream, last):
    with online.get(PROMPT, Last_Event_ID=last) as client:
        assert (client.status, client.read()) == (204, b"")
    assert upstream.requests == []


@pytest.mark.parametrize("query", ["", "?prompt=", "?prompt=" + "x" * 4001])
def test_prompt_of_another_length_is_refused(online, upstream, query):
    with online.get(f"/stream{query}") as client:
        assert client.status == 400
        assert json.loads(client.read()) == {
            "error": "prompt must have 1 to 4000 characters."
        }
    assert upstream.requests == []


def test_prompt_goes_to_the_upstream_with_the_key_and_the_model(
    online, upstream
):
    prompt = " 你好\n& = 😀 " + "x" * 3989
    with online.get(f"/stream?prompt={quote(prompt)}") as client:
        assert spoken(client.read()) == written("Hello")
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.json == {
        "model": "test-model",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
    }


@pytest.mark.parametrize(
    "echo", [delta(f"It is {KEY}."), event({"error": {"message": KEY}})]
)
def test_key_never_shows_though_the_upstream_echoes_it(online, upstream, echo):
    upstream.answer = stream(echo, FINISH, DONE)
    with online.get(PROMPT) as client:
        shown = f"{client.response.headers}{client.read()}"
    assert "terminate" in shown
    assert KEY not in shown


def test_deltas_leave_the_moment_they_arrive(online, upstream):
    upstream.answer = stream(
        *(PAUSE, delta("One"), PAUSE, delta("Two"), PAUSE, FINISH, DONE)
    )
    with online.get(PROMPT) as client:
        chunks = client.chunks()
        assert next(chunks) == RETRY
        assert read_until(chunks, b":\n") == b":\n"
        upstream.go_on()
        begun = read_until(chunks, b'"One"}\n\n')
        assert spoken(begun) == b'id: 1\ndata: {"text":"One"}\n\n'
        upstream.go_on()
        begun = read_until(chunks, b'"Two"}\n\n')
        assert spoken(begun) == b'id: 2\ndata: {"text":"Two"}\n\n'
        upstream.go_on()
        rest = spoken(b"".join(chunks))
        assert rest == b'id: 3\ndata: {"action":"terminate"}\n\n'


@pytest.mark.parametrize("moment", [silence, silent_in_mid_answer])
def test_upstream_is_left_as_soon_as_the_client_has_left(
    online, upstream, moment
):
    upstream.answer = moment
    client = online.get(PROMPT)
    if moment is silent_in_mid_answer:
        read_until(client.chunks(), b"Hello")
    wait_until(lambda: upstream.requests)
    (connection,) = upstream.connections
    left_at = time.monotonic()
    client.close()
    wait_until(connection.left.is_set, LEAVE_SECONDS + 1)
    assert connection.left_at - left_at < LEAVE_SECONDS


CROSS_SITE = pytest.mark.parametrize(
    "headers",
    [{"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://elsewhere.example"}],
)


@CROSS_SITE
def test_no_page_of_another_site_spends_money(online, upstream, headers):
    with online.get(PROMPT, **headers) as client:
        assert client.status == 403
        assert client.header("Access-Control-Allow-Origin") is None
        assert "Pages of other sites may not" in client.read().decode()
    assert upstream.requests == []


def test_no_other_origin_may_read_what_cost_money(online, upstream):
    with online.get(PROMPT, Sec_Fetch_Site="same-origin") as client:
        assert spoken(client.read()) == written("Hello")
        assert client.header("Access-Control-Allow-Origin") is None


@CROSS_SITE
def test_pages_of_other_sites_may_read_what_costs_nothing(offline, headers):
    with offline.get(PROMPT, **headers) as client:
        assert client.status == 200
        assert client.header("Access-Control-Allow-Origin") == "*"


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


def test_question_and_answer_become_bubbles_of_mere_text(chat, upstream):
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


def test_no_request_follows_the_last_event(chat, upstream):
    send(chat)
    expect_state(chat, "closed")
    # CLOSED, for good. An open one would come back only after a day.
    assert chat.evaluate("source.readyState") == 2
    assert len(upstream.requests) == 1


def log_for_screen_readers(page: Page) -> dict:
    """Return what Chromium tells assistive technology of the log."""
    tree = page.context.new_cdp_session(page).send(
        "Accessibility.getFullAXTree"
    )
    (log,) = (
        {"name": node["name"]["value"]}
        | {one["name"]: one["value"]["value"] for one in node["properties"]}
        for node in tree["nodes"]
        if node.get("role", {}).get("value") == "log"
    )
    return {key: log.get(key) for key in ("name", "live", "busy")}


def test_log_is_polite_and_busy_until_the_answer_is_whole(chat, upstream):
    idle = {"name": "Conversation", "live": "polite", "busy": None}
    assert log_for_screen_readers(chat) == idle
    upstream.answer = stream(delta("Hello"), PAUSE, FINISH, DONE)
    send(chat)
    expect_answer(chat, "Hello")
    assert log_for_screen_readers(chat) == idle | {"busy": True}
    upstream.go_on()
    expect_state(chat, "closed")
    assert log_for_screen_readers(chat) == idle


def test_a_progressbar_waits_for_the_first_token(chat, upstream):
    upstream.answer = stream(PAUSE, delta("Hello"), PAUSE, FINISH, DONE)
    bar = chat.get_by_role("progressbar", name="Waiting for the first token")
    assert bar.count() == 0
    send(chat)
    expect_state(chat, "open")
    assert bar.is_visible()
    wait_until(lambda: upstream.requests)
    upstream.go_on()
    expect_answer(chat, "Hello")
    assert bar.count() == 0
    upstream.go_on()
    expect_state(chat, "closed")


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


def test_tokens_are_appended_and_nothing_is_rewritten(chat, upstream):
    upstream.answer = stream(
        *(delta("One "), PAUSE, delta("two "), delta("three"), FINISH, DONE)
    )
    send(chat)
    expect_answer(chat, "One ")
    answer = chat.locator("#log .answer")
    answer.evaluate(SELECT_AND_WATCH)
    upstream.go_on()
    expect_state(chat, "closed")
    assert answer.evaluate(NODES) == [[3, "One "], [3, "two "], [3, "three"]]
    assert chat.evaluate("isFirst()")
    assert chat.evaluate("getSelection().toString()") == "ne"
    assert chat.evaluate("rewritten") == []


TO_END = "log => log.scrollHeight - log.clientHeight - log.scrollTop"


def test_follows_the_end_only_while_the_reader_is_there(chat, upstream):
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
    upstream.go_on()
    expect(answer).to_contain_text("two")
    assert log.evaluate("log => log.scrollTop") == before
    log.evaluate("log => { log.scrollTop = log.scrollHeight; }")
    upstream.go_on()
    expect(answer).to_contain_text("three")
    assert log.evaluate(TO_END) < 1


@pytest.mark.parametrize("way", ["click", "Enter"])
def test_message_is_sent_and_its_field_ready_for_the_next(chat, upstream, way):
    field = chat.get_by_label("Message")
    field.fill("First")
    if way == "click":
        chat.get_by_role("button", name="Send").click()
    else:
        field.press(way)
    assert bubbles(chat)[0] == ["question", "First"]
    expect(field).to_be_focused()
    expect(field).to_have_value("")
    expect_state(chat, "closed")


def test_an_empty_message_is_not_sent(chat, upstream):
    send(chat, "")
    assert bubbles(chat) == []
    send(chat)
    expect_state(chat, "closed")
    assert bubbles(chat) == [["question", "Hi"], ["answer", "Hello"]]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("moment", "left"),
    [(silence, []), (silent_in_mid_answer, [["answer", "Hello"]])],
)
def test_stop_keeps_what_there_is_and_leaves_the_upstream(
    chat, upstream, moment, left
):
    upstream.answer = moment
    send(chat)
    wait_until(lambda: upstream.requests)
    if left:
        expect_answer(chat, "Hello")
    chat.get_by_role("button", name="Stop").click()
    stopped = time.monotonic()
    assert chat.locator("#state").text_content() == "closed"
    assert chat.locator("#log").get_attribute("aria-busy") == "false"
    assert bubbles(chat) == [["question", "Hi"], *left]
    (connection,) = upstream.connections
    wait_until(connection.left.is_set)
    assert connection.left_at - stopped < LEAVE_SECONDS


def test_asking_again_ends_the_answer_before_and_keeps_it(chat, upstream):
    upstream.answer = silent_in_mid_answer
    send(chat, "First?")
    expect_answer(chat, "Hello")
    upstream.answer = stream(delta("Second"), end="silent")
    send(chat, "Second?")
    wait_until(upstream.connections[0].left.is_set, LEAVE_SECONDS + 1)
    expect_answer(chat, "Second")
    expect_state(chat, "open")
    assert bubbles(chat) == [
        ["question", "First?"],
        ["answer", "Hello"],
        ["question", "Second?"],
        ["answer", "Second"],
    ]


@pytest.mark.parametrize("name", ["401", "hangs up", "cut, chunked"])
def test_page_shows_why_an_answer_is_not_whole(chat, upstream, name):
    upstream.answer, sentence, texts = FAULTS[name]
    send(chat)
    expect_state(chat, "closed")
    assert bubbles(chat) == [
        ["question", "Hi"],
        *(["answer", text] for text in texts),
        ["problem", sentence],
    ]
    assert len(upstream.requests) == 1


def test_page_shows_that_the_server_refused(chat, upstream):
    with chat.expect_event("console") as console:
        chat.evaluate("ask('x'.repeat(4001))")  # the field would not let it
    expect_state(chat, "closed")
    assert bubbles(chat)[1:] == [["problem", LOST]]
    assert "400" in console.value.text
    assert upstream.requests == []
    chat.problems.clear()


def test_page_shows_that_the_server_is_lost_and_then_gone(start, page):
    server: Server = start("flask run", FLASK_OFFLINE_WORD_SECONDS="0.2")
    page.goto(f"{server.url}/demos/chat")
    send(page, "First")
    answer = page.locator("#log .answer")
    expect(answer).to_contain_text("Server")
    with page.expect_event("console"):
        server.stop()
    expect_state(page, "closed")
    with page.expect_event("console"):
        send(page, "Second")
    expect_state(page, "closed")
    assert bubbles(page) == [
        ["question", "First"],
        ["answer", answer.text_content()],
        ["problem", LOST],
        ["question", "Second"],
        ["problem", LOST],
    ]
    page.problems.clear()


def test_compare_shows_that_rewriting_takes_longer(lesson_page):
    page = lesson_page("chat")
    assert page.locator("#comparison").is_hidden()
    page.get_by_role("button", name="Compare").click()
    appended, rewritten = (
        page.get_by_role("region", name=name).text_content()
        for name in ("Appended", "Rewritten")
    )
    assert appended.startswith("token1 token2 ")
    assert rewritten == appended
    quick, slow = (
        float(re.fullmatch(r"([\d.]+) ms of script for [\d,]+ tokens", text)[1])
        for text in page.locator("#comparison output").all_text_contents()
    )
    assert quick < slow
