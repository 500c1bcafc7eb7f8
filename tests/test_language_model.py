import fcntl
import json
import resource
import socket
import threading
import time
import traceback
from contextlib import closing

import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from upstream import (
    DONE,
    FAULTS,
    FINISH,
    FRAMINGS,
    HARMLESS,
    HELLO,
    KEY,
    PAUSE,
    UNREACHABLE,
    Upstream,
    delta,
    page,
    reserved_port,
    silence,
    stream,
)

import language_model
from event_source import parse_events
from language_model import (
    ModelError,
    OfflineCall,
    UpstreamCall,
    chat,
    deltas,
    new_call,
    parse_chat,
)

SILENCE_SECONDS = 0.6

PROMPTS = {
    "What is an event stream?": "**Server-sent events** are",
    "Compare with WebSockets": "## Event streams or WebSockets?",
    "What if the browser reconnects?": "A browser **reconnects by itself**",
    "Show me the Python code": "In **Flask**, a generator",
    "什么是事件流？": "**服务器发送事件**",
    "和 WebSocket 有什么区别？": "## 事件流还是 WebSocket？",
    "断开以后怎么办？": "浏览器会**自动重新连接**",
    "给我看一个例子": "在 **Flask** 里",
}


def offline(body: dict | None, path: str = "/chat/completions") -> OfflineCall:
    return OfflineCall(path, body, word_seconds=0)


def received(call) -> bytes:
    with closing(call):
        call.open()
        return b"".join(call)


def outcome(call) -> tuple[list[str], ModelError | None]:
    """Return the text that came of a call, and the error that ended it."""
    texts = []
    try:
        for text in deltas(call):
            texts.append(text)
    except ModelError as error:
        return texts, error
    return texts, None


def chunks_of(body: bytes) -> list[dict]:
    *chunks, done = [event.data for event in parse_events([body])]
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


