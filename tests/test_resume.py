import json
import re
from collections.abc import Iterator

import pytest
from conftest import read_until, wait_until, without_comments
from playwright.sync_api import Page, expect
from upstream import (
    DONE,
    FAULTS,
    FINISH,
    PAUSE,
    ROLE,
    delta,
    silence,
    stream,
)

import background
from app import create_app
from checks import FOREIGN
from event_source import parse_events

WRONG_PROMPT = "prompt must be text of 1 to 4000 characters."
STOPPED = "The job was stopped."
UNKNOWN = "There is nothing with the id 'x' in answers."

END = ("finished", "[DONE]")
silent_in_mid_answer = stream(delta("Hello"), end="silent")
three_steps = stream(
    *(ROLE, delta("One "), PAUSE, delta("two "), PAUSE, delta("three")),
    *(FINISH, DONE),
)


@pytest.fixture
def app(online_app):
    return online_app


def summary(events) -> list[tuple[str, str]]:
    """Return the type and text of each event, without `waiting` events."""
    pairs = []
    for one in events:
        data = one.data
        if data.startswith("{"):
            ((_, data),) = json.loads(data).items()
        pairs.append((one.event, data))
    return [pair for pair in pairs if pair[0] != "waiting"]


def texts(*texts: str) -> list[tuple[str, str]]:
    return [("started", ""), *(("message", text) for text in texts)]


# The answer


@pytest.fixture
def ask(client):
    """Return a function that sends a prompt, and returns the answer's path."""

    def ask(prompt: str = "Why?") -> str:
        answer = client.post("/answers", json={"prompt": prompt})
        assert answer.status_code == 202
        return answer.headers["Location"]

    return ask


@pytest.fixture
def read_all(client):
    """Return a function that reads an answer to its end."""

    def read_all(path: str) -> list[tuple[str, str]]:
        return summary(parse_events([client.get(path).data]))

    return read_all


def test_a_post_immediately_returns_the_url_of_the_answer(client, upstream):
    upstream.answer = silence
    answer = client.post("/answers", json={"prompt": "Why?"})
    path = answer.headers["Location"]
    assert answer.status_code == 202
    assert re.fullmatch(r"/answers/[\w-]{16}", path)
    assert answer.headers["Content-Type"] == "text/plain"
    assert answer.text == f"http://localhost{path}\n"
    wait_until(lambda: upstream.requests)  # else the next test might get it
    client.delete(path)


def test_the_stream_is_exactly_these_bytes(client, ask, upstream, monkeypatch):
    monkeypatch.setattr(background, "PULSE_SECONDS", 60)  # no `waiting`
    upstream.answer = stream(
        ROLE, delta(' "One"\n\n'), delta(" "), delta("三😀"), FINISH, DONE
    )
    prompt = " 你好\n& = 😀 " + "x" * 3989
    body = without_comments(client.get(ask(prompt)).data)
    assert re.sub(rb"(?m)^id: \d+-\d+$", b"id", body).decode() == (
        "id\nevent: started\ndata: \n\n"
        'id\ndata: {"text":" \\"One\\"\\n\\n"}\n\n'
        'id\ndata: {"text":" "}\n\n'
        'id\ndata: {"text":"三😀"}\n\n'
        "id: end\nevent: finished\ndata: [DONE]\n\n"
    )
    (request,) = upstream.requests
    assert request.json["messages"] == [{"role": "user", "content": prompt}]


def test_a_fault_is_in_the_last_event(ask, read_all, upstream):
    for name in ("401", "cut, chunked"):
        upstream.answer, sentence, begun = FAULTS[name]
        path = ask()
        for _ in range(2):
            assert read_all(path) == [*texts(*begun), ("failed", sentence)]
    assert len(upstream.requests) == 2


def test_a_delete_ends_the_connection_to_the_upstream(
    client, ask, read_all, upstream
):
    for count, answer, begun in (
        (1, stream(end="silent"), []),
        (2, silent_in_mid_answer, ["Hello"]),
    ):
        upstream.answer = answer
        path = ask()
        with client.get(path) as response:
            read_until(response.response, b"Hello" if begun else b"started")
        wait_until(lambda count=count: len(upstream.requests) == count)
        for _ in range(2):
            assert client.delete(path).status_code == 204
        wait_until(upstream.connections[-1].disconnected.is_set)
        assert read_all(path) == [*texts(*begun), ("failed", STOPPED)]


def test_invalid_prompts_are_refused(client, upstream):
    for body, status, sentence in [
        ({}, 400, WRONG_PROMPT),
        ({"prompt": ""}, 400, WRONG_PROMPT),
        ({"prompt": "x" * 4001}, 400, WRONG_PROMPT),
        (
            {"prompt": "Why?", "more": "x" * 64 * 1024},
            413,
            "The body must have at most 65536 bytes.",
        ),
    ]:
        response = client.post("/answers", json=body)
        found = response.status_code, response.json
        assert found == (status, {"error": sentence})
    assert upstream.requests == []


def test_an_unknown_id_is_404(client):
    for response in (client.get("/answers/x"), client.delete("/answers/x")):
        assert response.status_code == 404
        assert response.json == {"error": UNKNOWN}


def test_foreign_pages_are_refused_even_if_answers_are_free():
    client = create_app({"OFFLINE_WORD_SECONDS": 0}).test_client()
    path = client.post("/answers", json={"prompt": "Why?"}).location
    headers = {"Sec-Fetch-Site": "cross-site"}
    for response in (
        client.post("/answers", json={"prompt": "Hi"}, headers=headers),
        client.get(path, headers=headers),
        client.delete(path, headers=headers),
    ):
        assert response.status_code == 403
        assert response.json == {"error": FOREIGN}
    with client.get(path, headers={"Sec-Fetch-Site": "same-origin"}) as stream:
        assert summary(parse_events(stream.response))[-1] == END
        assert "Access-Control-Allow-Origin" not in stream.headers


