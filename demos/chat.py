"""Chat: an answer that is read while it is written

A chat page over a plain EventSource. Each event holds a few more characters of
the answer, as JSON; the last one holds an action, `terminate`, and the page
closes the connection on it. Each question stands alone: nothing of the
conversation is sent along.

Notice: text is appended as text nodes. Nothing that is there is written anew,
so a selection stays, and no character of an answer is ever markup. The page
follows the end of the answer only while you are there.

Try: send “Attack this page”. The offline model answers with scripts and images,
and all of them are text. Then press Compare, which adds the same 5,000 tokens
in the right way and, far more slowly, in the wrong one.

    curl -N "http://127.0.0.1:5000/stream?prompt=How+do+I+reconnect"
"""

from flask import Blueprint, request

from language_model import (
    RECONNECT_MS,
    ModelError,
    attention_seconds,
    chat,
    deltas,
    new_call,
    query_prompt,
    refuse_other_sites,
)
from sse import Event, EventStream, keep_alive

bp = Blueprint("chat", __name__)
bp.before_request(refuse_other_sites)


@bp.get("/stream")
def stream():
    prompt = query_prompt()
    if "Last-Event-ID" in request.headers:
        return "", 204  # no prompt is paid for twice
    call = new_call("/chat/completions", chat(prompt))
    events = keep_alive(answer(call), attention_seconds(), interrupt=call.cut)
    return EventStream(events, retry=RECONNECT_MS)


def answer(call):
    id, end = 0, {"action": "terminate"}
    try:
        for id, text in enumerate(deltas(call), start=1):
            yield Event({"text": text}, id=id)
    except ModelError as error:
        end["error"] = str(error)
    yield Event(end, id=id + 1)
