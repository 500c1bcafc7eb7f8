import json
import time
from collections.abc import Iterator
from urllib.parse import quote

import openai
import pytest
from conftest import (
    SILENCE_SECONDS,
    Client,
    Server,
    read_until,
    spoken,
    wait_until,
)
from playwright.sync_api import expect
from upstream import (
    BAD_EVENTS,
    BYTE_FAULTS,
    CUT_FAULTS,
    DONE,
    ERROR_PAGE,
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
    UNREACHABLE,
    delta,
    event,
    head,
    page,
    silence,
    stream,
)

from sse import parse_events

LEAVE_SECONDS = 2
MAX_BODY_BYTES = 256 * 1024

RETRY = b"retry: 86400000\n"
FINISHED = b"event: done\ndata: [DONE]\n\n"
PROMPT = "/completion?prompt=Hi"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = (
    b'{"id": "chatcmpl-1", "object": "chat.completion", "created": 1, '
    b'"model": "test-model", "choices": [{"index": 0, "finish_reason": "stop", '
    b'"message": {"role": "assistant", "content": "Hello"}}]}'
)


@pytest.fixture
def official(online) -> Iterator[openai.OpenAI]:
    with official_client(online) as client:
        yield client


def official_client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="caller-key", max_retries=0
    )


def ask(server: Server, body: object = None, **headers: str) -> Client:
    """Post a chat, a streamed one unless `body` says more."""
    body = CHAT | {"stream": True} if body is None else body
    return server.post(
        "/v1/chat/completions", json.dumps(body).encode(), **headers
    )


def get_events(server: Server, **headers: str) -> Client:
    return server.get(PROMPT, **headers)


def get_models(server: Server, **headers: str) -> Client:
    return server.get("/v1/models", **headers)


def post_streaming(server: Server, **headers: str) -> Client:
    return ask(server, **headers)


def post_whole(server: Server, **headers: str) -> Client:
    return ask(server, CHAT, **headers)


def body_of(client: Client) -> bytes:
    with client:
        return client.read()


def answered(*texts: str) -> bytes:
    """Return what GET /completion sends for an answer in these pieces."""
    events = [
        f"id: {id}\ndata: {text}\n\n" for id, text in enumerate(texts, start=1)
    ]
    return RETRY + "".join(events).encode()


def failed(sentence: str) -> bytes:
    data = json.dumps({"error": sentence}, separators=(",", ":"))
    return f"event: failed\ndata: {data}\n\n".encode()


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


def test_answer_is_a_message_per_delta_and_then_done(online, upstream):
    upstream.answer = stream(
        ROLE, delta("  One\n\n two"), delta(" "), delta("\r\n三"), FINISH, DONE
    )
    with online.get(PROMPT) as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache"
        assert client.header("X-Accel-Buffering") == "no"
        assert spoken(client.read()) == (
            RETRY
            + b"id: 1\ndata:   One\ndata: \ndata:  two\n\n"
            + b"id: 2\ndata:  \n\n"
            + "id: 3\ndata: \ndata: 三\n\n".encode()
            + b"event: done\ndata: [DONE]\n\n"
        )


def test_prompt_goes_to_the_upstream_with_the_key_and_the_model(
    online, upstream
):
    prompt = " 你好\n& = 😀 "
    body_of(online.get(f"/completion?prompt={quote(prompt)}"))
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
def test_offline_answer_has_the_same_form(offline, prompt, beginning):
    with offline.get(f"/completion?prompt={quote(prompt)}") as client:
        events = list(parse_events(client.chunks()))
    *messages, done = events
    assert "".join(one.data for one in messages).startswith(beginning)
    assert {one.event for one in messages} == {"message"}
    assert [int(one.id) for one in messages] == [
        number for number, _ in enumerate(messages, start=1)
    ]
    assert (done.event, done.data) == ("done", "[DONE]")


@pytest.mark.parametrize("last", ["", "0", "1", "7"])
def test_reconnect_gets_204_and_asks_nothing(online, upstream, last):
    with online.get(PROMPT, Last_Event_ID=last) as client:
        assert (client.status, client.read()) == (204, b"")
    assert upstream.requests == []


