"""Answers to a chat, as OpenAI-style event streams.

With OPENAI_API_KEY and/or OPENAI_BASE_URL in the environment, the answers are
that upstream's, from its model OPENAI_MODEL. With neither, a small model of
ours answers offline, in the same wire format, so that a classroom needs no key.

A call is opened and read in one thread, and can be cut short from another:

    call = new_call("/chat/completions", chat("What is an event stream?"))
    events = keep_alive(answer(call), seconds=0.5, interrupt=call.cut)

where the generator `answer` iterates over `deltas(call)`, which is text.
`relay(call)` is a whole response instead: the bytes of the answer as they come.
"""

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from flask import Response, abort, current_app, request
from requests.adapters import HTTPAdapter

from sse import (
    KEEP_ALIVE,
    KEEP_ALIVE_SECONDS,
    Event,
    EventTooLarge,
    is_cross_site,
    json_object,
    keep_alive,
    parse_events,
    parse_object,
)

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-5.4-mini"
OFFLINE_MODEL = "offline"
CHINESE = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"

CONNECT_SECONDS = 5
SILENCE_SECONDS = 60
WORD_SECONDS = 0.05
ATTENTION_SECONDS = 0.5

FINISH_SECONDS = 0.2
"""How long the end of a body may take once its last event has come."""

MAX_PROMPT_CHARACTERS = 4000
MAX_PROMPT_BYTES = 64 * 1024

RECONNECT_MS = 24 * 60 * 60 * 1000
"""The reconnection time of a stream that may cost money. Before its first id a
reconnect looks like a new prompt, to be paid for again: put it off for a day.
"""

MIN_SECRET_BYTES = 8
"""Shorter keys are the dummies of local models, and words of answers too."""

CLIENT_LEFT = 499
BROKEN_OFF = "The language model's answer broke off in the middle."
BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

EVENT_ENDS = (b"\n\n", b"\r\r", b"\r\n\r\n")
END_BYTES = 16 * 1024
"""How much of a relayed answer is kept, to see how it ended."""

WHOLE = re.compile(rb'[\r\n]data: ?\[DONE\]|"finish_reason"\s*:\s*"')
"""What only the end of a whole answer holds: a cut can look like an end."""

MAX_WHOLE_BYTES = 16 * 1024 * 1024
"""The largest answer that is relayed whole and not as an event stream."""


class ModelError(Exception):
    """There is no answer, or not all of it. Its text is safe to show."""

    def __init__(self, sentence: str, status: int = 502):
        super().__init__(sentence)
        self.status = status


def query_prompt() -> str:
    """Return the prompt in the request's query; without one, abort with 400."""
    return _checked(request.args.get("prompt"))


def json_prompt() -> str:
    """Return the prompt in the request's JSON; without one, abort with 400."""
    return _checked(json_object(MAX_PROMPT_BYTES).get("prompt"))


def _checked(prompt: Any) -> str:
    is_text = isinstance(prompt, str)
    if not is_text or not 1 <= len(prompt) <= MAX_PROMPT_CHARACTERS:
        abort(400, f"prompt must have 1 to {MAX_PROMPT_CHARACTERS} characters.")
    return prompt


def chat(prompt: str) -> dict:
    """Return the request for a streamed answer to one prompt."""
    return {"messages": [{"role": "user", "content": prompt}], "stream": True}


def parse_chat(text: bytes) -> dict | None:
    """Return the chat that a client sent, None if no model could answer it."""
    body = parse_object(text)
    messages = body and body.get("messages")
    if not isinstance(messages, list) or messages == []:
        return None
    return body if all(isinstance(one, dict) for one in messages) else None


