"""A fake language model API. Each test decides how it answers.

It sends HTTP over real sockets, byte by byte, so that it can misbehave. An
answer is a function that takes the connection, which contains the request:

    with Upstream(stream(delta("Hello"), FINISH, DONE)) as upstream:
        ask(upstream.url)
    assert upstream.requests[0].json["stream"]
"""

import http.client
import json
import os
import socket
import socketserver
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from email.message import Message
from typing import NamedTuple

PATIENCE_SECONDS = float(os.environ.get("PATIENCE_SECONDS", 60))
"""How long a test waits before it fails. Without a fault, no test does."""

KEY = "sk-test-0123456789abcdef"
FRAMINGS = ("chunked", "length", "close")

PAUSE = object()
"""In the pieces of a stream: wait here for `resume()`."""


class Request(NamedTuple):
    """A request as the upstream received it."""

    method: str
    path: str
    headers: Message
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


class Connection:
    """One connection to the upstream, with all its requests."""

    def __init__(self, sock: socket.socket):
        self.requests: list[Request] = []
        self.disconnected = threading.Event()
        self.sock = sock
        self._steps = threading.Semaphore(0)

    @property
    def request(self) -> Request:
        return self.requests[-1]

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def pause(self) -> None:
        """Wait for the test to call `resume()`."""
        self._steps.acquire(timeout=PATIENCE_SECONDS)

    def resume(self) -> None:
        self._steps.release()

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def serve(self, answer: "Answer") -> None:
        """Answer each request until the client or the answer disconnects."""
        with self.sock.makefile("rb") as lines, suppress(OSError):
            while request := read_request(lines):
                self.requests.append(request)
                answer(self)
        self.disconnected.set()


Answer = Callable[[Connection], object]


def read_request(lines) -> Request | None:
    """Return the next request, or None if the client has disconnected."""
    method, path, *_ = lines.readline().decode().split() or ("", "")
    if not method:
        return None
    headers = http.client.parse_headers(lines)
    body = lines.read(int(headers.get("Content-Length", 0)))
    return Request(method, path, headers, body)


class Upstream(socketserver.ThreadingTCPServer):
    """A context manager that answers each request with `answer`.

    After an answer, the connection waits for the next request. So an answer
    that sends nothing is a silent upstream. All threads end with the context.
    """

    allow_reuse_address = True

    def __init__(self, answer: Answer, port: int = 0):
        super().__init__(("127.0.0.1", port), None)
        self.answer = answer
        self.connections: list[Connection] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def requests(self) -> list[Request]:
        return [one for each in self.connections for one in each.requests]

    def resume(self) -> None:
        """Let the latest connection continue after its pause."""
        self.connections[-1].resume()

    def __enter__(self) -> "Upstream":
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        for connection in self.connections:
            connection.close()
            connection.resume()
        self.server_close()

    def verify_request(self, sock, address) -> bool:
        # The connection's own thread might start only after `__exit__`.
        self.connections.append(Connection(sock))
        return True

    def finish_request(self, sock, address) -> None:
        (connection,) = (one for one in self.connections if one.sock is sock)
        connection.serve(lambda connection: self.answer(connection))

    def handle_error(self, request, address) -> None:
        raise  # so that pytest fails the test


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port, which refuses connections unless an Upstream listens."""
    with closing(socket.socket()) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def head(status: str, *fields: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode()


def silence(connection: Connection) -> None:
    """Never answer."""


def page(
    body: bytes,
    status: str = "200 OK",
    content_type: str = "application/json",
    *fields: str,
) -> Answer:
    """Return an answer that is sent in one piece."""
    length = f"Content-Length: {len(body)}"
    first = head(status, f"Content-Type: {content_type}", length, *fields)
    return lambda connection: connection.send(first + body)


def stream(
    *pieces: bytes | object,
    framing: str = "chunked",
    end: str = "complete",
    content_type: str | None = "text/event-stream",
    fields: tuple[str, ...] = (),
) -> Answer:
    """Return an answer that sends each piece with one write.

    framing: "chunked", "length" (Content-Length) or "close" (at the end).
    end: "complete", "cut" (the connection drops early) or "silent".
    """
    length = sum(len(piece) for piece in pieces if piece is not PAUSE)
    # An answer that breaks off must promise more than it sends.
    promised = length + (0 if end == "complete" else 100)
    framings = {
        "chunked": "Transfer-Encoding: chunked",
        "length": f"Content-Length: {promised}",
        "close": "Connection: close",
    }
    if content_type is not None:
        fields = (f"Content-Type: {content_type}", *fields)
    first = head("200 OK", framings[framing], *fields)

    def answer(connection: Connection) -> None:
        connection.send(first)
        for piece in pieces:
            if piece is PAUSE:
                connection.pause()
            elif framing == "chunked":
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            else:
                connection.send(piece)
        if end == "complete" and framing == "chunked":
            connection.send(b"0\r\n\r\n")
        if end == "cut" or (end == "complete" and framing == "close"):
            connection.close()

    return answer


def compressed(*pieces: bytes | object) -> Iterator[bytes | object]:
    """Compress with gzip, so that each piece can be decoded immediately."""
    gzip = zlib.compressobj(wbits=31)
    yield gzip.flush(zlib.Z_SYNC_FLUSH)  # the header, without text
    for piece in pieces:
        if piece is PAUSE:
            yield PAUSE
        else:
            yield gzip.compress(piece) + gzip.flush(zlib.Z_SYNC_FLUSH)
    yield gzip.flush()


def event(value: object) -> bytes:
    return (
        b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
    )


def chunk(delta: dict, finish_reason: str | None = None) -> bytes:
    """Return one event of an answer, in the official API's format."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": "test-model",
            "choices": [choice],
        }
    )


