import pytest
from conftest import wait_until, without_comments
from playwright.sync_api import Page, expect
from upstream import (
    DONE,
    FAULTS,
    FINISH,
    PAUSE,
    ROLE,
    delta,
    stream,
)

RETRY = b"retry: 86400000\n"
FAILED = "The connection failed."

silent_after_headers = stream(end="silent")
silent_in_mid_answer = stream(delta("Hello"), end="silent")


@pytest.fixture
def app(online_app):
    return online_app


# The answer


def test_an_answer_is_an_event_per_delta_and_then_an_action(client, upstream):
    upstream.answer = stream(
        ROLE, delta(' "One"\n\n'), delta(" "), delta("三😀"), FINISH, DONE
    )
    prompt = "x" * 4000
    response = client.get(f"/stream?prompt={prompt}")
    assert response.headers["Content-Type"] == "text/event-stream"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert without_comments(response.data) == (
        RETRY
        + b'id: 1\ndata: {"text":" \\"One\\"\\n\\n"}\n\n'
        + b'id: 2\ndata: {"text":" "}\n\n'
        + 'id: 3\ndata: {"text":"三😀"}\n\n'.encode()
        + b'id: 4\ndata: {"action":"terminate"}\n\n'
    )
    (request,) = upstream.requests
    question = {"role": "user", "content": prompt}
    assert request.json["messages"] == [question]


# The page


@pytest.fixture
def chat(live, upstream, page) -> Page:
    page.goto(f"{live.url}/demos/chat")
    return page


def send(page: Page, message: str = "Hi") -> None:
    page.get_by_label("Message").fill(message)
    page.get_by_role("button", name="Send").click()


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop").click()


def expect_answer(page: Page, text: str) -> None:
    expect(page.locator("#log .answer").last).to_have_text(text)


def expect_state(page: Page, state: str) -> None:
    expect(page.locator("#state")).to_have_text(state)


def bubbles(page: Page) -> list[list[str]]:
    return page.locator("#log > *").evaluate_all(
        "all => all.map((one) => [one.className, one.textContent])"
    )


def test_question_and_answer_become_bubbles_of_plain_text(chat, upstream):
    field = chat.get_by_label("Message")
    send(chat, "")
    assert bubbles(chat) == []
    upstream.answer = stream(
        *(delta("<img src=x onerror="), delta("alert(1)> &amp;\n 你好")),
        *(FINISH, DONE),
    )
    send(chat, "<b>Why?</b>")
    expect(field).to_have_value("")
    expect_state(chat, "closed")
    assert bubbles(chat) == [
        ["question", "<b>Why?</b>"],
        ["answer", "<img src=x onerror=alert(1)> &amp;\n 你好"],
    ]
    assert chat.locator("#log > * > *").count() == 0
    # CLOSED. Without `close`, the EventSource would reconnect after a day.
    assert chat.evaluate("source.readyState") == 2
    assert len(upstream.requests) == 1
    field.fill("Second")
    field.press("Enter")
    assert bubbles(chat)[2] == ["question", "Second"]
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


def test_log_is_busy_until_the_end_and_never_rewritten(chat, upstream):
    idle = {"live": "polite", "busy": None}
    bar = chat.get_by_role("progressbar", name="Waiting for the first token")
    assert log_for_screen_readers(chat) == idle
    assert bar.count() == 0
    upstream.answer = stream(
        *(PAUSE, delta("Hello"), PAUSE, delta(" again"), FINISH, DONE)
    )
    send(chat)
    expect_state(chat, "open")
    assert log_for_screen_readers(chat) == idle | {"busy": True}
    assert bar.is_visible()
    wait_until(lambda: upstream.requests)
    upstream.resume()
    expect_answer(chat, "Hello")
    assert log_for_screen_readers(chat) == idle | {"busy": True}
    assert bar.count() == 0
    answer = chat.locator("#log .answer")
    answer.evaluate("answer => { window.first = answer.firstChild; }")
    upstream.resume()
    expect_answer(chat, "Hello again")
    expect_state(chat, "closed")
    assert log_for_screen_readers(chat) == idle
    assert answer.evaluate("answer => answer.firstChild === first")
    assert chat.evaluate("first.data") == "Hello"


TO_END = "log => log.scrollHeight - log.clientHeight - log.scrollTop"


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


def test_stop_and_a_new_question_keep_the_text_so_far_and_stop_the_model(
    chat, upstream
):
    upstream.answer = silent_after_headers
    send(chat, "First?")
    wait_until(lambda: upstream.requests)
    stop(chat)
    expect_state(chat, "closed")
    assert chat.locator("#log").get_attribute("aria-busy") == "false"
    expected = [["question", "First?"]]
    assert bubbles(chat) == expected
    upstream.answer = silent_in_mid_answer
    for end in (stop, lambda page: send(page, "Last?")):
        send(chat, "Next?")
        expected += [["question", "Next?"], ["answer", "Hello"]]
        wait_until(lambda expected=expected: bubbles(chat) == expected)
        end(chat)
    expect_state(chat, "open")
    expected += [["question", "Last?"], ["answer", "Hello"]]
    wait_until(lambda: bubbles(chat) == expected)
    *stopped, _ = upstream.connections
    wait_until(lambda: all(one.disconnected.is_set() for one in stopped))


def test_page_shows_why_an_answer_is_incomplete(chat, upstream):
    upstream.answer, sentence, texts = FAULTS["cut, chunked"]
    send(chat)
    expect_state(chat, "closed")
    expected = [["question", "Hi"], ["answer", *texts], ["problem", sentence]]
    assert bubbles(chat) == expected
    chat.expected = "400"
    field = chat.get_by_label("Message")
    field.evaluate("field => { field.value = 'x'.repeat(4001); }")
    chat.get_by_role("button", name="Send").click()
    expect(chat.locator("#log > *").last).to_have_text(FAILED)
    assert len(upstream.requests) == 1
    chat.route(
        "**/stream?*",
        lambda route: route.fulfill(
            body='data: {"text":"Half"}\n\n',
            headers={"Content-Type": "text/event-stream"},
        ),
    )
    send(chat)
    expect_state(chat, "closed")
    expected = [["question", "Hi"], ["answer", "Half"], ["problem", FAILED]]
    assert bubbles(chat)[-3:] == expected