def new_call(
    path: str, body: dict | None = None
) -> "UpstreamCall | OfflineCall":
    """Return a call, not open yet, that posts `body` or, without one, gets.

    The app's UPSTREAM_SILENCE_SECONDS says how long an upstream may say
    nothing, OFFLINE_WORD_SECONDS how fast the offline model writes.
    """
    setting = current_app.config.get
    if has_upstream():
        return UpstreamCall(
            path, body, setting("UPSTREAM_SILENCE_SECONDS", SILENCE_SECONDS)
        )
    return OfflineCall(
        path, body, setting("OFFLINE_WORD_SECONDS", WORD_SECONDS)
    )


def attention_seconds() -> float:
    """Return the seconds after which to look whether the reader has left.

    Shorter than a keep-alive needs: an answer that nobody reads costs money,
    and an event stream learns that its reader has left at the second write.
    """
    return min(ATTENTION_SECONDS, _keep_alive_seconds())


def _keep_alive_seconds() -> float:
    return current_app.config.get("KEEP_ALIVE_SECONDS", KEEP_ALIVE_SECONDS)


def has_upstream() -> bool:
    """Tell whether an upstream answers, so that an answer may cost money."""
    return bool(
        os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")
    )


def refuse_other_sites() -> None:
    """Answer 403 where the page of another site would spend money.

    For `Blueprint.before_request` of a lesson that asks the model.
    """
    if has_upstream() and is_cross_site():
        abort(
            403,
            "Pages of other sites may not use this server's language model.",
        )


def deltas(call: "UpstreamCall | OfflineCall") -> Iterator[str]:
    """Open the call and yield the text of its answer, piece by piece.

    Raises ModelError unless the answer comes, and comes whole.
    """
    with closing(call):
        call.open()
        if call.status != 200:
            raise ModelError(_refusal(call.status))
        if not call.is_event_stream:
            raise ModelError("The language model's answer is no event stream.")
        finished = False
        try:
            for event in parse_events(call):
                if event.data == "[DONE]":
                    call.finish()
                    return
                chunk = json.loads(event.data)
                if chunk.get("error"):
                    raise ModelError("The language model failed in mid-answer.")
                for choice in chunk["choices"]:
                    finished = finished or choice.get("finish_reason")
                    if text := choice["delta"].get("content"):
                        yield "" + text  # a TypeError for all but text
        except EventTooLarge as error:
            raise ModelError(
                f"The language model went wrong: {error}"
            ) from None
        except BROKEN:
            raise ModelError(
                "The language model sent a broken event."
            ) from None
        if not finished:
            raise ModelError(BROKEN_OFF)


def _refusal(status: int) -> str:
    if status in (401, 403):
        return f"The language model refused this server's API key ({status})."
    if status == 429:
        return "The language model was asked too often, or for too much (429)."
    return f"The language model answered with status {status}."


def relay(call: "UpstreamCall | OfflineCall") -> Response | tuple[dict, int]:
    """Return the call's own answer: status, type, and bytes as they come.

    The call is cut when the client leaves, also before the answer has begun.
    Without any answer it is 502, or 504 after a silence.
    """

    def source() -> Iterator[bytes]:
        with closing(call):
            call.open()
            yield b""
            yield from call

    environ = request.environ
    client = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    # A server that stops may end it as one, though it has not begun.
    environ["sse.is_event_stream"] = call.wants_event_stream
    tick = attention_seconds()
    items = keep_alive(source(), tick, interrupt=call.cut)
    items = _while_attended(items, client)
    try:
        next(item for item in items if item is not KEEP_ALIVE)
        if call.is_event_stream:
            body = _relayed_events(items, round(_keep_alive_seconds() / tick))
        else:
            body = _whole(items)
    except ModelError as error:
        items.close()
        return error_response(str(error), error.status)
    response = Response(body, call.status, call.headers)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(items.close)
    return response