@pytest.fixture
def ask(monkeypatch):
    """Return a call to an upstream that keeps silent for a moment at most."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def ask(url: str) -> UpstreamCall:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        return UpstreamCall("/chat/completions", chat("Hi"), SILENCE_SECONDS)

    yield ask
    language_model._session.close()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_offline_answer_suits_the_prompt_and_its_language(prompt):
    answer = "".join(deltas(offline(chat(prompt))))
    assert answer.startswith(PROMPTS[prompt])


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Compare"}],
        [{"role": "user", "content": [{"type": "text", "text": "Compare"}]}],
        [
            {"role": "user", "content": "什么是事件流？"},
            {"role": "assistant", "content": "Python"},
            {"role": "user", "content": "Compare"},
        ],
        [
            {"role": "user", "content": "Compare"},
            {"role": "assistant", "content": "什么"},
        ],
    ],
)
def test_offline_answer_is_to_the_last_message_of_the_user(messages):
    answer = "".join(deltas(offline({"messages": messages, "stream": True})))
    assert answer.startswith("## Event streams or WebSockets?")


@pytest.mark.parametrize(
    "messages",
    [
        [{}],
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [5, {"type": "image_url"}]}],
    ],
)
def test_offline_answers_a_chat_without_text(messages):
    answer = "".join(deltas(offline({"messages": messages, "stream": True})))
    assert answer.startswith("**Server-sent events** are")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_offline_streams_word_by_word_what_it_answers_whole(prompt):
    words = list(deltas(offline(chat(prompt))))
    whole = json.loads(received(offline(chat(prompt) | {"stream": False})))
    assert "".join(words) == whole["choices"][0]["message"]["content"]
    assert len(words) > 40
    assert all(len(word.split()) <= 1 for word in words)


def test_offline_wire_format_is_the_official_one(monkeypatch):
    monkeypatch.setattr(language_model.secrets, "token_hex", lambda size: "1a")
    monkeypatch.setattr(language_model.time, "time", lambda: 1700000000.5)
    monkeypatch.setattr(language_model, "_answer", lambda prompt: "Hi \n你好")

    def event(delta: bytes, finish_reason: bytes) -> bytes:
        return (
            b'data: {"id":"chatcmpl-1a","object":"chat.completion.chunk",'
            b'"created":1700000000,"model":"offline",'
            b'"system_fingerprint":null,"choices":[{"index":0,"delta":'
            + delta
            + b',"logprobs":null,"finish_reason":'
            + finish_reason
            + b"}]}\n\n"
        )

    assert received(offline(chat("Hi"))) == b"".join(
        [
            event(b'{"role":"assistant","content":"","refusal":null}', b"null"),
            event(b'{"content":"Hi"}', b"null"),
            event('{"content":" \\n你"}'.encode(), b"null"),
            event('{"content":"好"}'.encode(), b"null"),
            event(b"{}", b'"stop"'),
            b"data: [DONE]\n\n",
        ]
    )


def test_offline_chunks_are_valid_for_the_official_client():
    body = chat("Hi") | {"stream_options": {"include_usage": True}}
    chunks = chunks_of(received(offline(body)))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    "options", [{}, {"stream_options": None}, {"stream_options": {}}]
)
def test_offline_sends_no_usage_unasked(options):
    chunks = chunks_of(received(offline(chat("Hi") | options)))
    assert all("usage" not in chunk for chunk in chunks)


def test_offline_sends_usage_last_when_asked():
    body = chat("Two words") | {"stream_options": {"include_usage": True}}
    *chunks, last = chunks_of(received(offline(body)))
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert last["choices"] == []
    answered = len(list(deltas(offline(chat("Two words")))))
    assert last["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": answered,
        "total_tokens": 2 + answered,
    }


def test_offline_answers_whole_in_the_official_shape():
    call = offline(chat("Two words") | {"stream": False})
    completion = json.loads(received(call))
    ChatCompletion.model_validate(completion, strict=True)
    assert call.headers == {"Content-Type": "application/json"}
    assert completion["id"].startswith("chatcmpl-")
    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"]["prompt_tokens"] == 2


def test_offline_lists_its_one_model():
    models = json.loads(received(offline(None, "/models")))
    assert models["object"] == "list"
    (model,) = models["data"]
    Model.model_validate(model, strict=True)
    assert model["id"] == "offline"


@pytest.mark.parametrize("seconds", [0, 0.001])
def test_offline_pace_is_a_setting(app, seconds):
    app.config["OFFLINE_WORD_SECONDS"] = seconds
    with app.app_context():
        call = new_call("/chat/completions", chat("Hi"))
    began = time.monotonic()
    words = list(deltas(call))
    took = time.monotonic() - began
    assert len(words) * seconds <= took < 2


def test_offline_answer_can_be_cut_between_two_words():
    call = OfflineCall("/chat/completions", chat("Hi"), word_seconds=60)
    threading.Timer(0.01, call.cut).start()
    with pytest.raises(ModelError, match="broke off"):
        list(deltas(call))


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "messages",
        {},
        {"messages": None},
        {"messages": []},
        {"messages": {}},
        {"messages": "Hi"},
        {"messages": [{}, "Hi"]},
        {"messages": [{}], "n": float("inf")},
    ],
)
def test_what_no_model_could_answer_is_no_chat(body):
    assert parse_chat(json.dumps(body).encode()) is None


def test_parses_a_chat():
    assert parse_chat(json.dumps(chat("Hi")).encode()) == chat("Hi")


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, OfflineCall),
        ({"OPENAI_MODEL": "m"}, OfflineCall),
        ({"OPENAI_API_KEY": KEY}, UpstreamCall),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, UpstreamCall),
    ],
)
def test_a_key_or_an_address_means_an_upstream(app, monkeypatch, environ, kind):
    for name in environ:
        monkeypatch.setenv(name, environ[name])
    with app.app_context():
        assert type(new_call("/models")) is kind


def test_request_carries_the_key_the_model_and_the_chat(ask, monkeypatch):
    monkeypatch.setenv("OPENAI_MODEL", "test-model")
    with Upstream(stream(*HELLO)) as upstream:
        assert list(deltas(ask(upstream.url + "/"))) == ["Hello"]
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.headers["Content-Type"] == "application/json"
    assert request.json == {
        "model": "test-model",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }


def test_no_key_sends_no_authorization(ask, monkeypatch, tmp_path):
    with Upstream(stream(*HELLO)) as upstream:
        call = ask(upstream.url)
        monkeypatch.delenv("OPENAI_API_KEY")
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(netrc))
        list(deltas(call))
    assert upstream.requests[0].headers["Authorization"] is None


@pytest.mark.parametrize("framing", FRAMINGS)
def test_deltas_are_the_text_of_the_answer(ask, framing):
    pieces = [delta("One"), delta("\n two"), delta(""), delta(" 三\r\n")]
    answer = stream(*pieces, FINISH, DONE, framing=framing)
    with Upstream(answer) as upstream:
        texts = list(deltas(ask(upstream.url)))
    assert texts == ["One", "\n two", " 三\r\n"]


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_what_is_unusual_but_whole_is_read(ask, name, framing):
    with Upstream(stream(*HARMLESS[name], framing=framing)) as upstream:
        assert list(deltas(ask(upstream.url))) == ["Hello"]


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (delta("Hello").replace(b"\n", b"\r\n"), -1),
        (delta("Hello").replace(b"\n", b"\r\n"), -2),
        (delta("Hello").replace(b"\n", b"\r\n"), -3),
        (delta("Hello"), 3),
        (delta("Hello"), -1),
    ],
)
def test_an_event_may_arrive_in_two_reads(ask, line, at):
    answer = stream(delta("One"), line[:at], PAUSE, line[at:], FINISH)
    with Upstream(answer) as upstream:
        texts = deltas(ask(upstream.url))
        assert next(texts) == "One"
        upstream.go_on()
        assert list(texts) == ["Hello"]


@pytest.mark.parametrize("bytes_before", [1, 2, 3])
def test_a_character_may_arrive_in_two_reads(ask, bytes_before):
    # Official upstreams send such characters as they are, not escaped.
    line = delta("?").replace(b"?", "😀".encode())
    at = line.index("😀".encode()) + bytes_before
    with Upstream(
        stream(delta("One") + line[:at], PAUSE, line[at:], FINISH)
    ) as upstream:
        texts = deltas(ask(upstream.url))
        assert next(texts) == "One"
        upstream.go_on()
        assert list(texts) == ["😀"]


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_sentence_after_what_came_before(ask, name):
    answer, sentence, before = FAULTS[name]
    with Upstream(answer) as upstream:
        texts, error = outcome(ask(upstream.url))
    assert (texts, str(error)) == (list(before), sentence)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (silence, "The language model stays silent."),
        (stream(end="silent"), "The language model fell silent."),
        (
            stream(delta("Hello"), end="silent"),
            "The language model fell silent.",
        ),
        (
            stream(delta("Hello"), framing="length", end="silent"),
            "The language model fell silent.",
        ),
        (
            stream(delta("Hello"), framing="close", end="silent"),
            "The language model fell silent.",
        ),
    ],
)
def test_silence_is_a_fault_after_a_while(ask, answer, sentence):
    with Upstream(answer) as upstream:
        _, error = outcome(ask(upstream.url))
        wait_until(upstream.connections[0].left.is_set)
    assert (str(error), error.status) == (sentence, 504)


def test_an_upstream_that_refuses_connections_is_a_fault(ask):
    with reserved_port() as port:
        _, error = outcome(ask(f"http://127.0.0.1:{port}/v1"))
    assert (str(error), error.status) == (UNREACHABLE, 502)


def test_an_upstream_of_an_unknown_host_is_a_fault(ask):
    _, error = outcome(ask("http://no-such-host.invalid/v1"))
    assert (str(error), error.status) == (UNREACHABLE, 502)


@pytest.mark.parametrize(
    "answer", [silence, stream(delta("Hello"), end="silent")]
)
def test_a_call_can_be_cut_from_another_thread(ask, answer):
    with Upstream(answer) as upstream:
        call = ask(upstream.url)
        call._silence = 300

        def cut_when_asked():
            wait_until(lambda: upstream.requests)
            call.cut()

        thread = threading.Thread(target=cut_when_asked)
        thread.start()
        with pytest.raises(ModelError):
            list(deltas(call))
        thread.join()
        wait_until(upstream.connections[0].left.is_set, 2)


def test_a_call_that_was_cut_before_it_opened_asks_nothing_for_long(ask):
    with Upstream(silence) as upstream:
        call = ask(upstream.url)
        call._silence = 300
        call.cut()
        with pytest.raises(ModelError):
            list(deltas(call))


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_whole_answer_leaves_its_connection_to_the_next_call(ask, framing):
    with Upstream(stream(*HELLO, framing=framing)) as upstream:
        for _ in range(3):
            assert list(deltas(ask(upstream.url))) == ["Hello"]
    assert [len(one.requests) for one in upstream.connections] == [3]


def test_an_end_that_comes_a_moment_after_done_keeps_the_connection(ask):
    with Upstream(stream(*HELLO, PAUSE)) as upstream:
        texts = deltas(ask(upstream.url))
        assert next(texts) == "Hello"
        upstream.go_on()
        assert list(texts) == []
        upstream.go_on()
        assert list(deltas(ask(upstream.url))) == ["Hello"]
    assert [len(one.requests) for one in upstream.connections] == [2]


def test_an_upstream_that_never_ends_after_done_is_left(ask):
    with Upstream(stream(*HELLO, end="silent")) as upstream:
        assert list(deltas(ask(upstream.url))) == ["Hello"]
        wait_until(upstream.connections[0].left.is_set, 2)


def test_the_connection_of_an_answer_nobody_read_on_is_closed(ask):
    with Upstream(stream(*HELLO, end="silent")) as upstream:
        texts = deltas(ask(upstream.url))
        next(texts)
        texts.close()
        wait_until(upstream.connections[0].left.is_set, 2)


def test_an_upstream_that_writes_on_after_done_is_left(ask):
    def answer(connection):
        stream(*HELLO, framing="close", end="silent")(connection)
        while not connection.left.wait(0.05):
            connection.send(b":\n")

    with Upstream(answer) as upstream:
        assert list(deltas(ask(upstream.url))) == ["Hello"]
        wait_until(upstream.connections[0].left.is_set, 2)


@pytest.mark.parametrize("key", ["x", "e", "event"])
def test_a_dummy_key_changes_no_header(ask, monkeypatch, key):
    with Upstream(stream(*HELLO)) as upstream:
        call = ask(upstream.url)
        monkeypatch.setenv("OPENAI_API_KEY", key)
        assert list(deltas(call)) == ["Hello"]


@pytest.fixture
def many_files():
    """Let this process number its files beyond what select() can take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("number", [0, 1500])