@pytest.mark.parametrize("query", ["", "?prompt=", "?prompt=" + "x" * 4001])
def test_prompt_of_another_length_is_refused(online, upstream, query):
    with online.get(f"/completion{query}") as client:
        assert client.status == 400
        assert json.loads(client.read()) == {
            "error": "prompt must have 1 to 4000 characters."
        }
    assert upstream.requests == []


@pytest.mark.parametrize("character", ["x", " ", "字", "😀"])
def test_prompt_of_4000_characters_passes(online, upstream, character):
    prompt = character * 4000
    with online.get(f"/completion?prompt={quote(prompt)}") as client:
        assert spoken(client.read()) == answered("Hello") + FINISHED
    assert upstream.requests[0].json["messages"][0]["content"] == prompt


@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions"])
def test_another_method_is_refused(online, path):
    with Client(online.port, "PUT", path, b"{}") as client:
        assert client.status == 405


def test_leading_bytes_and_comments_arrive_while_the_upstream_thinks(
    online, upstream
):
    upstream.answer = stream(PAUSE, *HELLO)
    with online.get(PROMPT) as client:
        chunks = client.chunks()
        assert next(chunks) == RETRY
        assert read_until(chunks, b":\n") == b":\n"
        assert read_until(chunks, b":\n") == b":\n"
        upstream.go_on()
        assert spoken(b"".join(chunks)) == (
            answered("Hello").removeprefix(RETRY) + FINISHED
        )


def test_relayed_headers_arrive_before_the_first_byte(online, upstream):
    upstream.answer = stream(PAUSE, *HELLO)
    with ask(online) as client:
        assert client.status == 200
        upstream.go_on()
        assert client.read() == b"".join(HELLO)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_deltas_leave_the_moment_they_arrive(online, upstream, framing):
    upstream.answer = stream(
        *(delta("One"), PAUSE, delta("Two"), PAUSE, FINISH, PAUSE, DONE),
        framing=framing,
    )
    with online.get(PROMPT) as client:
        chunks = client.chunks()
        assert spoken(read_until(chunks, b"One\n\n")) == answered("One")
        upstream.go_on()
        assert spoken(read_until(chunks, b"Two\n\n")) == b"id: 2\ndata: Two\n\n"
        upstream.go_on()
        upstream.go_on()
        assert spoken(b"".join(chunks)) == FINISHED


@pytest.mark.parametrize("framing", FRAMINGS)
def test_bytes_are_relayed_the_moment_they_arrive(online, upstream, framing):
    upstream.answer = stream(
        *(b"data: 1", PAUSE, b"\n\n: 2\r", PAUSE, b"\n\n", PAUSE, DONE),
        framing=framing,
    )
    with ask(online) as client:
        chunks = client.chunks()
        assert read_until(chunks, b"1") == b"data: 1"
        upstream.go_on()
        assert spoken(read_until(chunks, b"2\r")) == b"\n\n: 2\r"
        upstream.go_on()
        assert spoken(read_until(chunks, b"\n\n")) == b"\n\n"
        upstream.go_on()
        assert spoken(b"".join(chunks)) == DONE


def test_comments_are_relayed_between_events_only(online, upstream):
    upstream.answer = stream(
        *(delta("One"), PAUSE, b"data: {", PAUSE, b"}\n\n", PAUSE, DONE)
    )
    with ask(online) as client:
        chunks = client.chunks()
        assert read_until(chunks, b":\n") == delta("One") + b":\n"
        upstream.go_on()
        assert spoken(read_until(chunks, b"data: {")) == b"data: {"
        client.sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            next(chunks)


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_unusual_answer_is_an_answer(online, upstream, name, framing):
    upstream.answer = stream(*HARMLESS[name], framing=framing)
    with online.get(PROMPT) as client:
        assert spoken(client.read()) == answered("Hello") + FINISHED