# Two servers


def until(chunks: Iterator[bytes], text: str) -> str:
    """Read until this text arrives, and return the id of its event."""
    for one in parse_events(chunks):
        if summary([one]) == [("message", text)]:
            return one.id
    raise AssertionError("the stream ended too early")


def test_another_server_resumes_and_stops_an_answer(
    start, client, in_redis, upstream
):
    environ = {"REDIS_URL": in_redis, "OPENAI_BASE_URL": upstream.url}
    first = start("gunicorn -w 1", **environ)
    pieces = ROLE, delta("One "), PAUSE, delta("two ")
    upstream.answer = stream(*pieces, end="silent")
    headers = {"Content_Type": "application/json"}
    with first.post("/answers", b'{"prompt": "Why?"}', **headers) as answer:
        path = answer.header("Location")
    with first.get(path) as reader:
        last = until(reader.chunks(), "One ")
    upstream.resume()
    with client.get(path, headers={"Last-Event-ID": last}) as response:
        last = until(response.response, "two ")
    assert client.delete(path).status_code == 204
    wait_until(upstream.connections[0].disconnected.is_set)
    with first.get(path, Last_Event_ID=last) as reader:
        rest = summary(parse_events(reader.chunks()))
    assert rest == [("failed", STOPPED)]
    assert len(upstream.requests) == 1


# The page


@pytest.fixture
def resume(live, page, monkeypatch) -> Page:
    monkeypatch.setattr(background, "PULSE_SECONDS", 0.1)
    page.goto(f"{live.url}/demos/resume")
    return page


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def expect_text(page: Page, text: str) -> None:
    expect(page.locator("#answer")).to_have_text(text)


def text_of(page: Page) -> str:
    return page.locator("#answer").text_content()


def expect_end(page: Page, sentence: str) -> None:
    expect(page.locator("#end")).to_have_text(sentence)
    expect(page.locator("#state")).to_have_text("closed")


def test_reloads_and_more_tabs_show_the_same_and_ask_once(resume, upstream):
    asked = []
    resume.on("request", lambda one: asked.append((one.method, one.url)))
    upstream.answer = three_steps
    press(resume, "Ask")
    expect_text(resume, "One ")
    resume.reload()
    expect_text(resume, "One ")
    second = resume.context.new_page()
    second.goto(resume.url)
    expect_text(second, "One ")
    expect(second.locator("#end")).to_have_text("The model is thinking …")
    upstream.resume()
    for page in resume, second:
        expect_text(page, "One two ")
        expect(page.locator("#state")).to_have_text("open")
    press(second, "Disconnect")
    expect(second.locator("#state")).to_have_text("closed")
    upstream.resume()
    expect_end(resume, "Complete.")
    expect_text(resume, "One two three")
    assert text_of(second) == "One two "
    press(second, "Reconnect")
    expect_end(second, "Complete.")
    expect_text(second, "One two three")
    resume.reload()
    expect_end(resume, "Complete.")
    expect_text(resume, "One two three")
    methods = [method for method, url in asked if "/answers" in url]
    assert methods == ["POST", "GET", "GET", "GET"]  # two from reloads
    assert len(upstream.requests) == 1


def test_page_shows_plain_text_and_why_an_answer_is_incomplete(
    resume, upstream
):
    pieces = ("<img src=x onerror=", "alert(1)> &amp;\n 你好")
    upstream.answer = stream(*map(delta, pieces), FINISH, DONE)
    press(resume, "Ask")
    expect_end(resume, "Complete.")
    assert text_of(resume) == "".join(pieces)
    assert resume.locator("#answer > *").count() == 0

    upstream.answer, sentence, begun = FAULTS["cut, chunked"]
    press(resume, "Ask")
    expect_end(resume, sentence)
    assert text_of(resume) == "".join(begun)

    upstream.answer = silent_in_mid_answer
    press(resume, "Ask")
    expect_text(resume, "Hello")
    press(resume, "Stop")
    expect_end(resume, STOPPED)
    assert text_of(resume) == "Hello"
    wait_until(upstream.connections[-1].disconnected.is_set)


def test_page_starts_over_after_a_reset(resume, upstream):
    upstream.answer = three_steps
    resume.evaluate(
        """() => {
          EventSource = class extends EventSource {
            constructor(url) {
              super(url);
              globalThis.newest = this;
            }
          };
        }"""
    )
    press(resume, "Ask")
    expect_text(resume, "One ")
    resume.evaluate("newest.dispatchEvent(new MessageEvent('reset'))")
    expect_text(resume, "")
    upstream.resume()
    expect(resume.locator("#end")).to_be_empty()
    upstream.resume()
    expect_end(resume, "Complete.")
    expect_text(resume, "two three")


def test_page_shows_why_a_request_was_refused(resume, upstream):
    end = resume.locator("#end")
    resume.evaluate(
        """() => {
          document.querySelector("#prompt").value = "x".repeat(4001);
          document.querySelector("#form").requestSubmit();
        }"""
    )
    expect(end).to_have_text(WRONG_PROMPT)
    resume.evaluate("location.hash = '/answers/x'")
    resume.reload()
    expect(end).to_have_text("There is no such answer here.")
    expect(resume.locator("#state")).to_have_text("failed")
    press(resume, "Stop")
    expect(end).to_have_text(UNKNOWN)
    assert upstream.requests == []
    resume.expected = "Failed to load resource"
