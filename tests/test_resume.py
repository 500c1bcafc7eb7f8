import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from conftest import (
    COMMANDS,
    Client,
    RedisServer,
    Server,
    read_until,
    wait_until,
    without_comments,
)
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
    silence,
    stream,
)

import background
import language_model
from app import create_app
from checks import FOREIGN
from event_source import ReceivedEvent, parse_events

NOTICE_SECONDS = 2
PROMPT = b'{"prompt": "Why?"}'
WRONG_PROMPT = "prompt must be text of 1 to 4000 characters."
NO_REDIS = "Redis is not available. Try again in a few seconds."
STOPPED = "The job was stopped."
UNKNOWN = "There is nothing with the id 'x' in answers."

END = ("finished", "[DONE]")
one_server = pytest.mark.parametrize("command", ["flask"], indirect=True)

silent_after_headers = stream(end="silent")
silent_in_mid_answer = stream(delta("Hello"), end="silent")
three_steps = stream(
    *(ROLE, delta("One "), PAUSE, delta("two "), PAUSE, delta("three")),
    *(FINISH, DONE),
)


@pytest.fixture
def app(upstream, monkeypatch):
    """The app in this process, with an upstream."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield create_app()
    language_model.session.close()


@pytest.fixture(scope="module")
def online_server(command, port) -> Iterator[Server]:
    """The app, which waits up to a minute for its upstream."""
    running = Server(
        command,
        OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1",
        OPENAI_API_KEY=KEY,
        OPENAI_MODEL="test-model",
    )
    yield running
    running.stop()


def post(server: Server, body: bytes = PROMPT, **headers: str) -> Client:
    headers = {"Content_Type": "application/json"} | headers
    return server.post("/answers", body, **headers)


def ask(server: Server) -> str:
    """Send a prompt, and return the path of the answer."""
    with post(server) as answer:
        assert answer.status == 202
        return answer.header("Location")


def delete(server: Server, place: str, **headers: str) -> Client:
    return Client(server.port, "DELETE", place, headers=headers)


def refusal(client: Client) -> tuple[int, str]:
    with client:
        assert client.header("Content-Type") == "application/json"
        body = json.loads(client.read())
    assert list(body) == ["error"]
    return client.status, body["error"]


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


def read_all(
    server: Server, place: str, **headers: str
) -> list[tuple[str, str]]:
    """Read an answer to its end, and return its events."""
    with server.get(place, **headers) as client:
        assert client.status == 200
        return summary(parse_events(client.chunks()))


def until(
    server: Server, place: str, text: str, **headers: str
) -> ReceivedEvent:
    """Read until this text arrives, disconnect, and return its event."""
    with server.get(place, **headers) as client:
        for one in parse_events(client.chunks()):
            if summary([one]) == [("message", text)]:
                return one
    raise AssertionError("the stream ended too early")


# The answer


@one_server
def test_a_post_immediately_returns_the_url_of_the_answer(online, upstream):
    upstream.answer = silence
    with post(online) as answer:
        assert answer.status == 202
        place = answer.header("Location")
        assert re.fullmatch(r"/answers/[\w-]{16}", place)
        assert answer.read().decode() == f"{online.url}{place}\n"
    delete(online, place).close()


@one_server
def test_the_stream_is_exactly_these_bytes(online, upstream):
    upstream.answer = stream(
        ROLE, delta(' "One"\n\n'), delta(" "), delta("三😀"), FINISH, DONE
    )
    with online.get(ask(online)) as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        assert client.header("X-Accel-Buffering") == "no"
        body = without_comments(client.read())
    assert re.sub(rb"(?m)^id: \d+-\d+$", b"id", body).decode() == (
        "id\nevent: started\ndata: \n\n"
        'id\ndata: {"text":" \\"One\\"\\n\\n"}\n\n'
        'id\ndata: {"text":" "}\n\n'
        'id\ndata: {"text":"三😀"}\n\n'
        "id: end\nevent: finished\ndata: [DONE]\n\n"
    )


@one_server
def test_the_prompt_goes_to_the_upstream_with_the_key(online, upstream):
    prompt = " 你好\n& = 😀 " + "x" * 3989
    with post(online, json.dumps({"prompt": prompt}).encode()) as answer:
        place = answer.header("Location")
    assert read_all(online, place) == [*texts("Hello"), END]
    (request,) = upstream.requests
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.json == {
        "model": "test-model",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
    }


@one_server
@pytest.mark.parametrize("name", FAULT_OF_EACH_KIND)
def test_a_fault_is_in_the_last_event(online, upstream, name):
    upstream.answer, sentence, begun = FAULTS[name]
    place = ask(online)
    for _ in range(2):
        answer = read_all(online, place)
        assert answer == [*texts(*begun), ("failed", sentence)]
    assert len(upstream.requests) == 1


def test_silence_is_reported_and_finally_becomes_a_fault(
    client, upstream, monkeypatch
):
    monkeypatch.setattr(background, "PULSE_SECONDS", 0.02)
    monkeypatch.setattr(language_model, "SILENCE_SECONDS", 1)
    upstream.answer = silent_in_mid_answer
    path = client.post("/answers", json={"prompt": "Why?"}).location
    events = list(parse_events([client.get(path).data]))
    assert events[-2].event == "waiting"
    assert summary(events) == [
        *texts("Hello"),
        ("failed", "The language model fell silent."),
    ]


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [("Compare", "## Event streams or"), ("什么是事件流？", "**服务器发送")],
)
def test_an_offline_answer_has_the_same_form(prompt, beginning):
    client = create_app({"OFFLINE_WORD_SECONDS": 0}).test_client()
    path = client.post("/answers", json={"prompt": prompt}).location
    started, *pieces = summary(parse_events([client.get(path).data]))
    assert started == ("started", "")
    assert pieces.pop() == END
    assert {type for type, _ in pieces} == {"message"}
    assert "".join(text for _, text in pieces).startswith(beginning)


# Reading an answer


@one_server
def test_deltas_are_sent_immediately(online, upstream):
    upstream.answer = three_steps
    with online.get(ask(online)) as client:
        chunks = client.chunks()
        read_until(chunks, b'{"text":"One "}\n\n')
        upstream.resume()
        read_until(chunks, b'{"text":"two "}\n\n')
        upstream.resume()
        assert summary(parse_events(chunks)) == [("message", "three"), END]


@one_server
def test_the_model_continues_without_clients(online, upstream):
    upstream.answer = three_steps
    place = ask(online)
    with online.get(place) as client:
        read_until(client.chunks(), b"One")
    upstream.resume()
    upstream.resume()
    assert read_all(online, place) == [*texts("One ", "two ", "three"), END]


@one_server
def test_an_answer_is_paid_for_once_however_often_it_is_read(online, upstream):
    upstream.answer = three_steps
    place = ask(online)
    everything = [*texts("One ", "two ", "three"), END]
    with ExitStack() as stack:
        readers = [stack.enter_context(online.get(place)) for _ in range(5)]
        streams = [reader.chunks() for reader in readers]
        for chunks in streams:
            read_until(chunks, b"One")
        Client(online.port, "HEAD", place).close()
        upstream.resume()
        upstream.resume()
        for chunks in streams:
            assert summary(parse_events(chunks)) == everything[2:]
    with online.get(place) as client:
        events = list(parse_events(client.chunks()))
    assert summary(events) == everything
    for number, one in enumerate(events[:-1], start=1):
        rest = read_all(online, place, Last_Event_ID=one.id)
        assert rest == summary(events[number:])
    with online.get(place, Last_Event_ID=events[-1].id) as client:
        assert (client.status, client.read()) == (204, b"")
    assert len(upstream.requests) == 1


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def environ(shared_redis, port) -> dict[str, str]:
    """The environment of servers that share a Redis and an upstream."""
    base_url = f"http://127.0.0.1:{port}/v1"
    return {"REDIS_URL": shared_redis.url, "OPENAI_BASE_URL": base_url}


@pytest.fixture(scope="module")
def two_servers(environ) -> Iterator[list[Server]]:
    servers = [Server(command, **environ) for command in COMMANDS.values()]
    yield servers
    for server in servers:
        server.stop()


def test_another_server_resumes_after_the_last_event_id(two_servers, upstream):
    upstream.answer = three_steps
    first, second = two_servers
    place = ask(first)
    last = until(first, place, "One ")
    upstream.resume()
    last = until(second, place, "two ", Last_Event_ID=last.id)
    upstream.resume()
    rest = read_all(second, place, Last_Event_ID=last.id)
    assert rest == [("message", "three"), END]
    assert read_all(first, place) == read_all(second, place)
    delete(second, place).close()
    assert len(upstream.requests) == 1


def test_nothing_is_lost_or_repeated_while_redis_is_down(
    two_servers, shared_redis, upstream
):
    upstream.answer = three_steps
    server, other = two_servers
    place = ask(server)
    with server.get(place) as here, other.get(place) as there:
        readers = [here.chunks(), there.chunks()]
        for chunks in readers:
            read_until(chunks, b"One")
        shared_redis.stop()
        assert refusal(post(server)) == (503, NO_REDIS)
        with server.get(place) as client:
            assert client.read().startswith(b"retry: ")  # so it reconnects
        upstream.resume()
        upstream.resume()
        shared_redis.start()
        rest = [("message", "two "), ("message", "three"), END]
        for chunks in readers:
            assert summary(parse_events(chunks)) == rest
    assert read_all(other, place) == [*texts("One "), *rest]
    assert len(upstream.requests) == 1


# Ending an answer


@pytest.mark.parametrize(
    ("answer", "begun"),
    [(silent_after_headers, []), (silent_in_mid_answer, ["Hello"])],
    ids=["after headers", "in mid-answer"],
)
def test_a_delete_ends_the_connection_to_the_upstream(
    online, upstream, answer, begun
):
    upstream.answer = answer
    place = ask(online)
    wait_until(lambda: upstream.requests)
    for text in begun:
        until(online, place, text)
    deleted_at = time.monotonic()
    for _ in range(2):
        with delete(online, place) as answer:
            assert (answer.status, answer.read()) == (204, b"")
    (connection,) = upstream.connections
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - deleted_at < NOTICE_SECONDS
    assert read_all(online, place) == [*texts(*begun), ("failed", STOPPED)]


def test_a_delete_at_another_server_stops_the_model(two_servers, upstream):
    upstream.answer = silent_in_mid_answer
    first, second = two_servers
    place = ask(first)
    with first.get(place) as reader:
        read_until(reader.chunks(), b"Hello")
        with delete(second, place) as answer:
            assert answer.status == 204
        events = summary(parse_events(reader.chunks()))
        assert events == [("failed", STOPPED)]
    wait_until(upstream.connections[0].disconnected.is_set, NOTICE_SECONDS)


def test_a_delete_stops_the_model_even_if_redis_is_down(
    two_servers, shared_redis, upstream
):
    upstream.answer = silent_in_mid_answer
    server, other = two_servers
    place = ask(server)
    until(server, place, "Hello")
    shared_redis.stop()

    def has_disconnected():  # once its own worker gets the request
        assert refusal(delete(server, place)) == (503, NO_REDIS)
        return upstream.connections[0].disconnected.is_set()

    wait_until(has_disconnected)
    shared_redis.start()
    assert read_all(other, place)[-1][0] == "failed"


def test_a_delete_is_accepted_even_at_the_limit_of_streams():
    app = create_app({"MAX_STREAMS": 1, "OFFLINE_WORD_SECONDS": 0.2})
    client = app.test_client()
    with client.post("/answers", json={"prompt": "Why?"}) as answer:
        place = answer.location
    with client.get(place) as reader:
        assert client.get(place).status_code == 503
        assert client.delete(place).status_code == 204
        *_, end = summary(parse_events(reader.response))
        assert end == ("failed", STOPPED)


def test_an_unknown_id_is_404(client):
    for response in (client.get("/answers/x"), client.delete("/answers/x")):
        assert response.status_code == 404
        assert response.json == {"error": UNKNOWN}


# Refused requests, which cost nothing


REFUSED = {
    "missing": ({}, 400, WRONG_PROMPT),
    "empty": ({"prompt": ""}, 400, WRONG_PROMPT),
    "too long": ({"prompt": "x" * 4001}, 400, WRONG_PROMPT),
    "a number": ({"prompt": 5}, 400, WRONG_PROMPT),
    "null": ({"prompt": None}, 400, WRONG_PROMPT),
    "a list": ({"prompt": ["Why?"]}, 400, WRONG_PROMPT),
    "no object": (
        "Why?",
        400,
        'The body must be a JSON object, such as {"a": 1}.',
    ),
    "too large": (
        {"prompt": "Why?", "more": "x" * 64 * 1024},
        413,
        "The body must have at most 65536 bytes.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_prompts_are_refused(client, upstream, name):
    body, status, sentence = REFUSED[name]
    response = client.post("/answers", json=body)
    assert (response.status_code, response.json) == (
        status,
        {"error": sentence},
    )
    assert upstream.requests == []


def test_other_media_types_are_refused(client, upstream):
    response = client.post("/answers", data=PROMPT, content_type="text/plain")
    assert response.status_code == 415
    assert response.json == {
        "error": "The body must have the Content-Type application/json."
    }
    assert upstream.requests == []


def check_foreign_pages(client) -> None:
    """Check that foreign pages cannot ask, read or stop."""
    path = client.post("/answers", json={"prompt": "Why?"}).location
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://elsewhere.example"},
    ):
        for response in (
            client.post("/answers", json={"prompt": "Hi"}, headers=headers),
            client.get(path, headers=headers),
            client.delete(path, headers=headers),
        ):
            assert response.status_code == 403
            assert response.json == {"error": FOREIGN}
            assert "Access-Control-Allow-Origin" not in response.headers
    with client.get(path, headers={"Sec-Fetch-Site": "same-origin"}) as stream:
        assert summary(parse_events(stream.response))[-1] == END
        assert "Access-Control-Allow-Origin" not in stream.headers


def test_foreign_pages_are_refused_even_if_answers_are_free(
    client, upstream, monkeypatch
):
    check_foreign_pages(client)
    assert len(upstream.requests) == 1
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY")
    check_foreign_pages(create_app({"OFFLINE_WORD_SECONDS": 0}).test_client())


def test_too_many_concurrent_answers_are_refused(client, upstream, monkeypatch):
    monkeypatch.setattr(background, "MAX_AT_ONCE", 1)
    upstream.answer = silent_in_mid_answer
    body = {"prompt": "Why?"}
    path = client.post("/answers", json=body).location
    with client.get(path) as response:
        read_until(response.response, b"Hello")
    refused = client.post("/answers", json=body)
    assert refused.status_code == 503
    assert 2 <= int(refused.headers["Retry-After"]) <= 10
    assert "Too many jobs" in refused.json["error"]
    assert client.delete(path).status_code == 204
    upstream.answer = stream(delta("Hello"), FINISH, DONE)
    responses = iter(lambda: client.post("/answers", json=body), None)
    wait_until(lambda: next(responses).status_code == 202)
    wait_until(lambda: len(upstream.requests) == 2)


# The page


@pytest.fixture
def resume(online, upstream, page) -> Page:
    page.goto(f"{online.url}/demos/resume")
    return page


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def expect_text(page: Page, text: str) -> None:
    expect(page.locator("#answer")).to_have_text(text)


def text_of(page: Page) -> str:
    return page.locator("#answer").text_content()


def expect_state(page: Page, state: str) -> None:
    expect(page.locator("#state")).to_have_text(state)


def expect_end(page: Page, sentence: str) -> None:
    expect(page.locator("#end")).to_have_text(sentence)
    expect_state(page, "closed")


def test_a_reload_in_mid_answer_ends_with_the_same_text(start, page):
    server = start("flask run", FLASK_OFFLINE_WORD_SECONDS="0.01")
    page.goto(f"{server.url}/demos/resume")
    press(page, "Ask")
    expect_end(page, "Complete.")
    undisturbed = text_of(page)
    assert undisturbed.startswith("A browser **reconnects by itself**")
    press(page, "Ask")
    expect_state(page, "open")
    wait_until(lambda: text_of(page).startswith(undisturbed[:20]))
    assert len(text_of(page)) < len(undisturbed)
    page.reload()
    expect_end(page, "Complete.")
    assert text_of(page) == undisturbed


@one_server
def test_reloads_and_more_tabs_show_the_same_and_ask_once(resume, upstream):
    upstream.answer = three_steps
    press(resume, "Ask")
    expect_text(resume, "One ")
    resume.reload()
    expect_text(resume, "One ")
    second = resume.context.new_page()
    second.goto(resume.url)
    expect_text(second, "One ")
    upstream.resume()
    for page in resume, second:
        expect_text(page, "One two ")
    upstream.resume()
    for page in resume, second:
        expect_end(page, "Complete.")
        expect_text(page, "One two three")
    resume.reload()
    expect_end(resume, "Complete.")
    expect_text(resume, "One two three")
    assert len(upstream.requests) == 1


@one_server
def test_a_disconnect_stops_nothing_and_a_reconnect_shows_everything(
    online, resume, upstream
):
    upstream.answer = three_steps
    press(resume, "Ask")
    expect_text(resume, "One ")
    press(resume, "Disconnect")
    assert resume.locator("#state").text_content() == "closed"
    upstream.resume()
    upstream.resume()
    assert read_all(online, urlsplit(resume.url).fragment)[-1] == END
    assert text_of(resume) == "One "
    press(resume, "Reconnect")
    expect_end(resume, "Complete.")
    expect_text(resume, "One two three")
    assert len(upstream.requests) == 1


@one_server
def test_a_page_sends_no_request_after_the_end(resume, upstream):
    asked = []
    resume.on("request", lambda one: asked.append((one.method, one.url)))
    press(resume, "Ask")
    expect_end(resume, "Complete.")
    methods = [method for method, url in asked if "/answers" in url]
    assert methods == ["POST", "GET"]
    assert len(upstream.requests) == 1


@one_server
@pytest.mark.parametrize(
    ("answer", "text"),
    [(silent_after_headers, ""), (silent_in_mid_answer, "Hello")],
    ids=["after headers", "in mid-answer"],
)
def test_stop_shows_why_and_stops_the_model(resume, upstream, answer, text):
    upstream.answer = answer
    press(resume, "Ask")
    expect_state(resume, "open")
    wait_until(lambda: upstream.requests)
    expect_text(resume, text)
    press(resume, "Stop")
    stopped_at = time.monotonic()
    expect_end(resume, STOPPED)
    assert text_of(resume) == text
    (connection,) = upstream.connections
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - stopped_at < NOTICE_SECONDS


@one_server
def test_page_shows_why_an_answer_is_incomplete(resume, upstream):
    for name in ("401", "cut, chunked"):
        upstream.answer, sentence, begun = FAULTS[name]
        press(resume, "Ask")
        expect_end(resume, sentence)
        assert text_of(resume) == "".join(begun)
    assert len(upstream.requests) == 2


@one_server
def test_page_shows_that_the_model_is_thinking(resume, upstream):
    upstream.answer = three_steps
    end = resume.locator("#end")
    press(resume, "Ask")
    expect(end).to_have_text("The model is thinking …")
    upstream.resume()
    expect_text(resume, "One two ")
    expect(end).to_be_empty()
    upstream.resume()
    expect_end(resume, "Complete.")


@one_server
def test_page_starts_over_after_a_reset(resume, upstream):
    upstream.answer = three_steps
    resume.add_init_script(
        """EventSource = class extends EventSource {
          constructor(url) {
            super(url);
            globalThis.newest = this;
          }
        };"""
    )
    resume.reload()
    press(resume, "Ask")
    expect_text(resume, "One ")
    resume.evaluate("newest.dispatchEvent(new MessageEvent('reset'))")
    expect_text(resume, "")
    upstream.resume()
    upstream.resume()
    expect_end(resume, "Complete.")
    expect_text(resume, "two three")


@one_server
def test_page_shows_why_a_request_was_refused(resume, upstream):
    end = resume.locator("#end")
    with resume.expect_event("console"):
        resume.evaluate(
            """() => {
              document.querySelector("#prompt").value = "x".repeat(4001);
              document.querySelector("#form").requestSubmit();
            }"""
        )
    expect(end).to_have_text(WRONG_PROMPT)
    resume.evaluate("location.hash = '/answers/x'")
    with resume.expect_event("console"):
        resume.reload()
    expect(end).to_have_text("There is no such answer here.")
    expect_state(resume, "failed")
    with resume.expect_event("console"):
        press(resume, "Stop")
    expect(end).to_have_text(UNKNOWN)
    assert upstream.requests == []
    resume.problems.clear()


@one_server
def test_an_answer_is_plain_text(resume, upstream):
    pieces = ("<img src=x onerror=", "alert(1)> &amp;\n 你好")
    upstream.answer = stream(*map(delta, pieces), FINISH, DONE)
    press(resume, "Ask")
    expect_end(resume, "Complete.")
    assert text_of(resume) == "".join(pieces)
    assert resume.locator("#answer > *").count() == 0


def test_a_page_that_lost_its_server_resumes_when_it_is_back(
    start, environ, two_servers, upstream, page
):
    upstream.answer = three_steps
    lost, (other, _) = start("flask run", **environ), two_servers
    place = ask(other)
    page.goto(f"{lost.url}/demos/resume#{place}")
    expect_text(page, "One ")
    lost.stop()
    expect_state(page, "reconnecting")
    upstream.resume()
    until(other, place, "two ")
    start("flask run", port=lost.port, **environ)
    expect_state(page, "open")
    expect_text(page, "One two ")
    upstream.resume()
    expect_end(page, "Complete.")
    expect_text(page, "One two three")
    assert len(upstream.requests) == 1
    page.problems.clear()