CRLF_EVENT = delta("三").replace(b"\n", b"\r\n")
THREE = "三".encode()
RAW_EVENT = delta("?").replace(b"?", THREE)


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (CRLF_EVENT, len(CRLF_EVENT) - 1),
        (CRLF_EVENT, len(CRLF_EVENT) - 3),
        (RAW_EVENT, RAW_EVENT.index(THREE) + 1),
        (RAW_EVENT, RAW_EVENT.index(THREE) + 2),
    ],
)
def test_an_event_may_arrive_in_two_reads(online, upstream, line, at):
    upstream.answer = stream(
        delta("One") + line[:at], PAUSE, line[at:], FINISH, DONE
    )
    with online.get(PROMPT) as client:
        chunks = client.chunks()
        begun = read_until(chunks, b"One\n\n")
        upstream.go_on()
        assert spoken(begun + b"".join(chunks)) == (
            answered("One", "三") + FINISHED
        )


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_event_failed_and_the_end(online, upstream, name):
    upstream.answer, sentence, texts = FAULTS[name]
    with online.get(PROMPT) as client:
        assert client.status == 200
        assert spoken(client.read()) == answered(*texts) + failed(sentence)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("name", "status", "content_type", "body"),
    [
        ("401", 401, "application/json", REFUSED_KEY),
        ("429", 429, "application/json", TOO_MANY),
        ("500 with HTML", 500, "text/html", ERROR_PAGE),
        ("200 with HTML", 200, "text/html", ERROR_PAGE),
        ("200 with JSON", 200, "application/json", b'{"choices": []}'),
    ],
)
@pytest.mark.parametrize("streams", [True, False])
def test_a_whole_page_keeps_its_status_and_body(
    online, upstream, name, status, content_type, body, streams
):
    upstream.answer = FAULTS[name].answer
    with ask(online, CHAT | {"stream": streams}) as client:
        assert (client.status, client.read()) == (status, body)
        assert client.header("Content-Type") == content_type
        assert client.header("Retry-After") == ("7" if name == "429" else None)


@pytest.mark.parametrize("name", ["hangs up", "speaks no HTTP", "redirects"])
@pytest.mark.parametrize("streams", [True, False])
def test_no_answer_is_502_in_the_official_shape(
    online, upstream, name, streams
):
    upstream.answer, sentence, _ = FAULTS[name]
    with ask(online, CHAT | {"stream": streams}) as client:
        assert client.status == 502
        assert client.header("Content-Type") == "application/json"
        assert json.loads(client.read()) == official_error(502, sentence)


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_relays_events_unread(online, upstream, name):
    bad, _ = BAD_EVENTS[name]
    upstream.answer = stream(delta("Hello"), bad, FINISH, DONE)
    assert spoken(body_of(ask(online))) == b"".join(
        [delta("Hello"), bad, FINISH, DONE]
    )


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_relays_an_unusual_answer_as_it_is(online, upstream, name, framing):
    upstream.answer = stream(*HARMLESS[name], framing=framing)
    assert spoken(body_of(ask(online))) == b"".join(HARMLESS[name])


@pytest.mark.parametrize("name", CUT_FAULTS)
def test_a_relayed_answer_that_breaks_off_ends_with_an_error(
    online, upstream, name
):
    upstream.answer, sentence, _ = FAULTS[name]
    with ask(online) as client:
        assert client.status == 200
        body = client.read()
    assert spoken(body).startswith(ROLE + delta("Hello") + b"data: ")
    *_, last = parse_events([body])
    assert json.loads(last.data) == official_error(502, sentence)


@pytest.mark.parametrize("name", BYTE_FAULTS)
def test_broken_bytes_end_with_an_error(online, upstream, name):
    upstream.answer, sentence, _ = FAULTS[name]
    with ask(online) as client:
        *_, last = parse_events(client.chunks())
    assert json.loads(last.data) == official_error(502, sentence)


def test_an_error_is_an_event_of_its_own_after_half_an_event(online, upstream):
    half = delta("Hello")[:-9]
    upstream.answer = stream(delta("One"), half, end="cut")
    with ask(online) as client:
        body = spoken(client.read())
    assert body.startswith(delta("One") + half + b"\n\ndata: ")
    *_, last = parse_events([body])
    assert "error" in json.loads(last.data)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_page_that_breaks_off_is_502(online, upstream, framing):
    upstream.answer = stream(
        COMPLETION[:50],
        framing=framing,
        end="cut",
        content_type="application/json",
    )
    with ask(online, CHAT) as client:
        if framing == "close":
            # Only who parses such a page can tell that it is not whole.
            assert (client.status, client.read()) == (200, COMPLETION[:50])
        else:
            assert client.status == 502


