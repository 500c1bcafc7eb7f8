"""Completion: stream an OpenAI answer to the browser

Read one event stream, write another, and keep the API key on the
server. A language model sends its answer as an event stream, token
by token. The server reads it and sends each piece to the browser's
EventSource. The key never reaches a browser.

Notice: each event is a bare piece of text, with its spaces and line
breaks. The end is an event `done`, and a failure is an event
`failed`. A browser that reconnects in mid-answer gets 204, so you
never pay twice for a prompt.

Try: with `flask run --reload`, change `Event(text, id=id)` to
`Event(text.upper(), id=id)`, save, and ask again. The answer
arrives in capitals, because the server writes its own event stream.

    curl -N "http://127.0.0.1:5000/completion?prompt=Hello"
"""

from flask import Blueprint, request

from checks import query_text, same_origin_only
from language_model import ModelError, ask, deltas
from sse import Event, EventStream, keep_alive

MAX_PROMPT_CHARACTERS = 4000
NOTICE_SECONDS = 0.5  # until a disconnect is noticed: tokens cost
DAY_MS = 24 * 60 * 60 * 1000  # no early reconnect asks again

bp = Blueprint("completion", __name__)
bp.before_request(same_origin_only)  # an answer costs money


@bp.get("/completion")
def stream():
    prompt = query_text("prompt", 1, MAX_PROMPT_CHARACTERS)
    if "Last-Event-ID" in request.headers:
        return "", 204  # nobody pays for a prompt twice
    answer = ask([{"role": "user", "content": prompt}])
    events = complete(answer)
    events = keep_alive(events, NOTICE_SECONDS, answer.close)
    return EventStream(events, retry=DAY_MS)


def complete(answer):
    try:
        for id, text in enumerate(deltas(answer), start=1):
            yield Event(text, id=id)
        yield Event("[DONE]", event="done")
    except ModelError as error:
        yield Event({"error": str(error)}, event="failed")
