"""Chat: show the answer as it streams in

Append text safely, scroll politely, and stop on demand. Each event
carries a few more characters of the answer, as JSON. The last event
carries the action `terminate`: the page then closes the connection.
The model sees each question alone, without the conversation so far.

Notice: the page appends text nodes and never rewrites what is
there. So your selection stays, and nothing in an answer becomes
markup. The page scrolls with the answer only while you are at the
end.

Try: send "Attack this page". The offline model answers with scripts
and images, and all of them stay text. Send it again, and select a
word while the answer grows: the selection stays. It would vanish if
the page set `textContent += text`.

    curl -N "http://127.0.0.1:5000/stream?prompt=How+do+I+reconnect"
"""

from flask import Blueprint, request

from checks import query_text, same_origin_only
from language_model import ModelError, ask, deltas
from sse import Event, EventStream, keep_alive

MAX_PROMPT_CHARACTERS = 4000
NOTICE_SECONDS = 0.5  # to notice a disconnect: tokens cost money
DAY_MS = 24 * 60 * 60 * 1000  # retry delay: never ask twice

bp = Blueprint("chat", __name__)
bp.before_request(same_origin_only)  # an answer costs money


@bp.get("/stream")
def stream():
    prompt = query_text("prompt", 1, MAX_PROMPT_CHARACTERS)
    if "Last-Event-ID" in request.headers:
        return "", 204  # never pay twice for a prompt
    answer = ask([{"role": "user", "content": prompt}])
    texts = keep_alive(deltas(answer), NOTICE_SECONDS, answer.close)
    return EventStream(chat(texts), retry=DAY_MS)


def chat(texts):
    id, end = 1, {"action": "terminate"}
    try:
        for text in texts:
            if text is None:  # the model pauses
                yield None
            else:
                yield Event({"text": text}, id=id)
                id += 1
    except ModelError as error:
        end["error"] = str(error)
    finally:
        texts.close()
    yield Event(end, id=id)
