"""Resume: an answer that survives

The question is a POST, and the model then writes its answer into a channel, in
the background. Reading it is a GET, as often as you like: a lost connection
goes on after the last event ID, and a reload begins at the first word again.

Notice: leaving is not stopping. The model goes on though nobody reads, and only
a DELETE ends it. A question is paid for once, however often its answer is read,
and with Redis it can be read from any server.

Try: with `flask run --reload`, ask, and reload in mid-answer: all of it is
there. Then write `follow("answers", id, from_newest=True)`, save, ask, and
reload: the words from before the reload are missing.

    curl -N $(curl -s --json '{"prompt": "Why?"}' http://127.0.0.1:5000/answers)
"""

from flask import Blueprint, url_for

import background
from language_model import (
    ModelError,
    chat,
    deltas,
    json_prompt,
    new_call,
    refuse_other_sites,
)
from sse import Event

bp = Blueprint("resume", __name__)
bp.before_request(refuse_other_sites)


@bp.post("/answers")
def ask():
    call = new_call("/chat/completions", chat(json_prompt()))
    id = background.start("answers", answer(call), interrupt=call.cut)
    return background.accepted(url_for(".stream", id=id))


@bp.get("/answers/<id>")
def stream(id):
    return background.follow("answers", id)


@bp.delete("/answers/<id>")
def stop(id):
    background.stop("answers", id)
    return "", 204


def answer(call):
    try:
        for text in deltas(call):
            yield Event({"text": text})
    except ModelError as error:
        yield Event({"error": str(error)}, event="failed")
    else:
        yield Event("[DONE]", event="finished")