def error_response(sentence: str, status: int) -> tuple[dict, int]:
    """Return an error in the official API's shape, for a view to return."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": sentence, "type": kind, "param": None, "code": None}
    return {"error": error}, status


def _while_attended(
    items: Iterator[bytes], client: socket.socket | None
) -> Iterator[bytes]:
    """Pass the items on, until the client has closed its connection.

    Before a response has begun there is nothing to write, and so no other way
    to learn of it than to look at the socket, where the server shows it. As
    in nginx, a client that closes its sending half alone is taken to leave.
    """
    with closing(items):
        for item in items:
            if client is not None and _has_closed(client):
                raise ModelError("The client has left.", CLIENT_LEFT)
            yield item


def _has_closed(client: socket.socket) -> bool:
    timeout = client.gettimeout()
    client.settimeout(0)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, ValueError):  # nothing to read, or TLS
        return False
    except OSError:
        return True
    finally:
        client.settimeout(timeout)


def _relayed_events(items: Iterator[bytes], ticks: int) -> Iterator[bytes]:
    """Pass the bytes on, with a comment between events at every `ticks` silent
    ticks, and with the error, as an event, where the answer breaks off.
    """
    end, silent_ticks = b"\n\n", 0
    try:
        yield b""  # sends the headers, which leave with the first write
        for item in items:
            if item is not KEEP_ALIVE:
                end, silent_ticks = (end + item)[-END_BYTES:], 0
                yield item
                continue
            silent_ticks += 1
            if silent_ticks % ticks == 0 and end.endswith(EVENT_ENDS):
                yield KEEP_ALIVE
        if not WHOLE.search(end):
            raise ModelError(BROKEN_OFF)
    except ModelError as error:
        if error.status != CLIENT_LEFT:
            yield b"" if end.endswith(EVENT_ENDS) else b"\n\n"
            body, _ = error_response(str(error), error.status)
            yield Event(body).encode()


def _whole(items: Iterator[bytes]) -> bytes:
    body = bytearray()
    for item in items:
        if item is not KEEP_ALIVE:
            body += item
        if len(body) > MAX_WHOLE_BYTES:
            raise ModelError("The language model's answer is too large.")
    return bytes(body)


class UpstreamCall:
    """A call to the upstream. `open`, iterate and `close` in one thread.

    After `open`: `status`, `headers` (those to pass on), `is_event_stream`.
    Iterating yields the bytes of the body as they arrive. Both raise
    ModelError when there is no answer or not all of it.
    """

    def __init__(self, path: str, body: dict | None, silence_seconds: float):
        if body is not None:
            model = os.environ.get("OPENAI_MODEL") or DEFAULT_MODEL
            body = {"model": model} | body
        self.wants_event_stream = bool(body and body.get("stream"))
        self._path, self._body, self._silence = path, body, silence_seconds
        self._response: requests.Response | None = None
        self._socket: socket.socket | None = None
        self._is_cut = False

    def open(self) -> None:
        base_url = os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        _this_thread.call = self
        try:
            self._response = _session.request(
                "GET" if self._body is None else "POST",
                base_url.rstrip("/") + self._path,
                json=self._body,
                headers={"Accept-Encoding": "identity"},
                auth=_authorize,
                stream=True,
                allow_redirects=False,
                timeout=(CONNECT_SECONDS, self._silence),
            )
        except requests.ReadTimeout:
            raise ModelError("The language model stays silent.", 504) from None
        except (OSError, urllib3.exceptions.HTTPError):
            raise ModelError("The language model cannot be reached.") from None
        self.status = self._response.status_code
        if 300 <= self.status < 400:
            raise ModelError(
                "The language model's address redirects elsewhere."
            )
        key = _api_key().encode()
        self.headers = {
            name: b"".join(_without(key, [value.encode()])).decode()
            for name in ("Content-Type", "Retry-After")
            if (value := self._response.headers.get(name))
        }
        media_type = self.headers.get("Content-Type", "").partition(";")[0]
        self.is_event_stream = media_type.strip().lower() == "text/event-stream"

    def __iter__(self) -> Iterator[bytes]:
        return _without(_api_key().encode(), self._read())

    def _read(self) -> Iterator[bytes]:
        # Not iter_content, which holds a body back that is not chunked.
        read = self._response.raw.read1
        try:
            while data := read(65536, decode_content=True):
                yield data
            self._socket = None
        except urllib3.exceptions.ReadTimeoutError:
            raise ModelError("The language model fell silent.", 504) from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            raise ModelError(BROKEN_OFF) from None

    def finish(self) -> None:
        """Read once more after the last event, for at most a moment.

        A connection whose answer has been read whole serves the next call too.
        """
        with suppress(ModelError):
            self._socket.settimeout(FINISH_SECONDS)
            next(self._read(), None)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()

    def cut(self) -> None:
        """Wake and end the reading thread, from any other."""
        self._is_cut = True
        sock = self._socket
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _answers_on(self, sock: socket.socket) -> None:
        self._socket = sock
        if self._is_cut:
            self.cut()


# The call that is being opened here; a connection knows of no other way.
_this_thread = threading.local()


class _TellingConnection:
    def getresponse(self):
        _this_thread.call._answers_on(self.sock)
        return super().getresponse()


class _Adapter(HTTPAdapter):
    """Tells a call its socket: closing a response would wake nobody."""

    def get_connection_with_tls_context(self, *args, **kwargs):
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        if not issubclass(pool.ConnectionCls, _TellingConnection):
            bases = (_TellingConnection, pool.ConnectionCls)
            pool.ConnectionCls = type("Connection", bases, {})
        return pool


# One for all callers: it keeps connections to the upstream, and no cookies.
_session = requests.Session()
_session.mount("http://", _Adapter(pool_maxsize=100))
_session.mount("https://", _Adapter(pool_maxsize=100))
_session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))


def _api_key() -> str:
    return os.environ.get("OPENAI_API_KEY", "").strip()


def _authorize(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    """Put the key in, where no .netrc overrides it and no repr shows it."""
    if _api_key():
        prepared.headers["Authorization"] = f"Bearer {_api_key()}"
    return prepared


def _without(secret: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Blot the secret out of the chunks, also where it spans several."""
    if len(secret) < MIN_SECRET_BYTES:
        yield from chunks
        return
    held = b""
    for chunk in chunks:
        held = (held + chunk).replace(secret, b"***")
        start = next(
            n for n in range(len(secret))[::-1] if held.endswith(secret[:n])
        )
        end = len(held) - start
        yield held[:end]
        held = held[end:]
    yield held


