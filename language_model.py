"""Stream answers from an OpenAI-compatible API (Chat Completions).

    answer = ask([{"role": "user", "content": "What is an event stream?"}])
    for text in deltas(answer):
        print(text, end="")

The environment sets OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL.
Copy this file together with `event_source.py`; it needs requests.
"""

import json
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from http.cookiejar import DefaultCookiePolicy

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from event_source import parse_events

BASE_URL = "https://api.openai.com/v1"  # unless OPENAI_BASE_URL is set
MODEL = "gpt-5.4-mini"  # unless OPENAI_MODEL or the request names another
CONNECT_SECONDS = 5
SILENCE_SECONDS = 60.0  # an answer that pauses for longer counts as failed
BROKEN_OFF = "The language model's answer broke off."
REASONS = {401: ", wrong API key", 429: ", too many requests"}

# Stores no cookies. Reuses a connection only if its response was read to the
# end, but `deltas` stops at `[DONE]`. A full pool would log warnings.
session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=1000))
session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=1000))
session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))


class ModelError(Exception):
    """The answer is missing or incomplete. The message is safe to show."""

    def __init__(self, message: str, status: int = 502):
        super().__init__(message)
        self.status = status


class Answer:
    """A request and its response."""

    def __init__(self, path: str, body: dict | None = None):
        self._path, self._body = path, body
        self._response, self._is_closed = None, False

    def open(self) -> requests.Response:
        """Send the request. Raises ModelError if there is no response."""
        base_url = os.environ.get("OPENAI_BASE_URL") or BASE_URL
        headers = {"Accept-Encoding": "identity"}
        if key := os.environ.get("OPENAI_API_KEY", "").strip():
            headers["Authorization"] = f"Bearer {key}"
        try:
            self._response = session.request(
                "GET" if self._body is None else "POST",
                base_url.rstrip("/") + self._path,
                json=self._body,
                headers=headers,
                auth=lambda prepared: prepared,  # or requests would use .netrc
                stream=True,
                allow_redirects=False,
                timeout=(CONNECT_SECONDS, SILENCE_SECONDS),
            )
        except requests.ReadTimeout:
            raise ModelError("The language model is silent.", 504) from None
        except (OSError, ValueError, HTTPError):  # may contain the key
            raise ModelError("The language model is unreachable.") from None
        return self._response

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body as it arrives. Raises ModelError if it breaks off."""
        read = self._response.raw.read1  # iter_content may wait for the end
        try:
            while not self._is_closed and (data := read(65536, True)):
                yield data
        except ReadTimeoutError:
            raise ModelError("The language model fell silent.", 504) from None
        # `close` in another thread makes http.client raise AttributeError.
        except (HTTPError, OSError, ValueError, AttributeError):
            raise ModelError(BROKEN_OFF) from None

    def close(self) -> None:
        """Close the connection, which wakes a thread that reads it. Without a
        response, it stays open until headers arrive, or SILENCE_SECONDS pass.
        """
        self._is_closed = True
        if self._response is not None:
            for end in (self._response.raw.shutdown, self._response.close):
                with suppress(OSError, RuntimeError, ValueError):
                    end()  # fails if the response has ended, or is being read


def ask(messages: list, /, **options: object) -> Answer:
    """Return a streamed answer. Reading it sends the request."""
    body = {"model": MODEL, "messages": messages, "stream": True} | options
    body["model"] = os.environ.get("OPENAI_MODEL") or body["model"]
    return Answer("/chat/completions", body)


def tool(name: str, properties: dict) -> dict:
    """Describe a function for `ask(..., tools=...)`, with JSON Schema."""
    parameters = {"type": "object", "properties": properties}
    function = {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


def deltas(answer: Answer) -> Iterator[str]:
    """Request the answer, and yield its text as it arrives."""
    return (text for one in message_deltas(answer) if (text := one["content"]))


def message_deltas(answer: Answer) -> Iterator[dict]:
    """Request the answer, and yield each delta, with the same four fields.

    `content`, `reasoning` and `reasoning_content` are strings. `tool_calls` is
    a list of pieces: an index, a call with empty arguments, more arguments.
    Raises ModelError if the API refuses or fails, or if the answer breaks off.
    Only `[DONE]` or a finish_reason proves that an answer is complete.
    """
    is_complete, indexes = False, {}
    with closing(answer):
        if (status := answer.open().status_code) != 200:
            reason = f"{status}{REASONS.get(status, '')}"
            raise ModelError(f"The language model refused ({reason}).")
        try:
            for event in parse_events(answer):
                if event.data.startswith("[DONE]"):
                    return
                is_error = event.event == "error"  # its data may be any text
                chunk = {} if is_error else json.loads(event.data)
                choices = chunk.get("choices") or ()
                reasons = [choice.get("finish_reason") for choice in choices]
                kinds = (chunk.get("object"), *reasons)
                if is_error or "error" in kinds or chunk.get("error"):
                    raise ModelError("The language model reported an error.")
                is_complete = is_complete or any(reasons)
                for choice in choices:
                    yield _normalized(choice.get("delta") or {}, indexes)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ModelError("The language model sent a bad event.") from None
    if not is_complete:
        raise ModelError(BROKEN_OFF)


def _normalized(sent: dict, indexes: dict) -> dict:
    """Return a delta that has the same fields, whichever API sent it."""
    delta = {"tool_calls": []}
    for name in ("reasoning", "reasoning_content", "content"):
        text = sent.get(name) or ""
        if isinstance(text, list):  # a list of parts
            text = "".join(part.get("text") or "" for part in text)
        delta[name] = "" + text
    if delta["reasoning_content"]:  # some APIs send both
        delta["reasoning"] = ""
    for call in sent.get("tool_calls") or ():
        # Gemini sends no index. Ollama may send 0 for all calls, but with ids.
        id, number = call.get("id"), call.pop("index", None)
        index = indexes.setdefault(id or number, len(indexes))
        indexes[number] = index  # the next pieces may have no id
        function = {"name": ""} | (call.get("function") or {})
        arguments = "" + (function.get("arguments") or "")
        call["function"] = function | {"arguments": ""}
        call |= {"id": "" + (id or f"call_{index}"), "type": "function"}
        delta["tool_calls"].append((index, call, arguments))
    return delta
