import logging
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing

import pytest
from conftest import need, wait_until
from upstream import (
    DONE,
    ERRORS,
    FAULTS,
    FINISH,
    FRAMINGS,
    HARMLESS_ANSWERS,
    HELLO,
    KEY,
    PAUSE,
    UNREACHABLE,
    Upstream,
    chunk,
    compressed,
    delta,
    head,
    page,
    silence,
    stream,
)

import language_model
from language_model import (
    BROKEN_OFF,
    Answer,
    ModelError,
    ask,
    deltas,
    message_deltas,
)

MESSAGES = [{"role": "user", "content": "Hi"}]
MODEL = "test-model"

in_mid_answer = stream(delta("Hello"), end="silent")


@pytest.fixture(autouse=True)
def _configured(upstream, monkeypatch) -> Iterator[None]:
    """An upstream that may stay silent for longer than any test."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_MODEL", MODEL)
    monkeypatch.setattr(language_model, "SILENCE_SECONDS", 300)
    yield
    language_model.session.close()


def outcome(answer: Answer) -> tuple[list[str], ModelError | None]:
    """Return the text of an answer, and the error that ended it."""
    texts = []
    try:
        for text in deltas(answer):
            texts.append(text)
    except ModelError as error:
        return texts, error
    return texts, None


def chattering(connection) -> None:
    """Send one delta after another until the client disconnects."""
    connection.send(head("200 OK", "Connection: close"))
    while not connection.disconnected.wait(0.02):
        connection.send(delta("Hello"))


# The request


def test_the_request_carries_the_messages_the_model_and_the_key(
    upstream, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    answer = ask(MESSAGES, temperature=0, tools=[{"type": "function"}])
    texts = deltas(answer)
    assert upstream.requests == []  # before the answer is read
    assert list(texts) == ["Hello"]
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.json == {
        "model": MODEL,
        "messages": MESSAGES,
        "stream": True,
        "temperature": 0,
        "tools": [{"type": "function"}],
    }


def test_the_environment_names_the_model_then_the_request_then_the_default(
    upstream, monkeypatch
):
    list(deltas(ask(MESSAGES, model="another")))
    monkeypatch.setenv("OPENAI_MODEL", "")
    list(deltas(ask(MESSAGES, model="another")))
    list(deltas(ask(MESSAGES)))
    models = [request.json["model"] for request in upstream.requests]
    assert models == [MODEL, "another", language_model.MODEL]


def test_without_a_base_url_the_default_one_is_used(upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    monkeypatch.setattr(language_model, "BASE_URL", upstream.url)
    assert list(deltas(ask(MESSAGES))) == ["Hello"]


def test_without_a_key_no_authorization_is_sent(
    upstream, monkeypatch, tmp_path
):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("OPENAI_API_KEY")
    list(deltas(ask(MESSAGES)))
    assert upstream.requests[0].headers["Authorization"] is None


def test_an_answer_can_be_read_as_bytes_over_one_connection(upstream):
    body = b'{"object": "list",  "data": []}'
    upstream.answer = page(body, "203 Odd", "application/json", "X-Own: 1")
    for _ in range(2):
        with closing(Answer("/models")) as answer:
            response = answer.open()
            assert response.status_code == 203
            assert response.headers["X-Own"] == "1"
            assert b"".join(answer) == body
    (connection,) = upstream.connections
    for request in connection.requests:
        assert (request.method, request.path) == ("GET", "/v1/models")
        assert (request.headers["Content-Length"], request.body) == (None, b"")


def test_a_cookie_of_the_upstream_is_not_sent_back(upstream):
    fields = ("Set-Cookie: a=1; Path=/",)
    upstream.answer = stream(*HELLO, fields=fields)
    for _ in range(2):
        list(deltas(ask(MESSAGES)))
    sent = [request.headers["Cookie"] for request in upstream.requests]
    assert sent == [None, None]


# The text


@pytest.mark.parametrize("framing", FRAMINGS)
def test_deltas_are_the_text_as_it_arrives(upstream, framing):
    pieces = [delta("One"), PAUSE, delta("\n two"), delta(""), delta(" 三\r\n")]
    upstream.answer = stream(*pieces, FINISH, DONE, framing=framing)
    texts = deltas(ask(MESSAGES))
    assert next(texts) == "One"
    upstream.resume()
    assert list(texts) == ["\n two", " 三\r\n"]


def test_compressed_text_is_read_as_it_arrives(upstream):
    pieces = compressed(delta("One"), PAUSE, delta(" two"), FINISH, DONE)
    fields = ("Content-Encoding: gzip",)
    upstream.answer = stream(*pieces, fields=fields)
    texts = deltas(ask(MESSAGES))
    assert next(texts) == "One"
    upstream.resume()
    assert list(texts) == [" two"]


def test_whole_deltas_have_the_same_four_fields(upstream):
    call = {"id": "a", "type": "function"}
    function = {"name": "get_sum", "arguments": "{"}
    sent = [
        {"role": "assistant", "content": None, "reasoning": "Hm."},
        {"reasoning": "Hm.", "reasoning_content": "Hm."},
        {"tool_calls": [{"index": 0, "function": function} | call]},
        {"content": [{"type": "text", "text": "Hello"}]},
    ]
    upstream.answer = stream(*map(chunk, sent), FINISH, DONE)
    call["function"] = {"name": "get_sum", "arguments": ""}
    found = {"reasoning": "Hm."}, {"reasoning_content": "Hm."}
    found += {"tool_calls": [(0, call, "{")]}, {"content": "Hello"}, {}
    empty = dict.fromkeys(("content", "reasoning", "reasoning_content"), "")
    empty["tool_calls"] = []
    deltas = list(message_deltas(ask(MESSAGES)))
    assert deltas == [empty | fields for fields in found]


SMILE = delta("?").replace(b"?", "😀".encode())
"""The official API sends such characters unescaped."""


@pytest.mark.parametrize("at", [-1, -2, -3, SMILE.index(b"\xf0") + 2])
def test_an_event_may_arrive_in_two_reads(upstream, at):
    line = SMILE.replace(b"\n", b"\r\n")
    upstream.answer = stream(delta("One"), line[:at], PAUSE, line[at:], FINISH)
    texts = deltas(ask(MESSAGES))
    assert next(texts) == "One"
    upstream.resume()
    assert list(texts) == ["😀"]


@pytest.mark.parametrize("name", HARMLESS_ANSWERS)
def test_reads_every_unusual_but_complete_answer(upstream, name):
    upstream.answer = HARMLESS_ANSWERS[name]
    assert list(deltas(ask(MESSAGES))) == ["Hello"]


# Faults


def check_hides_the_key(error: ModelError, answer: Answer, key: str) -> None:
    shown = [repr(error), repr(vars(error)), repr(answer), repr(vars(answer))]
    shown += traceback.format_exception(error)
    assert key not in "".join(shown)


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_message_after_the_text_so_far(upstream, name):
    upstream.answer, message, before = FAULTS[name]
    answer = ask(MESSAGES)
    texts, error = outcome(answer)
    assert (texts, str(error), error.status) == (list(before), message, 502)
    check_hides_the_key(error, answer, KEY)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (silence, "The language model is silent."),
        (stream(end="silent"), "The language model fell silent."),
        *(
            (
                stream(delta("Hello"), framing=framing, end="silent"),
                "The language model fell silent.",
            )
            for framing in FRAMINGS
        ),
    ],
    ids=["before headers", "after headers", *FRAMINGS],
)
def test_a_long_silence_is_a_fault(upstream, monkeypatch, answer, message):
    def is_reported() -> bool:  # on a slow machine, not at the first attempt
        _, error = outcome(ask(MESSAGES))
        assert error.status == 504
        return str(error) == message

    monkeypatch.setattr(language_model, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(language_model, "CONNECT_SECONDS", 300)
    upstream.answer = answer
    wait_until(is_reported)
    for connection in upstream.connections:
        wait_until(connection.disconnected.is_set)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/v1",
        "http://no-such-host.invalid/v1",
        "http://[::1/v1",
        "localhost:11434/v1",
    ],
)
def test_an_unreachable_address_is_a_fault(monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    _, error = outcome(ask(MESSAGES))
    assert (str(error), error.status) == (UNREACHABLE, 502)


@pytest.mark.parametrize("key", [f"{KEY}\nx", f"{KEY}三"])
def test_an_invalid_key_is_a_fault_that_hides_it(upstream, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    answer = ask(MESSAGES)
    _, error = outcome(answer)
    assert str(error) == UNREACHABLE
    check_hides_the_key(error, answer, KEY)
    assert upstream.requests == []


ECHOES = [
    page(b"Incorrect API key: %s." % KEY.encode(), "401 Unauthorized"),
    page(b"", "302 Found", "text/html", f"Location: http://x/?key={KEY}"),
    stream(b'data: {"error": "%s"}\n\n' % KEY.encode()),
    lambda connection: connection.send(b"%s\r\n\r\n" % KEY.encode()),
]


def test_no_error_shows_a_key_that_the_upstream_echoes(upstream):
    for upstream.answer in ECHOES:
        answer = ask(MESSAGES)
        _, error = outcome(answer)
        check_hides_the_key(error, answer, KEY)


# Closing


def test_done_ends_an_answer_even_if_its_upstream_does_not(upstream):
    upstream.answer = stream(*HELLO, end="silent")
    assert list(deltas(ask(MESSAGES))) == ["Hello"]
    wait_until(upstream.connections[0].disconnected.is_set)


@pytest.mark.parametrize(
    "answer",
    [
        lambda connection: connection.send(
            head("500 Odd", "Content-Length: 9")
        ),
        stream(b"data: 5\n\n", end="silent"),
        stream(ERRORS["an error object"][0], end="silent"),
    ],
    ids=["refused", "a bad event", "an error"],
)
def test_an_answer_that_fails_is_closed(upstream, answer):
    upstream.answer = answer
    _, error = outcome(ask(MESSAGES))
    assert error.status == 502
    wait_until(upstream.connections[0].disconnected.is_set)


def test_an_abandoned_answer_is_closed(upstream):
    upstream.answer = in_mid_answer
    texts = deltas(ask(MESSAGES))
    assert next(texts) == "Hello"
    texts.close()
    wait_until(upstream.connections[0].disconnected.is_set)


def waits_in(thread: threading.Thread, *files: str) -> bool:
    """Return whether the thread is in a function of one of the files."""
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code.co_filename.endswith(files)


def check_close_wakes(upstream: Upstream) -> None:
    """Close an answer while another thread waits for more of it."""
    answer, errors = ask(MESSAGES), []

    def reader() -> None:
        try:
            list(deltas(answer))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    wait_until(lambda: answer._response is not None)
    wait_until(lambda: waits_in(thread, "/socket.py", "/ssl.py"))
    closer = threading.Thread(target=answer.close, daemon=True)
    closer.start()
    thread.join(30)
    assert not thread.is_alive()
    closer.join()
    (connection,) = upstream.connections
    wait_until(connection.disconnected.is_set)
    assert [(type(one), str(one)) for one in errors] == [
        (ModelError, BROKEN_OFF)
    ]
    answer.close()  # closing it again has no effect


@pytest.mark.parametrize(
    "answer",
    [
        stream(end="silent"),
        *(
            stream(delta("Hello"), framing=framing, end="silent")
            for framing in FRAMINGS
        ),
        stream(delta("Hello")[:20], end="silent"),
        chattering,
    ],
    ids=["after headers", *FRAMINGS, "in mid-event", "while it writes"],
)
def test_close_in_another_thread_wakes_the_reader(upstream, answer):
    upstream.answer = answer
    check_close_wakes(upstream)


class TLSUpstream(Upstream):
    """An upstream that uses TLS with its own certificate."""

    def __init__(self, answer, certificate: str, key: str):
        super().__init__(answer)
        self.url = self.url.replace("http:", "https:")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)

    def get_request(self) -> tuple[socket.socket, object]:
        sock, address = super().get_request()
        return self.context.wrap_socket(sock, server_side=True), address


def test_close_wakes_the_reader_of_a_tls_connection(monkeypatch, tmp_path):
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        [
            *(need("openssl"), "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    with TLSUpstream(in_mid_answer, certificate, key) as upstream:
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        check_close_wakes(upstream)


def test_an_answer_that_was_closed_before_it_opened_disconnects(upstream):
    upstream.answer = in_mid_answer
    answer = ask(MESSAGES)
    answer.close()
    texts, error = outcome(answer)
    assert (texts, str(error)) == ([], BROKEN_OFF)
    for connection in upstream.connections:
        wait_until(connection.disconnected.is_set)


def test_many_answers_can_be_open_concurrently(upstream, caplog):
    caplog.set_level(logging.INFO)
    upstream.answer = stream(delta("Hel"), PAUSE, delta("lo"), FINISH, DONE)
    answers = [deltas(ask(MESSAGES)) for _ in range(20)]
    assert {next(texts) for texts in answers} == {"Hel"}
    assert len(upstream.connections) == 20
    for connection in upstream.connections:
        connection.resume()
    assert {"".join(texts) for texts in answers} == {"lo"}
    assert caplog.messages == []
