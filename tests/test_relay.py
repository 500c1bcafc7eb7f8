import json

import pytest
from conftest import JSON, read_until, wait_until, without_comments
from playwright.sync_api import expect
from upstream import (
    BYTE_FAULTS,
    CUT_FAULTS,
    DONE,
    FAULTS,
    FINISH,
    FRAMINGS,
    HELLO,
    KEY,
    PAUSE,
    REFUSED_KEY,
    ROLE,
    TOO_MANY,
    chunk,
    delta,
    event,
    page,
    silence,
    stream,
)

import language_model
from app import create_app
from demos import relay
from sse import keep_alive

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": MESSAGES}
STREAMED = CHAT | {"stream": True}
KEEP_ALIVE = b": keep-alive\n\n"
COMPLETION = (
    b'{"id": "chatcmpl-1", "object": "chat.completion", "created": 1, '
    b'"model": "test-model", "choices": [{"index": 0, "finish_reason": "stop", '
    b'"message": {"role": "assistant", "content": "Hello"}}]}'
)


@pytest.fixture
def app(online_app):
    return online_app


@pytest.fixture
def relayed(client, upstream):
    """Return a function that relays an answer, and returns its events."""

    def relayed(answer) -> bytes:
        upstream.answer = answer
        return without_comments(client.post(PATH, json=STREAMED).data)

    return relayed


def official_error(status: int, sentence: str) -> dict:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": sentence,
            "type": kind,
            "param": None,
            "code": None,
        }
    }


def check_error(response, status: int, sentence: str) -> None:
    assert response.status_code == status
    assert response.content_type == "application/json"
    assert response.json == official_error(status, sentence)


# Requests to the upstream


def test_unknown_fields_are_forwarded_with_the_key_of_the_server(
    client, upstream
):
    body = STREAMED | {
        "model": "another",
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "tools": [{"type": "function", "function": {"name": "函数"}}],
        "unheard_of": [None, True, {"deep": [1, 2.5, "😀"]}],
    }
    headers = {"Authorization": "Bearer caller-key", "Cookie": "a=1"}
    assert client.post(PATH, json=body, headers=headers).status_code == 200
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", PATH)
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Cookie"] is None
    assert request.json == body


def test_the_model_of_the_server_wins_and_no_key_of_a_client_is_forwarded(
    client, upstream, monkeypatch
):
    monkeypatch.setenv("OPENAI_MODEL", "ours")
    monkeypatch.delenv("OPENAI_API_KEY")
    headers = {"Authorization": "Bearer caller-key"}
    client.post(PATH, json=CHAT | {"model": "theirs"}, headers=headers)
    (request,) = upstream.requests
    assert request.json == CHAT | {"model": "ours", "stream": False}
    assert request.headers["Authorization"] is None


# Responses to the client


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_event_stream_is_relayed_byte_for_byte(client, upstream, framing):
    odd = b'\xef\xbb\xbf: hi\r\rid: 7\r\nevent: x\ndata:{"a":  "\xff\xc3"}\n\n'
    upstream.answer = stream(odd, *HELLO, framing=framing)
    response = client.post(PATH, json=STREAMED)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert without_comments(response.data) == odd + b"".join(HELLO)


@pytest.mark.parametrize("content_type", ["application/json", None])
def test_a_stream_with_another_content_type_is_relayed_immediately(
    client, upstream, content_type
):
    upstream.answer = stream(
        *(delta("One"), PAUSE, FINISH, DONE), content_type=content_type
    )
    with client.post(PATH, json=STREAMED) as response:
        assert response.content_type == "text/event-stream"
        read_until(response.response, b"One")
        upstream.resume()
        assert without_comments(b"".join(response.response)) == FINISH + DONE


def test_a_complete_response_is_relayed_byte_for_byte(client, upstream):
    for answer in (COMPLETION, b"\n\n" + COMPLETION):
        upstream.answer = stream(answer, content_type="application/json")
        for body in (CHAT, STREAMED):
            response = client.post(PATH, json=body)
            assert (response.status_code, response.data) == (200, answer)
            assert response.content_type == "application/json"


def test_the_list_of_models_is_relayed(client, upstream):
    listed = b'{"object": "list", "data":  []}'
    upstream.answer = page(listed)
    response = client.get("/v1/models", headers={"Authorization": "Bearer x"})
    assert (response.status_code, response.data) == (200, listed)
    (request,) = upstream.requests
    assert (request.method, request.path) == ("GET", "/v1/models")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]