class OfflineCall:
    """A call to the offline model, with the interface of `UpstreamCall`.

    The answer depends on the last message of the user and is in its language,
    English or Chinese.
    """

    def __init__(self, path: str, body: dict | None, word_seconds: float):
        self.wants_event_stream = bool(body and body.get("stream"))
        self._path, self._body, self._word_seconds = path, body, word_seconds
        self._cut = threading.Event()

    def open(self) -> None:
        self.status = 200
        self.is_event_stream = self.wants_event_stream
        media_type = (
            "text/event-stream" if self.is_event_stream else "application/json"
        )
        self.headers = {"Content-Type": media_type}

    def __iter__(self) -> Iterator[bytes]:
        if self._path == "/models":
            model = {"id": OFFLINE_MODEL, "object": "model", "created": 0}
            models = [model | {"owned_by": "sse-by-example"}]
            yield json.dumps({"object": "list", "data": models}).encode()
        elif self.is_event_stream:
            for chunk in self._chunks():
                yield Event(chunk).encode()
            yield Event("[DONE]").encode()
        else:
            yield json.dumps(self._completion()).encode()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def cut(self) -> None:
        self._cut.set()

    def _chunks(self) -> Iterator[dict]:
        options = self._body.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage")
        base = _answer_base("chat.completion.chunk")
        if wants_usage:
            base["usage"] = None

        def chunk(delta: dict, finish_reason: str | None = None) -> dict:
            choice = {"index": 0, "delta": delta, "logprobs": None}
            return base | {
                "choices": [choice | {"finish_reason": finish_reason}]
            }

        words = _words(_answer(_prompt(self._body)))
        yield chunk({"role": "assistant", "content": "", "refusal": None})
        for word in words:
            if self._word_seconds and self._cut.wait(self._word_seconds):
                raise ModelError(BROKEN_OFF)
            yield chunk({"content": word})
        yield chunk({}, "stop")
        if wants_usage:
            yield base | {"choices": [], "usage": _usage(self._body, words)}

    def _completion(self) -> dict:
        words = _words(_answer(_prompt(self._body)))
        message = {
            "role": "assistant",
            "content": "".join(words),
            "refusal": None,
        }
        choice = {"index": 0, "message": message, "logprobs": None}
        return _answer_base("chat.completion") | {
            "choices": [choice | {"finish_reason": "stop"}],
            "usage": _usage(self._body, words),
        }


