"""Completion: stream an OpenAI answer to the browser

Read one event stream, write another, and keep the API key away from
the browser. A language model's API sends its answer as an event
stream, token by token. The server reads it and sends each piece on
to the browser's EventSource. Only the API receives the key.

Notice: each event is a bare piece of text, with its spaces and line
breaks. The last event is `done`, or `failed` with a reason. A
browser that reconnects mid-answer gets 204, so you never pay twice
for a prompt.

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
NOTICE_SECONDS = 0.5  # to notice a disconnect: tokens cost money
DAY_MS = 24 * 60 * 60 * 1000  # retry delay: never ask twice

bp = Blueprint("completion", __name__)
bp.before_request(same_origin_only)  # an answer costs money


@bp.get("/completion")
def stream():
    prompt = query_text("prompt", 1, MAX_PROMPT_CHARACTERS)
    if "Last-Event-ID" in request.headers:
        return "", 204  # never pay twice for a prompt
    answer = ask([{"role": "user", "content": prompt}])
    texts = keep_alive(deltas(answer), NOTICE_SECONDS, answer.close)
    return EventStream(complete(texts), retry=DAY_MS)


def complete(texts):
    id = 0
    try:
        for text in texts:
            if text is None:  # the model pauses
                yield None
            else:
                id += 1
                yield Event(text, id=id)
        yield Event("[DONE]", event="done")
    except ModelError as error:
        yield Event({"error": str(error)}, event="failed")
    finally:
        texts.close()