def test_comments_are_sent_only_between_events(client, upstream, monkeypatch):
    monkeypatch.setattr(relay, "NOTICE_SECONDS", 0.01)
    half = b'data: {"a":1}\r'
    upstream.answer = stream(PAUSE, ROLE, PAUSE, half, PAUSE, b"\n\r\n", DONE)
    with client.post(PATH, json=STREAMED) as response:
        pieces = (piece for piece in response.response)
        for piece in (ROLE, half):
            assert next(one for one in pieces if one) == KEEP_ALIVE
            upstream.resume()
            assert (
                next(p for p in pieces if p not in (KEEP_ALIVE, b"")) == piece
            )
        assert [next(pieces) for _ in range(3)] == [b"", b"", b""]
        upstream.resume()
        assert without_comments(b"".join(pieces)) == b"\n\r\n" + DONE


# Errors of the upstream


def test_a_json_answer_keeps_its_status_and_body(client, upstream):
    for name, status, content in (
        ("401", 401, REFUSED_KEY),
        ("429", 429, TOO_MANY),
        ("200 with JSON", 200, b'{"choices": []}'),
    ):
        upstream.answer = FAULTS[name].answer
        for body in (STREAMED, CHAT):
            response = client.post(PATH, json=body)
            assert (response.status_code, response.data) == (status, content)
            assert response.headers["Content-Type"] == "application/json"
            retry_after = "7" if name == "429" else None
            assert response.headers.get("Retry-After") == retry_after


NO_JSON = "The language model did not send JSON."


def test_an_answer_that_is_neither_json_nor_a_stream_is_not_relayed(
    client, upstream
):
    script = b"<script>fetch('/answers')</script>"
    for line, status in {
        "200 OK": 502,
        "404 Not Found": 404,
        "500 Internal Server Error": 500,
    }.items():
        for content in (script, b"", b"Not found", b'{"a": NaN}', b"[" * 9999):
            upstream.answer = page(content, line, "text/html")
            check_error(client.post(PATH, json=CHAT), status, NO_JSON)
        upstream.answer = page(script, line, "text/html")
        check_error(client.post(PATH, json=STREAMED), status, NO_JSON)


def test_only_a_status_that_clients_expect_is_relayed(client, upstream):
    location = "Location: /elsewhere"  # which is not followed
    statuses = 201, 204, 302, 399, 600, 999
    for status in statuses:
        upstream.answer = page(b"{}", f"{status} Whatever", JSON, location)
        response = client.post(PATH, json=CHAT)
        sentence = f"The language model returned {status}."
        check_error(response, 502, sentence)
    assert len(upstream.requests) == len(statuses)


def test_silence_before_an_answer_is_504(client, upstream, monkeypatch):
    monkeypatch.setattr(language_model, "SILENCE_SECONDS", 0.1)
    upstream.answer = silence
    for body in (STREAMED, CHAT):
        response = client.post(PATH, json=body)
        check_error(response, 504, "The language model is silent.")


def test_silence_in_mid_answer_becomes_an_error_event(
    client, upstream, monkeypatch
):
    monkeypatch.setattr(language_model, "SILENCE_SECONDS", 1)
    upstream.answer = stream(delta("Hello"), end="silent")
    sentence = "The language model fell silent."
    response = client.post(PATH, json=STREAMED)
    error = event(official_error(502, sentence))
    assert without_comments(response.data) == delta("Hello") + error


BROKEN_OFF = event(official_error(502, language_model.BROKEN_OFF))
HALF = delta("Hello")[:-9]
LONG = event({"choices": [], "usage": {"note": "x" * 24 * 1024}})


def test_an_answer_that_breaks_off_ends_with_an_error(relayed):
    for answer, _, texts in (CUT_FAULTS | BYTE_FAULTS).values():
        body = relayed(answer)
        for text in texts:
            assert delta(text) in body
        assert body.endswith(b"\n\n" + BROKEN_OFF) or body == BROKEN_OFF
        assert body.count(b'"error"') == 1
    half = relayed(stream(delta("One"), HALF, end="cut"))
    assert half == delta("One") + HALF + b"\n\n" + BROKEN_OFF


