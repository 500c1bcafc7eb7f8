"""Relay: an OpenAI-compatible Chat Completions endpoint

Any client that speaks Chat Completions can use your server, without
your API key. The server forwards the request with its own key. It
returns the answer byte by byte, as it arrives. Clients that default
to `/v1/responses`, the newer API, get 404.

Notice: the relay does not parse the stream, so it supports whatever
the API supports. During silence it sends a comment, so no proxy
closes the connection. If the answer breaks off, it sends an error
event. Every other error has the JSON format that OpenAI clients
expect. The relay limits each request, because you pay for it.

Try: with `flask run --reload`, change `NOTICE_SECONDS = 0.5` to
0.01, save, and open the Wire panel. Comments fill every pause
between two words.

    curl -N http://127.0.0.1:5000/v1/chat/completions --json \
    '{"messages":[{"role":"user","content":"Hi"}],"stream":true}'
"""

import json
import os
import re
from contextlib import closing
from itertools import chain

from flask import Blueprint, Response, abort
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from checks import json_object, same_origin_only
from language_model import BROKEN_OFF, Answer, ModelError, ask
from sse import Event, keep_alive

MAX_BODY_BYTES = 512 * 1024
MAX_ANSWER_BYTES = 4 * 1024 * 1024  # if it is not streamed
MAX_CHOICES = 1
MAX_TOKENS = 16_384
NOTICE_SECONDS = 0.5  # to notice a disconnect: tokens cost money
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ALLOWED = {"chat/completions": ["POST"], "models": ["GET"]}
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}
# Some clients drop an event that starts with a comment, so a blank
# line ends it. That is safe here, because the events have no ids.
COMMENT = b": keep-alive\n\n"
TOKENS = ("max_completion_tokens", "max_tokens")
BLANKS = (b"\n\n", b"\r\r", b"\r\n\r\n")
END = re.compile(rb'[\r\n]data: ?\[DONE|"finish_reason"\s*:\s*"\w')

bp = Blueprint("relay", __name__)
bp.before_request(same_origin_only)  # an answer costs money


@bp.post("/v1/chat/completions")
def chat_completions():
    body = {"stream": False} | json_object(MAX_BODY_BYTES)
    messages = body.pop("messages", None)
    if not isinstance(messages, list):
        abort(400, "messages must be a list.")
    limit(body, MAX_CHOICES, "n")
    limit(body, MAX_TOKENS, *TOKENS)
    is_openai = not os.environ.get("OPENAI_BASE_URL")
    if is_openai and not any(map(body.get, TOKENS)):
        body[TOKENS[0]] = MAX_TOKENS  # other APIs may refuse it
    return relay(ask(messages, **body), body["stream"])


@bp.get("/v1/models")
def models():
    return relay(Answer("/models"))


@bp.route("/v1/<path:path>", methods=METHODS)
def unknown(path):
    if path in ALLOWED:
        raise MethodNotAllowed(ALLOWED[path])
    abort(404, f"There is no /v1/{path}. Use Chat Completions.")


def limit(body, highest, *names):
    for name in names:
        value = body.get(name)
        is_right = type(value) is int and 1 <= value <= highest
        if value is not None and not is_right:
            allowed = f"an integer from 1 to {highest}"
            abort(400, f"{name} must be {allowed}.")


def relay(answer, wants_stream=False):
    upstream, chunks = answer.open(), iter(answer)
    status = upstream.status_code
    media_type = upstream.headers.get("Content-Type", "")
    is_stream = "event-stream" in media_type
    first = b"" if is_stream else next(chunks, b"")
    is_page = first.lstrip().startswith((b"{", b"<"))
    if wants_stream and status == 200 and not is_page:
        items = keep_alive(chunks, NOTICE_SECONDS, answer.close)
        return Response(relay_events(first, items), headers=HEADERS)
    body = bytearray(first)
    with closing(answer):
        for chunk in chunks:
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise ModelError("The answer is too large.")
    if status != 200 and not 400 <= status < 600:
        raise ModelError(f"The language model returned {status}.")
    headers = {"Content-Type": "application/json"}
    if retry_after := upstream.headers.get("Retry-After"):
        headers["Retry-After"] = retry_after
    return redact_key(bytes(body), status), status, headers


def redact_key(body, status):
    try:  # JSON escapes can hide the key
        text = json.dumps(json.loads(body), allow_nan=False)
    except (ValueError, RecursionError):
        status = 502 if status == 200 else status
        message = "The language model did not send JSON."
        raise ModelError(message, status) from None
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    quoted_key = json.dumps(key)[1:-1]
    found = quoted_key in text or key.encode() in body
    if found and len(key) > 7:  # a shorter key is a dummy
        return text.replace(quoted_key, "***")
    return body


def error_object(message, status):
    kind = "server" if status >= 500 else "invalid_request"
    error = {"message": message, "type": f"{kind}_error"}
    return {"error": error | {"param": None, "code": None}}


@bp.errorhandler(ModelError)
def model_error(error):
    return error_object(str(error), error.status), error.status


@bp.errorhandler(HTTPException)
def http_error(error):
    body = error_object(error.description, error.code)
    headers = dict(error.get_headers())
    headers["Content-Type"] = "application/json"
    return body, error.code, headers


def relay_events(first, items):
    tail, is_complete, problem = b"\n\n", False, BROKEN_OFF
    try:
        for chunk in chain([first], items):
            if chunk is None:
                chunk = COMMENT if tail.endswith(BLANKS) else b""
            yield chunk
            tail += chunk
            is_complete = is_complete or END.search(tail)
            tail = tail[-100:]  # chunks can split the end
    except ModelError as error:
        problem = str(error)
    finally:
        items.close()
    if not is_complete:
        yield b"" if tail.endswith(BLANKS) else b"\n\n"
        yield Event(error_object(problem, 502)).encode()
