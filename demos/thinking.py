"""Thinking: events of several types, and an end that is said

One stream carries different things, told apart by their event type: some
`thinking` events, so that the reader sees that work goes on, then one `answer`.
The page adds one listener per type.

Notice: every event has an id. If the connection drops while the server is
thinking, the browser comes back and the thoughts go on where they were. After
the answer there is nothing left, so a browser that comes back gets 204.

Try: ask an empty question. The server answers 400, which ends an EventSource
for good and does not tell the page why. In the Wire panel, `question=` without
a value shows the sentence.

    curl -N "http://127.0.0.1:5000/stream/thinking?question=Why"
"""

import time

from flask import Blueprint, abort, request

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


@bp.get("/stream/thinking")
def stream():
    question = request.args.get("question", "").strip()
    if not 1 <= len(question) <= MAX_QUESTION_CHARACTERS:
        abort(
            400,
            f"question must have 1 to {MAX_QUESTION_CHARACTERS} characters.",
        )
    seen = last_event_number()
    if seen >= ANSWER_ID:
        return "", 204
    return EventStream(think(question, seen))


def think(question, seen, pause=PAUSE_SECONDS, sleep=time.sleep):
    for id, thought in enumerate(THOUGHTS, start=1):
        if id > seen:
            yield Event(thought.format(question), event="thinking", id=id)
            sleep(pause)
    yield Event(ANSWER.format(question), event="answer", id=ANSWER_ID)