def begin(connection) -> None:
    streams = connection.request.json.get("stream")
    media_type = "text/event-stream" if streams else "application/json"
    connection.send(
        head("200 OK", f"Content-Type: {media_type}", "Connection: close")
    )


def silent_after_headers(connection):
    begin(connection)


def silent_in_mid_answer(connection):
    begin(connection)
    connection.send(delta("Hello"))


def writes_on_and_on(connection):
    begin(connection)
    while not connection.left.wait(0.05):
        connection.send(delta("Hello"))


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (silence, "The language model stays silent."),
        (silent_in_mid_answer, "The language model fell silent."),
    ],
)
def test_silence_ends_every_answer_after_the_set_time(
    online, upstream, answer, sentence
):
    upstream.answer = answer
    began = time.monotonic()
    with get_events(online) as events, post_streaming(online) as relayed:
        whole = post_whole(online)
        bodies = [spoken(body_of(one)) for one in (events, relayed, whole)]
    took = time.monotonic() - began
    error = official_error(504, sentence)
    begun = answer is silent_in_mid_answer
    assert SILENCE_SECONDS <= took < 2 * SILENCE_SECONDS
    assert bodies[0] == answered(*["Hello"] * begun) + failed(sentence)
    assert relayed.status == (200 if begun else 504)
    if begun:
        assert bodies[1] == delta("Hello") + event(error)
    else:
        assert json.loads(bodies[1]) == error
    assert (whole.status, json.loads(bodies[2])) == (504, error)


def check_unreachable(server: Server) -> None:
    with server.get(PROMPT) as client:
        assert spoken(client.read()) == RETRY + failed(UNREACHABLE)
    for way in (post_streaming, post_whole, get_models):
        with way(server) as client:
            assert client.status == 502
            assert json.loads(client.read()) == official_error(502, UNREACHABLE)


def test_an_upstream_that_refuses_connections_is_unreachable(online):
    check_unreachable(online)


def test_an_upstream_of_an_unknown_host_is_unreachable(start, command):
    server = start(command, OPENAI_BASE_URL="http://no-such-host.invalid/v1")
    check_unreachable(server)
    assert server.logged("Traceback") == []


WITH_TEXT = (silent_in_mid_answer, writes_on_and_on)


@pytest.mark.parametrize("way", [get_events, post_streaming, post_whole])
@pytest.mark.parametrize("moment", [silence, silent_after_headers, *WITH_TEXT])
def test_upstream_is_left_as_soon_as_the_client_has_left(
    online, upstream, way, moment
):
    upstream.answer = moment
    client = way(online)
    if way is not post_whole and moment in WITH_TEXT:
        read_until(client.chunks(), b"Hello")
    wait_until(lambda: upstream.requests)
    (connection,) = upstream.connections
    left_at = time.monotonic()
    client.close()
    wait_until(connection.left.is_set, LEAVE_SECONDS + 1)
    took = connection.left_at - left_at
    assert took < LEAVE_SECONDS


@pytest.mark.parametrize("framing", FRAMINGS)
def test_relays_an_event_stream_byte_for_byte(online, upstream, framing):
    odd = b'\xef\xbb\xbf: hi\r\rid: 7\r\nevent: x\ndata:{"a":  "\xff\xc3"}\n\n'
    upstream.answer = stream(odd, *HELLO, framing=framing)
    with ask(online) as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-store"
        assert client.header("X-Accel-Buffering") == "no"
        assert spoken(client.read()) == odd + b"".join(HELLO)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_relays_a_whole_answer_byte_for_byte(online, upstream, framing):
    upstream.answer = stream(
        COMPLETION, framing=framing, content_type="application/json"
    )
    with ask(online, CHAT) as client:
        assert (client.status, client.read()) == (200, COMPLETION)
        assert client.header("Content-Type") == "application/json"


