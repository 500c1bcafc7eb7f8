import json
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from conftest import Client, Server, read_until, wait_until, without_comments
from flask.testing import FlaskClient
from openai.lib.streaming.chat import ChatCompletionStreamState
from playwright.sync_api import expect
from upstream import (
    BAD_EVENTS,
    BYTE_FAULTS,
    CUT_FAULTS,
    DONE,
    FAULTS,
    FINISH,
    FRAMINGS,
    HARMLESS,
    HELLO,
    KEY,
    PAUSE,
    REFUSED_KEY,
    ROLE,
    TOO_MANY,
    chunk,
    delta,
    event,
    head,
    page,
    silence,
    stream,
)

import language_model
from app import create_app
from checks import FOREIGN
from demos import relay
from demos.agent import TOOLS

NOTICE_SECONDS = 2
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
JSON_TYPE = {"Content_Type": "application/json"}

one_server = pytest.mark.parametrize("command", ["flask"], indirect=True)


@pytest.fixture
def app(upstream, monkeypatch):
    """The app in this process, with an upstream."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield create_app()
    language_model.session.close()


def post(server: Server, body: object = STREAMED, **headers: str) -> Client:
    return server.post(PATH, json.dumps(body).encode(), **JSON_TYPE, **headers)


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


@pytest.mark.parametrize(
    ("of_server", "of_caller", "sent"),
    [
        ("ours", {"model": "theirs"}, "ours"),
        ("ours", {}, "ours"),
        ("", {"model": "theirs"}, "theirs"),
        ("", {}, language_model.MODEL),
    ],
)
def test_the_model_of_the_server_wins(
    client, upstream, monkeypatch, of_server, of_caller, sent
):
    monkeypatch.setenv("OPENAI_MODEL", of_server)
    client.post(PATH, json=CHAT | of_caller)
    assert upstream.requests[0].json == CHAT | {"model": sent, "stream": False}


def test_the_key_of_the_client_is_never_forwarded(
    client, upstream, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY")
    headers = {"Authorization": "Bearer caller-key"}
    client.post(PATH, json=CHAT, headers=headers)
    assert upstream.requests[0].headers["Authorization"] is None


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


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/octet-stream", "text/html; charset=x"],
)
def test_a_stream_with_another_content_type_is_relayed(
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


def test_a_stream_without_a_content_type_is_relayed(client, upstream):
    def answer(connection):
        connection.send(head("200 OK", "Connection: close"))
        connection.send(b"".join(HELLO))
        connection.close()

    upstream.answer = answer
    response = client.post(PATH, json=STREAMED)
    assert response.content_type == "text/event-stream"
    assert without_comments(response.data) == b"".join(HELLO)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_complete_response_is_relayed_byte_for_byte(
    client, upstream, framing
):
    upstream.answer = stream(
        COMPLETION, framing=framing, content_type="application/json"
    )
    response = client.post(PATH, json=CHAT)
    assert (response.status_code, response.data) == (200, COMPLETION)
    assert response.content_type == "application/json"


def test_the_list_of_models_is_relayed(client, upstream):
    listed = b'{"object": "list", "data":  []}'
    upstream.answer = page(listed)
    response = client.get("/v1/models", headers={"Authorization": "Bearer x"})
    assert (response.status_code, response.data) == (200, listed)
    (request,) = upstream.requests
    assert (request.method, request.path) == ("GET", "/v1/models")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]


@pytest.mark.parametrize("name", HARMLESS)
def test_an_unusual_answer_is_relayed_unchanged(client, upstream, name):
    upstream.answer = stream(*HARMLESS[name])
    response = client.post(PATH, json=STREAMED)
    assert without_comments(response.data) == b"".join(HARMLESS[name])


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_events_are_relayed_without_parsing(client, upstream, name):
    bad, _ = BAD_EVENTS[name]
    pieces = (delta("Hello"), bad, b"\n\n", FINISH, DONE)
    upstream.answer = stream(*pieces)
    response = client.post(PATH, json=STREAMED)
    assert without_comments(response.data) == b"".join(pieces)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_headers_and_bytes_arrive_immediately(online, upstream, framing):
    upstream.answer = stream(
        *(PAUSE, b"data: 1", PAUSE, b"\n\n: 2\r", PAUSE, b"\n\n", PAUSE, DONE),
        framing=framing,
    )
    with post(online) as client:
        assert client.status == 200
        chunks = client.chunks()
        for piece in (b"data: 1", b"\n\n: 2\r", b"\n\n", DONE):
            upstream.resume()
            assert without_comments(read_until(chunks, piece)) == piece
        assert without_comments(b"".join(chunks)) == b""


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


@pytest.mark.parametrize("body", [STREAMED, CHAT])
@pytest.mark.parametrize(
    ("name", "status", "page"),
    [
        ("401", 401, REFUSED_KEY),
        ("429", 429, TOO_MANY),
        ("200 with JSON", 200, b'{"choices": []}'),
    ],
)
def test_a_json_answer_keeps_its_status_and_body(
    client, upstream, body, name, status, page
):
    upstream.answer = FAULTS[name].answer
    response = client.post(PATH, json=body)
    assert (response.status_code, response.data) == (status, page)
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
    for status in (201, 204, 302, 399, 600, 999):
        upstream.answer = page(b"{}", f"{status} Whatever")
        response = client.post(PATH, json=CHAT)
        sentence = f"The language model returned {status}."
        check_error(response, 502, sentence)


def test_json_after_blank_lines_is_not_a_stream(client, upstream):
    upstream.answer = page(b"\n\n" + COMPLETION)
    response = client.post(PATH, json=STREAMED)
    assert response.content_type == "application/json"
    assert response.data == b"\n\n" + COMPLETION


def test_a_redirect_is_not_followed(client, upstream):
    upstream.answer = FAULTS["redirects"].answer
    response = client.post(PATH, json=CHAT)
    assert response.status_code == 502
    assert "Location" not in response.headers
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("body", [STREAMED, CHAT])
@pytest.mark.parametrize("name", ["hangs up", "does not speak HTTP"])
def test_no_answer_is_502(client, upstream, name, body):
    upstream.answer = FAULTS[name].answer
    response = client.post(PATH, json=body)
    check_error(response, 502, "The language model is unreachable.")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/v1", "http://no-such-host.invalid/v1"]
)
def test_an_unreachable_upstream_is_502(client, monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    responses = [client.post(PATH, json=body) for body in (STREAMED, CHAT)]
    for response in (*responses, client.get("/v1/models")):
        check_error(response, 502, "The language model is unreachable.")


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
    check_error(client.post(PATH, json=CHAT), 504, sentence)


BROKEN_OFF = event(official_error(502, language_model.BROKEN_OFF))
HALF = delta("Hello")[:-9]
LONG = event({"choices": [], "usage": {"note": "x" * 24 * 1024}})


@pytest.mark.parametrize("name", CUT_FAULTS | BYTE_FAULTS)
def test_an_answer_that_breaks_off_ends_with_an_error(client, upstream, name):
    upstream.answer, _, texts = FAULTS[name]
    body = without_comments(client.post(PATH, json=STREAMED).data)
    for text in texts:
        assert delta(text) in body
    assert body.endswith(b"\n\n" + BROKEN_OFF) or body == BROKEN_OFF
    assert body.count(b'"error"') == 1


def test_an_error_after_half_an_event_is_a_separate_event(client, upstream):
    upstream.answer = stream(delta("One"), HALF, end="cut")
    body = without_comments(client.post(PATH, json=STREAMED).data)
    assert body == delta("One") + HALF + b"\n\n" + BROKEN_OFF


@pytest.mark.parametrize("end", ["complete", "cut"])
@pytest.mark.parametrize(
    "pieces",
    [
        (delta("Hello"), DONE),
        (delta("Hello"), FINISH),
        (delta("Hello"), FINISH, LONG),
        (delta("Hello"), FINISH, LONG, DONE),
        (delta("Hello"), chunk({"content": "x" * 24 * 1024}, "stop")),
        (delta("Hello"), b"data:[DONE] "),
        (delta("Hello").replace(b"\n\n", b"\r\r") + b"data: [DONE]\r\r",),
        (FINISH[:-17], FINISH[-17:-4], FINISH[-4:]),
        (delta("Hello") + DONE[:5], DONE[5:9], DONE[9:]),
    ],
    ids=[
        "[DONE]",
        "finish_reason",
        "24 KB after finish_reason",
        "24 KB between finish_reason and [DONE]",
        "24 KB around finish_reason",
        "[DONE] in another form",
        "CR",
        "finish_reason in three chunks",
        "[DONE] in three chunks",
    ],
)
def test_a_complete_answer_gets_no_error(client, upstream, pieces, end):
    upstream.answer = stream(*pieces, end=end)
    body = without_comments(client.post(PATH, json=STREAMED).data)
    assert body == b"".join(pieces)


@pytest.mark.parametrize(
    "last",
    [
        chunk({"content": "Hello"}, ""),
        delta('"finish_reason": "stop"'),
        delta("\ndata: [DONE]\n\n"),
        b": data: [DONE]\n\n",
    ],
)
def test_text_that_looks_like_an_end_does_not_complete_an_answer(
    client, upstream, last
):
    upstream.answer = stream(ROLE, last)
    body = without_comments(client.post(PATH, json=STREAMED).data)
    assert body == ROLE + last + BROKEN_OFF


@pytest.mark.parametrize("framing", FRAMINGS)
def test_json_that_breaks_off_is_502(client, upstream, framing):
    upstream.answer = stream(
        COMPLETION[:50],
        framing=framing,
        end="cut",
        content_type="application/json",
    )
    response = client.post(PATH, json=CHAT)
    # Without a length, only a JSON parser notices that a body is incomplete.
    is_silent = framing == "close"
    sentence = NO_JSON if is_silent else language_model.BROKEN_OFF
    check_error(response, 502, sentence)


def test_a_response_that_is_too_large_is_502(client, upstream):
    upstream.answer = page(b" " * 20 * 2**20)
    response = client.post(PATH, json=CHAT)
    check_error(response, 502, "The answer is too large.")
    wait_until(upstream.connections[0].disconnected.is_set)


# Errors of the client


def test_another_path_is_404(client, upstream):
    for path in ("/v1/embeddings", "/v1/models/one", "/v1/chat"):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            response = client.open(path, method=method)
            sentence = f"There is no {path}. Use Chat Completions."
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


NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
NO_LIST = "messages must be a list."


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


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", NO_OBJECT),
        (b"Hi", NO_OBJECT),
        (b'{"messages": [{"content": "\xff"}]}', NO_OBJECT),
        (b"[" * 100_000, NO_OBJECT),
        (b'{"messages": [{"content": NaN}]}', NO_OBJECT),
        (b'{"messages": [{"content": -Infinity}]}', NO_OBJECT),
        (b'{"messages": [{}], "n": %s}' % (b"1" * 5000), NO_OBJECT),
        (b"null", NO_OBJECT),
        (b"[]", NO_OBJECT),
        (b"{}", NO_LIST),
        (b'{"messages": "Hi"}', NO_LIST),
    ],
)
def test_a_body_without_a_chat_is_400(client, upstream, body, sentence):
    response = client.post(PATH, data=body, content_type="application/json")
    check_error(response, 400, sentence)
    assert upstream.requests == []


def test_another_media_type_is_415(client, upstream):
    response = client.post(PATH, data=b"{}", content_type="text/plain")
    sentence = "The body must have the Content-Type application/json."
    check_error(response, 415, sentence)
    assert upstream.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
    ],
)
def test_a_foreign_page_gets_403_unless_the_model_is_free(
    client, upstream, monkeypatch, headers
):
    for response in (
        client.post(PATH, json=STREAMED, headers=headers),
        client.get("/v1/models", headers=headers),
    ):
        check_error(response, 403, FOREIGN)
        assert "Access-Control-Allow-Origin" not in response.headers
    assert upstream.requests == []
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY")
    client = create_app({"OFFLINE_WORD_SECONDS": 0}).test_client()
    for response in (
        client.post(PATH, json=STREAMED, headers=headers),
        client.get("/v1/models", headers=headers),
    ):
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == "*"


def test_a_stream_over_the_limit_is_503():
    client = create_app({"MAX_STREAMS": 1}).test_client()
    with client.post(PATH, json=STREAMED):
        refused = client.post(PATH, json=STREAMED)
        sentence = "Too many streams are open. Try again in a few seconds."
        check_error(refused, 503, sentence)
        assert refused.headers["Retry-After"] == "5"
        assert client.get("/v1/models").status_code == 200


def chat_of(size: int) -> bytes:
    """Return a chat whose JSON has exactly this many bytes."""
    body = json.dumps(CHAT | {"model": "a", "stream": False}).encode()
    return body.replace(b'"Hi"', b'"%s"' % (b"x" * (size - len(body) + 2)))


def test_the_limit_of_the_body_is_a_setting(upstream, app, monkeypatch):
    upstream.answer = page(COMPLETION)
    monkeypatch.setenv("FLASK_RELAY_MAX_BYTES", "2000")
    client = create_app().test_client()
    for size, status in ((2000, 200), (2001, 413)):
        response = client.post(
            PATH, data=chat_of(size), content_type="application/json"
        )
        assert response.status_code == status
    sentence = "The body must have at most 2000 bytes."
    check_error(response, 413, sentence)
    assert [request.json for request in upstream.requests] == [
        json.loads(chat_of(2000))
    ]


def test_a_body_may_have_512_kib(online, upstream):
    upstream.answer = page(COMPLETION)
    body = chat_of(512 * 1024)
    for framed in (body, iter([body[:9], body[9:]])):
        with online.post(PATH, framed, **JSON_TYPE) as client:
            assert (client.status, client.read()) == (200, COMPLETION)
    for framed in (body + b" ", iter([body + b" "])):
        with online.post(PATH, framed, **JSON_TYPE) as client:
            assert client.status == 413
            assert json.loads(client.read()) == official_error(
                413, "The body must have at most 524288 bytes."
            )
    sent = [json.loads(body)] * 2
    assert [request.json for request in upstream.requests] == sent


# The key


@pytest.mark.parametrize("body", [STREAMED, CHAT])
@pytest.mark.parametrize(
    "answer",
    [
        page(
            b'{"error": {"message": "Incorrect API key: %s."}}' % KEY.encode(),
            "401 Unauthorized",
        ),
        page(
            b'{"error": "%s"}'
            % "".join(f"\\u{ord(one):04x}" for one in KEY).encode(),
            "401 Unauthorized",
        ),
        page(
            b'{"error": "%s", "error": "a"}' % KEY.encode(),
            "401 Unauthorized",
        ),
        page(KEY.encode(), "500 Internal Server Error", "text/html"),
        page(b"{}", "302 Found", "text/html", f"Location: http://x/?key={KEY}"),
        lambda connection: connection.send(b"%s\r\n\r\n" % KEY.encode()),
    ],
    ids=["401", "escaped", "twice", "500", "302", "in place of HTTP"],
)
def test_a_key_that_the_upstream_echoes_is_redacted(
    client, upstream, answer, body
):
    upstream.answer = answer
    response = client.post(PATH, json=body)
    assert KEY not in f"{response.headers}{response.data}{response.json}"


def test_a_dummy_key_is_not_redacted(client, upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "e")
    upstream.answer = page(COMPLETION)
    assert client.post(PATH, json=CHAT).data == COMPLETION


# The client disconnects


def silent_after_headers(connection):
    fields = ("Content-Type: text/event-stream", "Connection: close")
    connection.send(head("200 OK", *fields))


def writes_without_end(connection):
    silent_after_headers(connection)
    while not connection.disconnected.wait(0.05):
        connection.send(delta("Hello"))


@pytest.mark.parametrize(
    "answer",
    [
        silent_after_headers,
        stream(delta("Hello"), end="silent"),
        writes_without_end,
    ],
    ids=["after headers", "in mid-answer", "while it writes"],
)
def test_a_disconnect_closes_the_connection_to_the_upstream(
    online, upstream, answer
):
    upstream.answer = answer
    client = post(online)
    assert client.status == 200
    if answer is not silent_after_headers:
        read_until(client.chunks(), b"Hello")
    (connection,) = upstream.connections
    assert not connection.disconnected.is_set()
    client.close()
    closed_at = time.monotonic()
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - closed_at < NOTICE_SECONDS


# The official client


@pytest.fixture
def official(client: FlaskClient) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url="http://localhost/v1",
        api_key="caller-key",
        max_retries=0,
        http_client=httpx.Client(
            transport=httpx.WSGITransport(client.application)
        ),
    ) as official:
        yield official


def ask(official: openai.OpenAI, **options):
    return official.chat.completions.create(
        model="a", messages=MESSAGES, **options
    )


def check_official_client(server: Server) -> None:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="caller-key", max_retries=0
    ) as official:
        complete = ask(official)
        options = {"include_usage": True}
        *chunks, usage = ask(official, stream=True, stream_options=options)
        plain = list(ask(official, stream=True))
        models = [model.id for model in official.models.list()]
        with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
            official.embeddings.create(model="a", input="Hi")
    text = complete.choices[0].message.content
    for streamed in (chunks, plain):
        contents = [one.choices[0].delta.content for one in streamed]
        assert "".join(filter(None, contents)) == text
        assert streamed[-1].choices[0].finish_reason == "stop"
    assert usage.usage == complete.usage
    assert len(models) == 1


def test_official_client_works_offline(offline):
    check_official_client(offline)


def test_official_client_streams_tool_calls_offline(offline):
    question = "The time in Asia/Tokyo, and the sum of 1 and 2"
    messages, lengths = [{"role": "user", "content": question}], []

    def read_choice() -> openai.types.chat.chat_completion.Choice:
        state = ChatCompletionStreamState()
        chunks = official.chat.completions.create(
            model="a", messages=messages, tools=TOOLS, stream=True
        )
        for each in chunks:
            calls = each.choices[0].delta.tool_calls or ()
            lengths.extend(len(call.function.arguments) for call in calls)
            state.handle_chunk(each)
        return state.get_final_completion().choices[0]

    with openai.OpenAI(
        base_url=f"{offline.url}/v1", api_key="caller-key", max_retries=0
    ) as official:
        asked = read_choice()
        messages.append(asked.message.model_dump(exclude_none=True))
        for call, content in zip(
            asked.message.tool_calls, ("9:30", "3"), strict=True
        ):
            result = {"tool_call_id": call.id, "content": content}
            messages.append({"role": "tool"} | result)
        answered = read_choice()
    functions = [call.function for call in asked.message.tool_calls]
    assert [(one.name, one.arguments) for one in functions] == [
        ("get_time", '{"time_zone": "Asia/Tokyo"}'),
        ("get_sum", '{"numbers": [1, 2]}'),
    ]
    assert len(lengths) > 4
    assert max(lengths) <= 8
    assert asked.finish_reason == "tool_calls"
    assert answered.finish_reason == "stop"
    text = "get_time returned 9:30. get_sum returned 3."
    assert answered.message.content == text


def test_official_client_works_online(online, upstream):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

    def answer(connection):
        asked = connection.request
        if asked.method == "GET":
            model = {"id": "a", "object": "model", "created": 1}
            models = [model | {"owned_by": "us"}]
            body = {"object": "list", "data": models}
            answer = page(json.dumps(body).encode())
        elif not asked.json["stream"]:
            body = json.loads(COMPLETION) | {"usage": usage}
            answer = page(json.dumps(body).encode())
        elif asked.json.get("stream_options") == {"include_usage": True}:
            last = event({"choices": [], "usage": usage})
            answer = stream(*HELLO[:-1], last, DONE)
        else:
            answer = stream(*HELLO)
        answer(connection)

    upstream.answer = answer
    check_official_client(online)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("401", openai.AuthenticationError),
        ("429", openai.RateLimitError),
        ("500 with HTML", openai.InternalServerError),
        ("hangs up", openai.InternalServerError),
        ("redirects", openai.APIStatusError),
    ],
)
def test_official_client_raises_the_error_that_fits_the_status(
    official, upstream, name, kind, streams
):
    upstream.answer = FAULTS[name].answer
    with pytest.raises(kind):
        ask(official, stream=streams)


@pytest.mark.parametrize("name", [*CUT_FAULTS, *BYTE_FAULTS, "an error object"])
def test_official_client_raises_when_the_answer_breaks_off(
    official, upstream, name
):
    upstream.answer = FAULTS[name].answer
    with pytest.raises(openai.APIError):
        list(ask(official, stream=True))


def test_official_client_raises_when_an_event_breaks_off(official, upstream):
    upstream.answer = stream(ROLE, HALF, end="cut")
    with pytest.raises(json.JSONDecodeError):
        list(ask(official, stream=True))


# The page


@pytest.fixture
def relay_page(online, upstream, page):
    page.goto(f"{online.url}/demos/relay")
    return page


def press(page, name: str) -> None:
    page.get_by_role("button", name=name).click()


def expect_end(page, text: str) -> None:
    expect(page.locator("#answer")).to_have_text(text)
    expect(page.locator("#state")).to_have_text("closed")


@one_server
def test_page_shows_the_answer_or_the_reason_for_a_failure(
    relay_page, upstream
):
    upstream.answer = stream(
        *(ROLE, event({"choices": None}), delta("Hello"), delta(" <b>you</b>")),
        *(FINISH, DONE),
    )
    press(relay_page, "Ask")
    expect_end(relay_page, "Hello <b>you</b>")
    assert len(upstream.requests) == 1
    upstream.answer, _, (text,) = FAULTS["cut, chunked"]
    press(relay_page, "Ask")
    expect_end(relay_page, f"{text}\n\n{language_model.BROKEN_OFF}")
    upstream.answer = FAULTS["401"].answer
    with relay_page.expect_event("console"):
        press(relay_page, "Ask")
    expect_end(relay_page, "\n\nIncorrect API key provided.")
    relay_page.problems.clear()


@one_server
def test_the_stop_button_stops_the_model(relay_page, upstream):
    upstream.answer = stream(delta("Hello"), end="silent")
    press(relay_page, "Ask")
    expect(relay_page.locator("#answer")).to_have_text("Hello")
    press(relay_page, "Stop")
    stopped_at = time.monotonic()
    expect_end(relay_page, "Hello")
    (connection,) = upstream.connections
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - stopped_at < NOTICE_SECONDS
