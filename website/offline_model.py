"""A language model that needs no network and no API key.

    language_model.session.mount(URL, OfflineModel(word_seconds=0.05))
    language_model.BASE_URL = URL

It is a transport adapter of `requests`, so everything else believes that it
talks to an API over HTTP. Its answers are the files in `answers/`, in English
and Chinese. Its wire format is that of the Chat Completions API, including tool
calls. It answers the user's last message, word by word.
"""

import io
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter

from sse import Event

URL = "http://offline.invalid/v1"
MODEL = "offline"
CHINESE = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
# Words as models make them: spaces lead, and Chinese goes by characters.
WORD = re.compile(rf"\s*[{CHINESE}]|\s*[^\s{CHINESE}]+|\s+")
TOPICS = {
    "markdown": r"\bmarkdown\b",
    "attack": r"\battack|\bxss\b|攻击",
    "websocket": r"websocket|compar|differ|versus|\bvs\b|区别|比较",
    "reconnect": "reconnect|retry|resume|lost|drop|last.event|重连|重新连接|断",
    "python": "python|flask|code|how (do|can|to)|example|代码|怎么|如何|例子",
    "default": "",
}
ANSWERS = {
    path.stem: path.read_text("utf-8")
    for path in Path(__file__).parent.glob("answers/*.md")
}
ARGUMENT_PIECE = re.compile(".{1,8}", re.DOTALL)


class OfflineModel(HTTPAdapter):
    """Answers GET /models and POST /chat/completions.

    word_seconds: the pause before each word of a streamed answer.
    """

    def __init__(self, word_seconds: float):
        super().__init__()
        self._word_seconds = word_seconds

    def send(self, request: PreparedRequest, **_: Any) -> Response:
        if request.url == f"{URL}/models":
            return self._respond(request, models())
        try:
            body = json.loads(request.body or "null")
            words, calls = _words(body), _tool_calls(body)
        except (ValueError, LookupError, TypeError, AttributeError):
            message = "The offline model cannot read this request."
            error = {"message": message, "type": "invalid_request_error"}
            return self._respond(request, {"error": error}, 400)
        answer = chunks if body.get("stream") else completion
        return self._respond(request, answer(body, words, calls))

    def _respond(
        self,
        request: PreparedRequest,
        answer: dict | Iterator[dict],
        status: int = 200,
    ) -> Response:
        connection = _Connection()
        if isinstance(answer, dict):
            media_type, pieces = "application/json", iter([_json(answer)])
        else:
            media_type = "text/event-stream"
            pieces = connection.paced(_events(answer), self._word_seconds)
        raw = urllib3.HTTPResponse(
            io.BufferedReader(_Body(pieces)),
            headers={"Content-Type": media_type},
            status=status,
            preload_content=False,
            connection=connection,
            sock_shutdown=connection.shutdown,
        )
        return self.build_response(request, raw)


class _Connection:
    """What `shutdown` cuts, also in the middle of a pause."""

    def __init__(self):
        self._cut = threading.Event()

    def shutdown(self, how: int) -> None:
        self._cut.set()

    def close(self) -> None:
        self._cut.set()

    def paced(self, pieces: Iterator[bytes], seconds: float) -> Iterator[bytes]:
        yield next(pieces)
        for piece in pieces:
            if self._cut.wait(seconds) if seconds else self._cut.is_set():
                raise ConnectionResetError
            yield piece


