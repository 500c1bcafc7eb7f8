"""A language model that needs no network and no API key.

    language_model.session.mount(URL, OfflineModel(word_seconds=0.05))
    language_model.BASE_URL = URL

It is a transport adapter for `requests`, so all other code works as it does
with an API over HTTP. It speaks the official wire format, tool calls included.
`offline_answers.py` chooses the answers.
"""

import io
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import urllib3
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter

from sse import Event
from website.offline_answers import WORD, answer_to, last_prompt

URL = "http://offline.invalid/v1"
MODEL = {"id": "offline", "object": "model", "created": 0}
MODELS = {"object": "list", "data": [MODEL | {"owned_by": "sse-by-example"}]}

ARGUMENTS_PIECE = re.compile(".{1,8}")


class OfflineModel(HTTPAdapter):
    """Answers `GET /models` and `POST /chat/completions`.

    word_seconds: the pause after each piece of a streamed answer.
    """

    def __init__(self, word_seconds: float):
        super().__init__()
        self._word_seconds = word_seconds

    def send(self, request: PreparedRequest, **_: Any) -> Response:
        route = f"{request.method} {request.url.removeprefix(URL)}"
        if route == "GET /models":
            return self._respond(request, 200, MODELS)
        if route != "POST /chat/completions":
            return self._respond(request, 404, error(f"No such URL: {route}"))
        try:
            body = json.loads(request.body)
            answer = completion(body)
        # A request can be invalid in too many ways to check for each.
        except (ValueError, LookupError, TypeError, AttributeError):
            sentence = "The offline model cannot read this request."
            return self._respond(request, 400, error(sentence))
        if not body.get("stream"):
            return self._respond(request, 200, answer)
        options = body.get("stream_options")
        with_usage = isinstance(options, dict) and options.get("include_usage")
        return self._respond(request, 200, stream(answer, with_usage))

    def _respond(
        self, request: PreparedRequest, status: int, body: dict | Iterator
    ) -> Response:
        media_type = "text/event-stream"
        if isinstance(body, dict):
            media_type = "application/json"
            body = iter([json.dumps(body).encode()])
        arriving = _ArrivingBody(body, self._word_seconds)
        raw = urllib3.HTTPResponse(
            arriving,
            headers={"Content-Type": media_type},
            status=status,
            preload_content=False,
            connection=arriving,  # without one, shutdown() raises
            sock_shutdown=arriving.shutdown,
        )
        return self.build_response(request, raw)


class _ArrivingBody(io.RawIOBase):
    """A file whose pieces arrive `seconds` apart. Each read returns one piece.

    `shutdown` and `close` may be called from another thread. They end the
    pause, and the read fails as if the connection had been reset.
    """

    def __init__(self, pieces: Iterator[bytes], seconds: float):
        self._cut = threading.Event()
        self._arriving, self._rest = _arrive(pieces, seconds, self._cut), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self._rest or next(self._arriving, b"")
        size = min(len(data), len(buffer))
        buffer[:size], self._rest = data[:size], data[size:]
        return size

    read1 = io.RawIOBase.read

    def shutdown(self, how: int) -> None:
        self._cut.set()

    def close(self) -> None:
        self._cut.set()
        super().close()


# Not a method: a body that its own generator refers to would be freed late.
def _arrive(
    pieces: Iterator[bytes], seconds: float, cut: threading.Event
) -> Iterator[bytes]:
    pause = 0.0
    for piece in pieces:
        if cut.wait(pause):
            raise ConnectionResetError("The connection has been closed.")
        yield piece
        pause = seconds


def error(message: str) -> dict:
    """Return an error in the format of the official API."""
    about = {"message": message, "type": "invalid_request_error"}
    return {"error": about | {"param": None, "code": None}}


def completion(body: dict) -> dict:
    """Return the complete answer to the body of a request."""
    message = answer_to(body["messages"], body.get("tools") or ())
    reason = "tool_calls" if "tool_calls" in message else "stop"
    choice = {"index": 0, "message": message, "logprobs": None}
    asked = len(WORD.findall(last_prompt(body["messages"])))
    answered = len(list(deltas(message))) - 1  # the first one is the role
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL["id"],
        "system_fingerprint": None,
        "choices": [choice | {"finish_reason": reason}],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
        },
    }


def stream(answer: dict, with_usage: bool) -> Iterator[bytes]:
    """Yield a complete answer as events, one for each piece."""
    base = answer | {"object": "chat.completion.chunk"}
    usage, (choice,) = base.pop("usage"), base.pop("choices")
    if with_usage:
        base["usage"] = None

    def event(delta: dict, reason: str | None = None) -> bytes:
        part = {"index": 0, "delta": delta, "logprobs": None}
        chunk = base | {"choices": [part | {"finish_reason": reason}]}
        return Event(chunk).encode()

    for delta in deltas(choice["message"]):
        yield event(delta)
    end = event({}, choice["finish_reason"])
    if with_usage:
        end += Event(base | {"choices": [], "usage": usage}).encode()
    yield end + Event("[DONE]").encode()


def deltas(message: dict) -> Iterator[dict]:
    """Yield a message in pieces: its role, its words, then its tool calls."""
    text, calls = message["content"], message.get("tool_calls", ())
    start = {"role": "assistant", "content": None if calls else ""}
    yield start | {"refusal": None}
    for word in WORD.findall(message.get("reasoning_content", "")):
        yield {"reasoning_content": word}
    for word in WORD.findall(text or ""):
        yield {"content": word}
    for index, call in enumerate(calls):
        function = call["function"]
        named = {"function": function | {"arguments": ""}}
        yield {"tool_calls": [{"index": index} | call | named]}
        for piece in ARGUMENTS_PIECE.findall(function["arguments"]):
            more = {"index": index, "function": {"arguments": piece}}
            yield {"tool_calls": [more]}