def test_forwards_what_the_caller_sent_with_the_key_of_the_server(
    online, upstream
):
    body = CHAT | {
        "model": "another",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "tools": [{"type": "function", "function": {"name": "函数"}}],
        "unheard_of": [None, True, {"deep": [1, 2.5, "😀"]}],
    }
    body_of(ask(online, body, Authorization="Bearer caller-key", Cookie="a=1"))
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Cookie"] is None
    assert request.json == body


def test_fills_in_the_model_that_is_missing(online, upstream):
    body_of(ask(online))
    assert upstream.requests[0].json["model"] == "test-model"


def test_without_a_key_the_caller_s_own_stays_here(start, command, upstream):
    server = start(command, OPENAI_BASE_URL=upstream.url)
    body_of(ask(server, Authorization="Bearer caller-key"))
    assert upstream.requests[0].headers["Authorization"] is None


def test_relays_the_list_of_models(online, upstream):
    listed = b'{"object": "list", "data":  []}'
    upstream.answer = page(listed)
    with online.get("/v1/models", Authorization="Bearer x") as client:
        assert (client.status, client.read()) == (200, listed)
    (request,) = upstream.requests
    assert (request.method, request.path) == ("GET", "/v1/models")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]


def test_answers_share_a_connection_to_the_upstream(online, upstream):
    for _ in range(2):
        body_of(ask(online))
        body_of(online.get(PROMPT))
    assert [len(one.requests) for one in upstream.connections] == [4]


def test_official_client_streams(official, upstream):
    upstream.answer = stream(ROLE, delta("One"), delta(" 二"), FINISH, DONE)
    chunks = official.chat.completions.create(
        model="a", messages=CHAT["messages"], stream=True
    )
    choices = [one.choices[0] for one in chunks]
    assert [one.delta.content for one in choices] == ["", "One", " 二", None]
    assert choices[-1].finish_reason == "stop"
    assert upstream.requests[0].json["model"] == "a"


def test_official_client_gets_usage(official, upstream):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    upstream.answer = stream(
        *HELLO[:-1], event({"choices": [], "usage": usage}), DONE
    )
    *_, last = official.chat.completions.create(
        model="a",
        messages=CHAT["messages"],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert last.usage.total_tokens == 3
    asked = upstream.requests[0].json
    assert asked["stream_options"] == {"include_usage": True}


def test_official_client_gets_a_whole_answer(official, upstream):
    upstream.answer = page(COMPLETION)
    completion = official.chat.completions.create(
        model="a", messages=CHAT["messages"]
    )
    assert completion.choices[0].message.content == "Hello"


def test_official_client_lists_models(official, upstream):
    upstream.answer = page(
        b'{"object": "list", "data": [{"id": "one", "object": "model", '
        b'"created": 1, "owned_by": "us"}]}'
    )
    assert [model.id for model in official.models.list()] == ["one"]


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("401", openai.AuthenticationError),
        ("429", openai.RateLimitError),
        ("500 with HTML", openai.InternalServerError),
        ("hangs up", openai.InternalServerError),
    ],
)
def test_official_client_raises_what_the_upstream_means(
    official, upstream, name, kind, streams
):
    upstream.answer = FAULTS[name].answer
    with pytest.raises(kind):
        official.chat.completions.create(
            model="a", messages=CHAT["messages"], stream=streams
        )


@pytest.mark.parametrize(
    "name",
    [
        *CUT_FAULTS,
        *BYTE_FAULTS,
        "an error object",
    ],
)
def test_official_client_raises_when_the_answer_breaks_off(
    official, upstream, name
):
    upstream.answer = FAULTS[name].answer
    chunks = official.chat.completions.create(
        model="a", messages=CHAT["messages"], stream=True
    )
    with pytest.raises(openai.APIError):
        list(chunks)


def test_official_client_raises_when_an_event_breaks_off(official, upstream):
    upstream.answer = stream(ROLE, delta("Hello")[:-9], end="cut")
    chunks = official.chat.completions.create(
        model="a", messages=CHAT["messages"], stream=True
    )
    with pytest.raises(json.JSONDecodeError):
        list(chunks)