def delta(text: str) -> bytes:
    return chunk({"content": text})


ROLE = chunk({"role": "assistant", "content": ""})
FINISH = chunk({}, "stop")
DONE = b"data: [DONE]\n\n"
HELLO = (ROLE, delta("Hello"), FINISH, DONE)

REFUSED_KEY = b'{"error": {"message": "Incorrect API key provided."}}'
TOO_MANY = b'{"error": {"message": "Rate limit reached.", "code": "slow_down"}}'
ERROR_PAGE = b"<!doctype html><title>500</title><h1>Internal error</h1>"


class Fault(NamedTuple):
    """One way in which an upstream fails, and what its client receives."""

    answer: Answer
    sentence: str
    texts: tuple[str, ...] = ()


BROKEN_EVENT = "The language model sent a bad event."
UNREACHABLE = "The language model is unreachable."
UNFINISHED = "The language model's answer broke off."
REPORTED = "The language model reported an error."

PAGE_FAULTS = {
    "401": Fault(
        page(REFUSED_KEY, "401 Unauthorized"),
        "The language model refused (401, wrong API key).",
    ),
    "429": Fault(
        page(
            TOO_MANY,
            "429 Too Many Requests",
            "application/json",
            "Retry-After: 7",
        ),
        "The language model refused (429, too many requests).",
    ),
    "500 with HTML": Fault(
        page(ERROR_PAGE, "500 Internal Server Error", "text/html"),
        "The language model refused (500).",
    ),
    "200 with HTML": Fault(page(ERROR_PAGE, "200 OK", "text/html"), UNFINISHED),
    "200 with JSON": Fault(page(b'{"choices": []}'), UNFINISHED),
    "200 with an error as JSON": Fault(
        page(b'{"object": "error", "message": "Overloaded."}'), UNFINISHED
    ),
}
"""Complete responses that do not answer the prompt."""