def test_a_client_that_left_is_noticed_however_many_there_are(
    many_files, number
):
    ours, theirs = socket.socketpair()
    number = fcntl.fcntl(ours, fcntl.F_DUPFD, number)
    with ours, theirs, socket.socket(fileno=number) as client:
        assert not language_model._has_closed(client)
        theirs.send(b"more")
        assert not language_model._has_closed(client)
        client.recv(4)
        theirs.close()
        assert language_model._has_closed(client)


def test_a_cookie_of_the_upstream_is_not_sent_back(ask):
    with Upstream(
        page(b"{}", "200 OK", "application/json", "Set-Cookie: a=1; Path=/")
    ) as upstream:
        for _ in range(2):
            received(ask(upstream.url))
    assert [one.headers["Cookie"] for one in upstream.requests] == [None, None]


@pytest.mark.parametrize("name", FAULTS)
def test_no_error_shows_the_key(ask, name):
    with Upstream(FAULTS[name].answer) as upstream:
        call = ask(upstream.url)
        _, error = outcome(call)
    shown = [repr(error), repr(call), repr(vars(call))]
    shown += traceback.format_exception(error)
    assert KEY not in "".join(shown)


def test_no_call_shows_the_key(ask):
    with (
        Upstream(stream(*HELLO)) as upstream,
        closing(ask(upstream.url)) as call,
    ):
        call.open()
        assert KEY not in repr(call) + str(call) + repr(vars(call))