def test_official_client_works_offline(offline):
    question = {"model": "offline", "messages": CHAT["messages"]}
    with official_client(offline) as client:
        whole = client.chat.completions.create(**question)
        *chunks, usage = client.chat.completions.create(
            **question, stream=True, stream_options={"include_usage": True}
        )
        plain = list(client.chat.completions.create(**question, stream=True))
        models = [model.id for model in client.models.list()]
    text = whole.choices[0].message.content
    for streamed in (chunks, plain):
        contents = [one.choices[0].delta.content for one in streamed]
        assert "".join(filter(None, contents)) == text
        assert streamed[-1].choices[0].finish_reason == "stop"
    assert usage.usage == whole.usage
    assert models == ["offline"]


def chat_of(size: int) -> bytes:
    """Return a chat whose JSON is exactly so many bytes."""
    body = json.dumps(CHAT | {"stream": False}).encode()
    return body.replace(b'"Hi"', b'"%s"' % (b"x" * (size - len(body) + 2)))


def test_a_whole_answer_that_is_too_large_is_502(online, upstream):
    upstream.answer = page(b" " * 20 * 2**20)
    with ask(online, CHAT) as client:
        assert client.status == 502
        assert "too large" in client.read().decode()
    wait_until(upstream.connections[0].left.is_set)


def test_body_of_256_kib_passes(online, upstream):
    upstream.answer = page(COMPLETION)
    body = chat_of(MAX_BODY_BYTES)
    with online.post("/v1/chat/completions", body) as client:
        assert (client.status, client.read()) == (200, COMPLETION)
    assert upstream.requests[0].json == json.loads(body) | {
        "model": "test-model"
    }


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_of_one_byte_more_is_refused(online, upstream, is_chunked):
    body = chat_of(MAX_BODY_BYTES + 1)
    with online.post(
        "/v1/chat/completions", iter([body]) if is_chunked else body
    ) as client:
        assert client.status == 413
        assert client.header("Content-Type") == "application/json"
        assert json.loads(client.read()) == official_error(
            413, "The body must have at most 262144 bytes."
        )
    assert upstream.requests == []


def test_chunked_body_within_the_limit_passes(online, upstream):
    body = json.dumps(CHAT | {"stream": True}).encode()
    pieces = iter([body[:9], body[9:]])
    with online.post("/v1/chat/completions", pieces) as client:
        assert spoken(client.read()) == b"".join(HELLO)


NO_CHAT = "The body must be a JSON object with a list of messages."


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Hi",
        b'{"messages": [{"content": "\xff"}]}',
        b"[" * 100_000,
        b'{"messages": [{"content": NaN}]}',
        b'{"messages": [{"content": -Infinity}]}',
        b'{"messages": [{}], "n": %s}' % (b"1" * 5000),
        b"null",
        b"[]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": "Hi"}',
        b'{"messages": ["Hi"]}',
    ],
)
def test_body_that_is_no_chat_is_refused(online, upstream, body):
    with online.post("/v1/chat/completions", body) as client:
        assert client.status == 400
        assert client.header("Content-Type") == "application/json"
        assert json.loads(client.read()) == official_error(400, NO_CHAT)
    assert upstream.requests == []


def shown(client: Client) -> str:
    """Return all that a response shows to its client."""
    with client:
        return f"{client.response.headers}{client.read()}"


ECHOES = {
    "in a 401": page(
        b'{"error": {"message": "Incorrect API key: %s."}}' % KEY.encode(),
        "401 Unauthorized",
    ),
    "in a page": page(KEY.encode(), "500 Internal Server Error", "text/html"),
    "in Retry-After": page(
        b"{}",
        "429 Too Many Requests",
        "application/json",
        f"Retry-After: {KEY}",
    ),
    "in Content-Type": page(b"", "200 OK", f"text/html; a={KEY}"),
    "in a redirect": page(
        b"{}", "302 Found", "text/html", f"Location: http://x/?key={KEY}"
    ),
    "in a delta": stream(delta(f"It is {KEY}."), FINISH, DONE),
    "in an error event": stream(event({"error": {"message": KEY}})),
    "in broken events": stream(event(KEY), KEY.encode(), end="cut"),
    "in place of HTTP": lambda connection: connection.send(
        b"%s\r\n\r\n" % KEY.encode()
    ),
}