CONNECTION_FAULTS = {
    "hangs up": Fault(Connection.close, UNREACHABLE),
    "does not speak HTTP": Fault(
        lambda connection: connection.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        UNREACHABLE,
    ),
    "redirects": Fault(
        page(b"", "302 Found", "text/html", "Location: /elsewhere"),
        "The language model refused (302).",
    ),
    "redirects to an invalid URL": Fault(
        page(b"", "302 Found", "text/html", "Location: http://[::1"),
        UNREACHABLE,
    ),
}
"""No usable response at all."""

CUT_FAULTS = {
    name: Fault(answer, UNFINISHED, ("Hello",))
    for name, answer in {
        **{
            f"cut, {framing}": stream(
                ROLE, delta("Hello"), framing=framing, end="cut"
            )
            for framing in FRAMINGS
        },
        "ends without a finish": stream(ROLE, delta("Hello")),
        "ends with an empty finish_reason": stream(
            delta("Hello"), chunk({}, "")
        ),
    }.items()
} | {
    "cut after text with [DONE]": Fault(
        stream(delta("data: [DONE]"), framing="close"),
        UNFINISHED,
        ("data: [DONE]",),
    )
}
"""Answers that break off after some complete events."""

ERRORS = {
    "an error object": (event({"error": {"message": "Overloaded."}}), True),
    "an error as text": (event({"error": "Overloaded."}), True),
    "an error object next to finish_reason": (
        chunk({}, "error").replace(b'{"id"', b'{"error":{"code":502},"id"'),
        True,
    ),
    "event: error with an error object": (
        b"event: error\n" + event({"error": {"message": "Overloaded."}}),
        True,
    ),
    "event: error with a message": (
        b"event: error\n" + event({"message": "Overloaded."}),
        False,
    ),
    "event: error with text that is not JSON": (
        b"event: error\ndata: Overloaded.\n\n",
        True,
    ),
    "an object of the type error": (
        event({"object": "error", "message": "Overloaded.", "code": 503}),
        False,
    ),
    "finish_reason: error": (chunk({}, "error"), False),
}
"""Events that report an error after status 200, and whether the official
client raises. `deltas` always raises, because the answer is incomplete.
"""

BAD_EVENTS = {
    name: (sent, BROKEN_EVENT)
    for name, sent in {
        "broken JSON": b'data: {"choices": [{\n\n',
        "JSON that is nested too deeply": b"data: %b\n\n" % (b"[" * 100_000),
        "a number": event(5),
        "null": event(None),
        "a list": event(["choices"]),
        "choices that are a number": event({"choices": 5}),
        "a choice that is null": event({"choices": [None]}),
        "a delta that is a string": event({"choices": [{"delta": "Hi"}]}),
        "content that is a number": chunk({"content": 5}),
        "content that is a list of strings": chunk({"content": ["Hi"]}),
        "a line of 10 MiB": b"data: " + b"x" * 10 * 1024 * 1024,
    }.items()
} | {name: (error, REPORTED) for name, (error, _) in ERRORS.items()}
"""Events that no model should send, with the resulting error message."""

EVENT_FAULTS = {
    name: Fault(stream(delta("Hello"), bad), sentence, ("Hello",))
    for name, (bad, sentence) in BAD_EVENTS.items()
}

BYTE_FAULTS = {
    "a broken chunk size": Fault(
        lambda connection: connection.send(
            head(
                "200 OK",
                "Content-Type: text/event-stream",
                "Transfer-Encoding: chunked",
            )
            + b"%x\r\n%s\r\n" % (len(delta("Hello")), delta("Hello"))
            + b"no number\r\n"
        ),
        UNFINISHED,
        ("Hello",),
    ),
    "broken compression": Fault(
        stream(b"no gzip", fields=("Content-Encoding: gzip",)), UNFINISHED
    ),
}

FAULTS = (
    PAGE_FAULTS | CONNECTION_FAULTS | CUT_FAULTS | EVENT_FAULTS | BYTE_FAULTS
)

LONG = event({"choices": [], "usage": {"note": "x" * 24 * 1024}})