def test_an_upstream_that_echoes_the_key_is_not_believed(ask):
    line = delta(f"It is {KEY}!")
    at = line.index(KEY.encode()) + 9
    with Upstream(
        stream(delta("One"), line[:at], PAUSE, line[at:], FINISH)
    ) as upstream:
        texts = deltas(ask(upstream.url))
        assert next(texts) == "One"
        upstream.go_on()
        assert list(texts) == ["It is ***!"]


@pytest.mark.parametrize(
    ("chunks", "out"),
    [
        ([b"one ", b"two"], [b"one ", b"two"]),
        ([b"a secret-a b"], [b"a *** b"]),
        ([b"secret-asecret-a"], [b"******"]),
        ([b"a secr", b"et-a b"], [b"a ", b"*** b"]),
        ([b"a secr", b"et b"], [b"a ", b"secret b"]),
        ([b"a secr"], [b"a ", b"secr"]),
        ([b"sesecret-", b"a"], [b"se", b"***"]),
        ([bytes([byte]) for byte in b"secret-a"], [b"***"]),
    ],
)
def test_a_secret_is_blotted_out_and_the_rest_goes_on_at_once(chunks, out):
    blotted = language_model._without(b"secret-a", iter(chunks))
    assert list(filter(None, blotted)) == out


@given(
    st.text("ab", min_size=8, max_size=10),
    st.lists(st.text("ab", max_size=20)),
)
def test_no_split_hides_a_secret(secret, texts):
    chunks = [text.encode() for text in texts]
    blotted = b"".join(language_model._without(secret.encode(), iter(chunks)))
    assert blotted == b"".join(chunks).replace(secret.encode(), b"***")


def test_the_dummy_keys_of_local_models_are_words_like_others():
    for dummy in (b"", b"ollama", b"none"):
        chunks = [b"ollama none"]
        assert list(language_model._without(dummy, iter(chunks))) == chunks
