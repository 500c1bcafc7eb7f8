"""Completion: an event stream inside an event stream

A language model sends its answer as an event stream, token by token. This
server reads that stream and sends its own: the same text for an EventSource,
or the very same bytes for every client that speaks the OpenAI API. The key of
the model stays on the server.

Notice: each event is a bare piece of text, with its spaces and line ends. The
end is an event, `done`, and so is a failure, `failed`. A browser that comes
back in mid-answer gets 204, so that nothing is paid for twice.

Try: with `flask run --reload`, write `Event(text.upper(), id=id)`, save, and
ask. The answer comes in capitals, because this server makes a stream of its
own. The bytes of `/v1/chat/completions` are what they were.

    curl -N "http://127.0.0.1:5000/completion?prompt=Compare+with+WebSockets"
"""

from flask import Blueprint, request
from werkzeug.exceptions import HTTPException

from language_model import (
    RECONNECT_MS,
    ModelError,
    attention_seconds,
    chat,
    deltas,
    error_response,
    new_call,
    parse_chat,
    query_prompt,
    refuse_other_sites,
    relay,
)
from sse import Event, EventStream, body_bytes, keep_alive

MAX_BODY_BYTES = 256 * 1024

bp = Blueprint("completion", __name__)
bp.before_request(refuse_other_sites)


@bp.get("/completion")
def stream():
    prompt = query_prompt()
    if "Last-Event-ID" in request.headers:
        return "", 204  # no prompt is paid for twice
    call = new_call("/chat/completions", chat(prompt))
    events = keep_alive(answer(call), attention_seconds(), interrupt=call.cut)
    return EventStream(events, retry=RECONNECT_MS)


def answer(call):
    try:
        for id, text in enumerate(deltas(call), start=1):
            yield Event(text, id=id)
        yield Event("[DONE]", event="done")
    except ModelError as error:
        yield Event({"error": str(error)}, event="failed")


@bp.post("/v1/chat/completions")
def chat_completions():
    try:
        body = parse_chat(body_bytes(MAX_BODY_BYTES))
    except HTTPException as error:
        return error_response(error.description, error.code)
    if body is None:
        sentence = "The body must be a JSON object with a list of messages."
        return error_response(sentence, 400)
    return relay(new_call("/chat/completions", body))


@bp.get("/v1/models")
def models():
    return relay(new_call("/models"))