class _Body(io.RawIOBase):
    """Pieces of bytes as a file, read one at a time."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self._rest or next(self._pieces, b"")
        count = min(len(data), len(buffer))
        buffer[:count], self._rest = data[:count], data[count:]
        return count


def models() -> dict:
    model = {"id": MODEL, "object": "model", "created": 0}
    return {"object": "list", "data": [model | {"owned_by": "sse-by-example"}]}


def completion(body: dict, words: list[str], calls: list[dict]) -> dict:
    """Return a whole answer."""
    message = {"role": "assistant", "content": "".join(words), "refusal": None}
    if calls:
        message |= {"content": None, "tool_calls": calls}
    reason = "tool_calls" if calls else "stop"
    choice = {"index": 0, "message": message, "logprobs": None}
    return _base("chat.completion") | {
        "choices": [choice | {"finish_reason": reason}],
        "usage": _usage(body, words),
    }


def chunks(body: dict, words: list[str], calls: list[dict]) -> Iterator[dict]:
    """Yield the chunks of a streamed answer."""
    options = body.get("stream_options")
    wants_usage = isinstance(options, dict) and options.get("include_usage")
    base = _base("chat.completion.chunk")
    if wants_usage:
        base["usage"] = None

    def chunk(delta: dict, finish_reason: str | None = None) -> dict:
        choice = {"index": 0, "delta": delta, "logprobs": None}
        return base | {"choices": [choice | {"finish_reason": finish_reason}]}

    content = None if calls else ""
    yield chunk({"role": "assistant", "content": content, "refusal": None})
    for index, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        first = call | {"function": call["function"] | {"arguments": ""}}
        yield chunk({"tool_calls": [{"index": index, **first}]})
        for piece in ARGUMENT_PIECE.findall(arguments):
            function = {"arguments": piece}
            yield chunk(
                {"tool_calls": [{"index": index, "function": function}]}
            )
    if not calls:
        yield from (chunk({"content": word}) for word in words)
    yield chunk({}, "tool_calls" if calls else "stop")
    if wants_usage:
        yield base | {"choices": [], "usage": _usage(body, words)}


def _events(values: Iterator[dict]) -> Iterator[bytes]:
    for value in values:
        yield Event(value).encode()
    yield Event("[DONE]").encode()


def _json(value: dict) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _base(kind: str) -> dict:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": MODEL,
        "system_fingerprint": None,
    }


def _usage(body: dict, words: list[str]) -> dict:
    asked, answered = len(WORD.findall(_prompt(body))), len(words)
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
    }


def _text(message: dict) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return " ".join(text for text in texts if isinstance(text, str))


def _prompt(body: dict) -> str:
    """Return the text of the user's last message."""
    prompts = [one for one in body["messages"] if one.get("role") == "user"]
    return _text(prompts[-1]) if prompts else ""


def _words(body: dict) -> list[str]:
    """Return the answer in words: what the tools returned, or a text."""
    messages, results = body["messages"], []
    while messages and messages[-1].get("role") == "tool":
        *messages, message = messages
        results.insert(0, f"The result is {_text(message)}.")
    return WORD.findall(" ".join(results) or _answer(_prompt(body)))


def _answer(prompt: str) -> str:
    language = "zh" if re.search(f"[{CHINESE}]", prompt) else "en"
    for topic, pattern in TOPICS.items():
        if re.search(pattern, prompt, re.IGNORECASE):
            return ANSWERS[f"{topic}.{language}"]
    raise AssertionError("the last pattern matches every prompt")


def _tool_calls(body: dict) -> list[dict]:
    """Return a call of each tool whose name the user's message mentions."""
    if body["messages"][-1].get("role") != "user":
        return []
    prompt, calls = _prompt(body), []
    for tool in body.get("tools") or ():
        name = tool["function"]["name"]
        words = set(re.split("[_-]", name)) - {"get", "the", "of"}
        if any(re.search(rf"\b{word}", prompt, re.I) for word in words):
            function = {
                "name": name,
                "arguments": json.dumps(_arguments(tool["function"], prompt)),
            }
            id = f"call_{secrets.token_hex(12)}"
            calls.append({"id": id, "type": "function", "function": function})
    return calls


def _arguments(function: dict, prompt: str) -> dict:
    """Fill the parameters in: numbers with the numbers of the prompt, texts
    with its capitalised words.
    """
    found = re.findall(r"-?\d+(?:\.\d+)?", prompt)
    numbers = [float(one) if "." in one else int(one) for one in found]
    names = re.findall(r"(?<=\s)[A-Z][\w-]*", prompt)
    filled = {}
    parameters = function.get("parameters") or {}
    for name, schema in (parameters.get("properties") or {}).items():
        match schema.get("type"):
            case "array":
                filled[name] = numbers
            case "number" | "integer" if numbers:
                filled[name] = numbers.pop(0)
            case "string" if names:
                filled[name] = names.pop(0)
    return filled