HARMLESS = {
    "comments": (b": thinking\n\n", *HELLO),
    "blocks without data": (b"event: ping\n\nid: 7\n\n\n\n", *HELLO),
    "event: ping with data": (b"event: ping\n" + event({}), *HELLO),
    "a byte order mark": (b"\xef\xbb\xbf", *HELLO),
    "CRLF": tuple(piece.replace(b"\n", b"\r\n") for piece in HELLO),
    "CR": tuple(piece.replace(b"\n", b"\r") for piece in HELLO),
    "no space after the colon": tuple(
        piece.replace(b"data: ", b"data:") for piece in HELLO
    ),
    "chunks without choices": (
        event({"object": "chat.completion.chunk"}),
        event({"choices": [], "prompt_filter_results": []}),
        *HELLO[:-1],
        event({"usage": {"total_tokens": 3}}),
        DONE,
    ),
    "choices that are null": (
        event({"choices": None, "annotations": []}),
        *HELLO[:-1],
        event({"choices": None, "usage": {"total_tokens": 3}}),
        DONE,
    ),
    "choices without a delta": (
        event({"choices": [{"index": 0, "finish_reason": None}]}),
        *HELLO[:2],
        event({"choices": [{"index": 0, "finish_reason": "stop"}]}),
        DONE,
    ),
    "deltas that are null": (
        event({"choices": [{"index": 0, "delta": None}]}),
        *HELLO[:2],
        event({"choices": [{"delta": None, "finish_reason": "stop"}]}),
        DONE,
    ),
    "content as a list of parts": (
        chunk({"content": [{"type": "thinking", "thinking": [{}]}]}),
        chunk(
            {
                "content": [
                    {"type": "text", "text": "Hel"},
                    {"type": "text", "text": None},
                    {"type": "text", "text": "lo"},
                ]
            }
        ),
        FINISH,
        DONE,
    ),
    "content that is null next to reasoning_content": (
        chunk({"content": None, "reasoning_content": "A greeting."}),
        *HELLO,
    ),
    "no finish_reason before the end": (
        event({"choices": [{"index": 0, "delta": {"content": "Hello"}}]}),
        FINISH,
        DONE,
    ),
    "an empty finish_reason in every chunk": (
        chunk({"role": "assistant", "content": ""}, ""),
        chunk({"content": "Hello"}, ""),
        chunk({}, ""),
        DONE,
    ),
    "an error that is null": (
        delta("Hello").replace(b'{"id"', b'{"error":null,"id"'),
        FINISH,
        DONE,
    ),
    "24 KB after finish_reason": (*HELLO[:-1], LONG, DONE),
    "24 KB after finish_reason, without [DONE]": (*HELLO[:-1], LONG),
    "a finish without [DONE]": HELLO[:-1],
    "a [DONE] without a finish": (delta("Hello"), DONE),
    "a [DONE] with a trailing space": (delta("Hello"), b"data: [DONE] \n\n"),
    "an event after [DONE]": (*HELLO, b": bye\n\ndata: {\n\n"),
}
"""Pieces of unusual but complete answers, whose text is Hello."""

HARMLESS_ANSWERS = {
    **{name: stream(*pieces) for name, pieces in HARMLESS.items()},
    **{
        f"Content-Type: {content_type}": stream(
            *HELLO, content_type=content_type
        )
        for content_type in (
            "application/json",
            "application/octet-stream",
            "text/event-stream; charset=utf-8",
            None,
        )
    },
    **{
        f"cut right after [DONE], {framing}": stream(
            delta("Hello"), DONE, framing=framing, end="cut"
        )
        for framing in FRAMINGS
    },
    "gzip, although identity was requested": stream(
        *compressed(*HELLO), fields=("Content-Encoding: gzip",)
    ),
}
"""Answers from those pieces, and others that are sent in unusual ways."""

OFFICIAL_CLIENT_FAILS = {"blocks without data"}
"""The standard drops events without data. The official client parses the empty
data as JSON, and raises.
"""