@pytest.mark.parametrize("place", ECHOES)
def test_key_never_shows_though_the_upstream_echoes_it(online, upstream, place):
    upstream.answer = ECHOES[place]
    for way in (get_events, post_streaming, post_whole):
        assert KEY not in shown(way(online))


def test_key_never_shows_though_it_arrives_in_two_reads(online, upstream):
    line = delta(f"It is {KEY}.")
    at = line.index(KEY.encode()) + 9
    upstream.answer = stream(
        delta("One") + line[:at], PAUSE, line[at:], FINISH, DONE
    )
    for way in (get_events, post_streaming):
        with way(online) as client:
            chunks = client.chunks()
            begun = read_until(chunks, b"One")
            upstream.go_on()
            body = (begun + b"".join(chunks)).decode()
        assert "It is ***." in body
        assert KEY[9:] not in body


@pytest.mark.parametrize("path", ["/", "/demos/completion", "/nowhere"])
def test_key_is_on_no_page(online, path):
    assert KEY not in shown(online.get(path))


CROSS_SITE = (
    {"Sec_Fetch_Site": "cross-site"},
    {"Origin": "http://elsewhere.example"},
    {"Origin": "null"},
)


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_no_page_of_another_site_spends_money(online, upstream, headers):
    for way in (get_events, get_models, post_streaming):
        with way(online, **headers) as client:
            assert client.status == 403
            assert client.header("Access-Control-Allow-Origin") is None
            assert "Pages of other sites may not" in client.read().decode()
    assert upstream.requests == []


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_pages_of_other_sites_may_read_what_costs_nothing(offline, headers):
    for way in (get_events, get_models):
        with way(offline, **headers) as client:
            assert client.status == 200
            assert client.header("Access-Control-Allow-Origin") == "*"


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_pages_of_other_sites_never_post(offline, headers):
    with ask(offline, **headers) as client:
        assert client.status == 403
        assert json.loads(client.read()) == {
            "error": "Pages of other sites may not change anything here."
        }


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}],
)
def test_our_own_page_may_ask_and_no_other_origin_may_read(
    online, upstream, headers
):
    for way in (get_events, get_models, post_streaming):
        with way(online, **headers) as client:
            assert client.status == 200
            assert client.header("Access-Control-Allow-Origin") is None


def test_page_writes_the_answer_and_closes(online, upstream, page):
    upstream.answer = stream(
        ROLE, delta("Hello"), delta(" <b>you</b>"), FINISH, DONE
    )
    page.goto(f"{online.url}/demos/completion")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_have_text("Hello <b>you</b>")
    expect(page.locator("#state")).to_have_text("closed")
    assert len(upstream.requests) == 1


def test_page_shows_why_there_is_no_answer(online, page):
    page.goto(f"{online.url}/demos/completion")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_contain_text(UNREACHABLE)
    expect(page.locator("#state")).to_have_text("closed")


def test_page_that_stops_an_answer_stops_the_model(online, upstream, page):
    upstream.answer = silent_in_mid_answer
    page.goto(f"{online.url}/demos/completion")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_have_text("Hello")
    page.get_by_role("button", name="Stop").click()
    stopped = time.monotonic()
    wait_until(lambda: upstream.connections[0].left.is_set())
    assert upstream.connections[0].left_at - stopped < LEAVE_SECONDS


RECONNECTING_PAGE = """
() => new Promise((resolve) => {
  const paid = new EventSource("/completion?prompt=Hi");
  const failures = [];
  paid.onerror = () => failures.push(paid.readyState);
  const free = new EventSource("/stream/hello");
  free.onerror = () => {
    if (free.readyState === EventSource.CLOSED) resolve(failures);
  };
})
"""


def test_no_browser_sends_a_prompt_twice_though_no_id_has_come(
    online, upstream, page
):
    """`hello` closes at its own reconnect, when `completion` could be back."""
    upstream.answer = FAULTS["401"].answer
    page.goto(f"{online.url}/demos/completion")
    assert page.evaluate(RECONNECTING_PAGE) == [0]
    assert len(upstream.requests) == 1