def _answer_base(kind: str) -> dict:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": OFFLINE_MODEL,
        "system_fingerprint": None,
    }


def _usage(body: dict, words: list[str]) -> dict:
    asked, answered = len(_words(_prompt(body))), len(words)
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
    }


def _prompt(body: dict) -> str:
    """Return the text of the user's last message."""
    for message in reversed(body["messages"]):
        if message.get("role") == "user":
            content = message.get("content")
            parts = (
                content if isinstance(content, list) else [{"text": content}]
            )
            texts = [
                part.get("text") for part in parts if isinstance(part, dict)
            ]
            return " ".join(text for text in texts if isinstance(text, str))
    return ""


def _words(text: str) -> list[str]:
    """Split text as models do: spaces lead, and Chinese goes by characters."""
    return re.findall(rf"\s*[{CHINESE}]|\s*[^\s{CHINESE}]+|\s+", text)


def _answer(prompt: str) -> str:
    chinese = re.search(f"[{CHINESE}]", prompt) is not None
    for words, answers in ANSWERS.items():
        if re.search(words, prompt, re.IGNORECASE):
            return answers[chinese]
    return DEFAULT_ANSWER[chinese]


DEFAULT_ANSWER = (
    """\
**Server-sent events** are a one-way street from the server to the browser.

The browser opens an ordinary HTTP request, and the server simply never \
finishes its answer:

1. The response has the type `text/event-stream`.
2. Each event is a few lines of text, such as `data: Hello`.
3. A blank line ends the event, and the browser dispatches it.

If the connection drops, the browser comes back *by itself*.
""",
    """\
**服务器发送事件**是一条从服务器到浏览器的单行道。

浏览器发出一个普通的 HTTP 请求，而服务器一直不把响应写完：

1. 响应的类型是 `text/event-stream`。
2. 每个事件是几行文本，例如 `data: 你好`。
3. 一个空行结束事件，浏览器随即派发它。

连接断开以后，浏览器会*自己*重新连接。
""",
)

EXAMPLE = """\
```python
@app.get("/clock")
def clock():
    def ticks():
        while True:
            yield f"data: {time.ctime()}\\n\\n"
            time.sleep(1)

    return Response(ticks(), mimetype="text/event-stream")
```
"""

ATTACK = """\
{}

An image <img src="x" onerror="alert('img')"> and a drawing \
<svg onload="alert('svg')"><circle r="9"/></svg> with handlers.

[A link](javascript:alert('link')), [one more](JaVaScRiPt&colon;alert(1)) and \
<a href="https://attacker.example/" onclick="alert('a')">a third</a>.

![A picture](https://attacker.example/pixel.png?what=the+page+knows)

<scr<script>ipt>alert('script')</scr</script>ipt>

<img src="y" onerror ="alert('a tag without an end')"

<iframe srcdoc="<script>parent.alert('frame')</script>"></iframe>

<p style="position: fixed; inset: 0" id="state">Not our *page*</p>

And a last word, to show that the answer goes on.
"""