COMPLETE = {
    "[DONE]": (delta("Hello"), DONE),
    "finish_reason": (delta("Hello"), FINISH),
    "24 KB after finish_reason": (delta("Hello"), FINISH, LONG),
    "24 KB around finish_reason": (
        chunk({"content": "x" * 24 * 1024}, "stop"),
    ),
    "[DONE] in another form": (delta("Hello"), b"data:[DONE] "),
    "CR": (delta("Hello").replace(b"\n\n", b"\r\r") + b"data: [DONE]\r\r",),
    "finish_reason in three chunks": (
        FINISH[:-17],
        FINISH[-17:-4],
        FINISH[-4:],
    ),
    "[DONE] in three chunks": (delta("Hello") + DONE[:5], DONE[5:9], DONE[9:]),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_answer_gets_no_error(relayed, name):
    for end in ("complete", "cut"):
        body = relayed(stream(*COMPLETE[name], end=end))
        assert body == b"".join(COMPLETE[name])


def test_text_that_looks_like_an_end_does_not_complete_an_answer(relayed):
    for last in (
        chunk({"content": "Hello"}, ""),
        delta('"finish_reason": "stop"'),
        delta("\ndata: [DONE]\n\n"),
        b": data: [DONE]\n\n",
    ):
        assert relayed(stream(ROLE, last)) == ROLE + last + BROKEN_OFF


def test_json_that_breaks_off_is_502(client, upstream):
    upstream.answer = stream(
        COMPLETION[:50],
        framing="length",
        end="cut",
        content_type="application/json",
    )
    response = client.post(PATH, json=CHAT)
    check_error(response, 502, language_model.BROKEN_OFF)


def test_a_response_that_is_too_large_is_502(client, upstream, monkeypatch):
    monkeypatch.setattr(relay, "MAX_ANSWER_BYTES", 100_000)
    monkeypatch.setattr(language_model, "SILENCE_SECONDS", 30)
    spaces = b" " * 200_000
    upstream.answer = stream(spaces, end="silent", content_type="text/plain")
    response = client.post(PATH, json=CHAT)
    check_error(response, 502, "The answer is too large.")
    wait_until(upstream.connections[0].disconnected.is_set)


# Errors of the client


def test_another_path_is_404(client, upstream):
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        response = client.open("/v1/models/one", method=method)
        sentence = "There is no /v1/models/one. Use Chat Completions."
        check_error(response, 404, sentence)
    assert upstream.requests == []


def test_another_method_is_405(client, upstream):
    for path, allowed in ((PATH, "POST"), ("/v1/models", "GET")):
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - {allowed}:
            response = client.open(path, method=method)
            assert response.status_code == 405
            assert response.headers["Allow"] == allowed
            assert response.json == official_error(
                405, "The method is not allowed for the requested URL."
            )
    assert upstream.requests == []


LIMITS = {"n": 1, "max_tokens": 16_384, "max_completion_tokens": 16_384}


@pytest.mark.parametrize("name", LIMITS)
def test_a_request_over_the_limit_is_400(client, upstream, name):
    highest = LIMITS[name]
    for value in (highest + 1, 0, -1, 1.0, True, "1", [1]):
        response = client.post(PATH, json=CHAT | {name: value})
        sentence = f"{name} must be an integer from 1 to {highest}."
        check_error(response, 400, sentence)
    assert upstream.requests == []
    for value in (highest, 1, None):
        client.post(PATH, json=CHAT | {name: value})
        assert upstream.requests[-1].json[name] == value


def test_openai_gets_the_token_limit_if_the_client_sets_none(
    client, upstream, monkeypatch
):
    client.post(PATH, json=CHAT)
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setattr(language_model, "BASE_URL", upstream.url)
    for body in ({}, {"max_tokens": None}, {"max_tokens": 5}):
        client.post(PATH, json=CHAT | body)
    limits = [
        one.json.get("max_completion_tokens") for one in upstream.requests
    ]
    assert limits == [None, 16_384, 16_384, None]


def test_the_limits_of_an_answer_are_settings(app, upstream, monkeypatch):
    upstream.answer = page(COMPLETION)
    monkeypatch.setenv("FLASK_RELAY_MAX_CHOICES", "2")
    monkeypatch.setenv("FLASK_RELAY_MAX_TOKENS", "20000")
    client = create_app().test_client()
    for name, highest in (("n", 2), ("max_tokens", 20_000)):
        for value, status in ((highest, 200), (highest + 1, 400)):
            response = client.post(PATH, json=CHAT | {name: value})
            assert response.status_code == status


def test_a_body_without_a_chat_is_400(client, upstream):
    no_object = 'The body must be a JSON object, such as {"a": 1}.'
    for body, sentence in (
        ([], no_object),
        ({}, "messages must be a list."),
        ({"messages": "Hi"}, "messages must be a list."),
    ):
        check_error(client.post(PATH, json=body), 400, sentence)
    assert upstream.requests == []


def chat_of(size: int) -> bytes:
    """Return a chat whose JSON has exactly this many bytes."""
    body = json.dumps(CHAT | {"model": "a", "stream": False}).encode()
    return body.replace(b'"Hi"', b'"%s"' % (b"x" * (size - len(body) + 2)))


def test_a_body_may_have_512_kib(client, upstream):
    upstream.answer = page(COMPLETION)
    body, options = chat_of(512 * 1024), {"content_type": "application/json"}
    assert client.post(PATH, data=body, **options).status_code == 200
    (request,) = upstream.requests
    assert request.json == json.loads(body)
    response = client.post(PATH, data=body + b" ", **options)
    sentence = "The body must have at most 524288 bytes."
    check_error(response, 413, sentence)
    assert len(upstream.requests) == 1


# The key


def error_page(body: bytes):
    return page(body, "401 Unauthorized")


ESCAPED_KEY = "".join(f"\\u{ord(one):04x}" for one in KEY)
ECHOES = {
    "as JSON": error_page(b'{"error": {"message": "%s."}}' % KEY.encode()),
    "escaped": error_page(b'{"error": "%s"}' % ESCAPED_KEY.encode()),
    "in a duplicate": error_page(
        b'{"error": "%s", "error": "a"}' % KEY.encode()
    ),
    "as text": page(KEY.encode(), "500 Internal Server Error", "text/html"),
    "in a redirect": page(
        b"{}", "302 Found", "text/html", f"Location: http://x/?key={KEY}"
    ),
    "in place of HTTP": lambda connection: connection.send(
        b"%s\r\n\r\n" % KEY.encode()
    ),
}


def test_a_key_that_the_upstream_echoes_is_redacted(client, upstream):
    for name, answer in ECHOES.items():
        upstream.answer = answer
        for body in (STREAMED, CHAT):
            response = client.post(PATH, json=body)
            shown = f"{response.headers}{response.data}{response.json}"
            assert KEY not in shown, name


def test_a_dummy_key_is_not_redacted(client, upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "e")
    upstream.answer = page(COMPLETION)
    assert client.post(PATH, json=CHAT).data == COMPLETION


# The client disconnects


def writes_without_end(connection):
    stream(delta("Hello"), end="silent")(connection)
    while not connection.disconnected.wait(0.05):
        text = delta("Hello")
        connection.send(b"%x\r\n%s\r\n" % (len(text), text))


@pytest.mark.parametrize(
    "answer",
    [stream(delta("Hello"), end="silent"), writes_without_end],
    ids=["in silence", "while it writes"],
)
def test_a_disconnect_closes_the_connection_to_the_upstream(
    client, upstream, answer, monkeypatch
):
    kept = []  # or garbage collection could end the generator

    def keep(events, seconds, interrupt):
        assert seconds <= 1  # tokens cost money
        kept.append(keep_alive(events, seconds, interrupt))
        return kept[0]

    monkeypatch.setattr(relay, "keep_alive", keep)
    upstream.answer = answer
    with client.post(PATH, json=STREAMED) as response:
        read_until(response.response, b"Hello")
        (connection,) = upstream.connections
        assert not connection.disconnected.is_set()
    wait_until(connection.disconnected.is_set)


# The page


def press(page, name: str) -> None:
    page.get_by_role("button", name=name).click()


def expect_end(page, text: str) -> None:
    expect(page.locator("#answer")).to_have_text(text)
    expect(page.locator("#state")).to_have_text("closed")


def test_page_shows_the_answer_or_why_there_is_none_and_can_stop(
    live, upstream, page
):
    page.goto(f"{live.url}/demos/relay")
    upstream.answer = stream(
        *(ROLE, event({"choices": None}), delta("Hello"), delta(" <b>you</b>")),
        *(FINISH, DONE),
    )
    press(page, "Ask")
    expect_end(page, "Hello <b>you</b>")
    assert len(upstream.requests) == 1
    upstream.answer, _, (text,) = FAULTS["cut, chunked"]
    press(page, "Ask")
    expect_end(page, f"{text}\n\n{language_model.BROKEN_OFF}")
    upstream.answer = FAULTS["401"].answer
    press(page, "Ask")
    expect_end(page, "\n\nIncorrect API key provided.")
    page.expected = "the server responded with a status of"

    upstream.answer = stream(delta("Hello"), end="silent")
    press(page, "Ask")
    expect(page.locator("#answer")).to_have_text("Hello")
    press(page, "Stop")
    expect_end(page, "Hello")
    wait_until(upstream.connections[-1].disconnected.is_set)

    answers = [
        {"status": 502, "body": "<h1>Bad gateway</h1>"},
        {"body": delta("Hi")},
        {"body": delta("Hi") + FINISH},
    ]
    page.route("**/v1/*/*", lambda route: route.fulfill(**answers.pop()))
    for text in (
        "Hi",
        "Hi\n\nThe answer broke off.",
        "\n\nThe server answered 502.",
    ):
        press(page, "Ask")
        expect_end(page, text)
