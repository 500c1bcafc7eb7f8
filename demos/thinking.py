"""Thinking: named events, and an explicit end

Several event types share one stream, and a final event closes it.
The server sends a few `thinking` events, which show progress, and
then one `answer`. The page adds a listener for each type.

Notice: every event has an id. If the connection drops while the
server is thinking, the browser reconnects and the thoughts resume.
After the answer, nothing is left to send, so a reconnect gets 204,
which stops the browser.

Try: with `flask run --reload`, press Ask, and save
`demos/thinking.py` while the server thinks. It restarts, the
browser reconnects with the last id, and no thought is lost or
repeated. Then ask an empty question: a 400 stops an EventSource for
good, and only the Wire panel shows why.

    curl -N "http://127.0.0.1:5000/stream/thinking?question=Why"
"""

import time

from flask import Blueprint

from checks import allow_any_origin, query_text
from sse import Event, EventStream, last_event_number

PAUSE_SECONDS = 0.8
MAX_QUESTION_CHARACTERS = 200
THOUGHTS = (
    "Reading “{}”",
    "Looking for what I know about it",
    "Weighing one answer against the other",
    "Choosing the words",
)
ANSWER = "The answer to “{}” is 42."
ANSWER_ID = len(THOUGHTS) + 1

bp = Blueprint("thinking", __name__)
bp.after_request(allow_any_origin)


@bp.get("/stream/thinking")
def stream():
    question = query_text("question", 1, MAX_QUESTION_CHARACTERS)
    seen = last_event_number()
    if seen >= ANSWER_ID:
        return "", 204
    return EventStream(think(question, seen))


def think(question, seen, pause=PAUSE_SECONDS, sleep=time.sleep):
    for id, thought in enumerate(THOUGHTS, start=1):
        if id > seen:
            text = thought.format(question)
            yield Event(text, event="thinking", id=id)
            sleep(pause)
    text = ANSWER.format(question)
    yield Event(text, event="answer", id=ANSWER_ID)
