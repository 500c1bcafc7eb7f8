from urllib.parse import quote

import pytest
from conftest import wait_until, without_comments
from playwright.sync_api import expect
from upstream import (
    DONE,
    FAULTS,
    FINISH,
    ROLE,
    delta,
    stream,
)

RETRY = b"retry: 86400000\n"


@pytest.fixture
def app(online_app):
    return online_app


def test_an_answer_is_one_message_per_delta_and_then_done(client, upstream):
    upstream.answer = stream(
        ROLE, delta("  One\n\n two"), delta(" "), delta("\r\n三"), FINISH, DONE
    )
    prompt = " 你好\n& = 😀 "
    response = client.get(f"/completion?prompt={quote(prompt)}")
    assert response.headers["Content-Type"] == "text/event-stream"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert without_comments(response.data) == (
        RETRY
        + b"id: 1\ndata:   One\ndata: \ndata:  two\n\n"
        + b"id: 2\ndata:  \n\n"
        + "id: 3\ndata: \ndata: 三\n\n".encode()
        + b"event: done\ndata: [DONE]\n\n"
    )
    (request,) = upstream.requests
    question = {"role": "user", "content": prompt}
    assert request.json["messages"] == [question]


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