ANSWERS = {
    r"\bmarkdown\b": (
        f"""\
## What an answer may hold

Plain text with *emphasis*, **more emphasis**, ~~second thoughts~~, `code` and \
[links](https://html.spec.whatwg.org/multipage/server-sent-events.html).

1. Lists with numbers,
2. and within them
   - lists without,
   - to any depth.

> Quotations, too.

| field | in bytes | in an event |
|:---|---:|:---:|
| `data` | 6 | yes |
| `retry` | 7 | no |

{EXAMPLE}
---

An answer is *never* finished before its last token, and readable long before.
""",
        f"""\
## 一个回答里可以有什么

普通文本，*强调*，**更强的强调**，~~删去的话~~，`代码`，还有\
[链接](https://html.spec.whatwg.org/multipage/server-sent-events.html)。

1. 有序列表，
2. 里面还可以有
   - 无序列表，
   - 一层又一层。

> 也可以有引用。

| 字段 | 字节 | 在事件里 |
|:---|---:|:---:|
| `data` | 6 | 是 |
| `retry` | 7 | 否 |

{EXAMPLE}
---

最后一个词元到来之前，回答*从未*写完，却早已可读。
""",
    ),
    r"\battack|\bxss\b|攻击": (
        ATTACK.format("Nothing on this page may run, load or look like ours."),
        ATTACK.format("这个页面上的任何内容都不得运行、加载或冒充我们。"),
    ),
    r"websocket|compar|differ|versus|\bvs\b|区别|比较": (
        """\
## Event streams or WebSockets?

| | Event stream | WebSocket |
|---|---|---|
| direction | server to browser | both ways |
| protocol | HTTP | its own, after an upgrade |
| reconnecting | built in | yours to write |
| data | text | text and bytes |

Choose an **event stream** when the server talks and the page listens. \
Choose a **WebSocket** when both talk all the time.
""",
        """\
## 事件流还是 WebSocket？

| | 事件流 | WebSocket |
|---|---|---|
| 方向 | 服务器到浏览器 | 双向 |
| 协议 | HTTP | 升级后的独立协议 |
| 重新连接 | 内置 | 自己实现 |
| 数据 | 文本 | 文本和二进制 |

服务器说、页面听，就用**事件流**；双方一直对话，才用 **WebSocket**。
""",
    ),
    r"reconnect|retry|resume|lost|drop|last.event|重连|重新连接|断": (
        """\
A browser **reconnects by itself**, and a good server lets it go on where it \
was.

- Give every event an `id`. The browser remembers the last one.
- When it comes back, it sends that id in the `Last-Event-ID` header.
- Start after that id, and no event is missed and none comes twice.
- Send `retry: 1000` to make it wait one second.

To stop it for good, answer with status `204`.
""",
        """\
浏览器会**自动重新连接**，好的服务器让它从断点继续。

- 给每个事件一个 `id`，浏览器会记住最后一个。
- 重新连接时，它用 `Last-Event-ID` 请求头送回这个值。
- 从这个值之后开始，就不会漏掉，也不会重复。
- 发送 `retry: 1000`，让它等待一秒钟。

想让它彻底停下来，就回答状态码 `204`。
""",
    ),
    r"python|flask|code|how (do|can|to)|example|代码|怎么|如何|例子": (
        f"""\
In **Flask**, a generator is all it takes:

{EXAMPLE}
Every `yield` reaches the browser at once. In the page, one line listens: \
`new EventSource("/clock").onmessage = (event) => console.log(event.data);`
""",
        f"""\
在 **Flask** 里，一个生成器就够了：

{EXAMPLE}
每次 `yield` 都会立刻送达浏览器。页面里只要一行：\
`new EventSource("/clock").onmessage = (event) => console.log(event.data);`
""",
    ),
}
