"""Thinking: named events, and an explicit end

One stream carries two kinds of events, told apart by their event
type: several `thinking` events that show progress, then one
`answer`. The page adds one listener per type.

Notice: every event has an id. If the connection drops while the
server is thinking, the browser reconnects and the thoughts resume.
After the answer nothing is left, so a reconnect gets 204, which
stops the browser.

Try: ask an empty question. The server answers 400, which stops an
EventSource for good, and the page is not told why. In the Wire
panel, `question=` without a value shows the reason.

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
