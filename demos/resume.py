"""Resume: an answer that survives a page reload

The model writes to a channel, and you read it as often as you like.
A POST starts a background job, which publishes the answer. A
dropped connection resumes after the last event id, and a reload
starts over from the first word.

Notice: disconnecting does not stop the model; only a DELETE does.
You pay once for a question, however often its answer is read. With
Redis, any process can send it.

Try: with `flask run --reload`, ask, and reload mid-answer: no word
is missing. Then change `follow("answers", id)` to
`follow("answers", id, from_newest=True)`, save, ask, and reload:
the words from before the reload are missing.

    curl -N $(curl -s --json '{"prompt": "Why?"}' \
    http://127.0.0.1:5000/answers)
"""

from flask import Blueprint, request, url_for

from background import follow, start, stop
from checks import json_object, json_text, same_origin_only
from language_model import ModelError, ask, deltas
from sse import Event

MAX_PROMPT_CHARACTERS = 4000
MAX_BODY_BYTES = 64 * 1024

bp = Blueprint("resume", __name__)
bp.before_request(same_origin_only)  # an answer costs money


@bp.post("/answers")
def begin():
    body = json_object(MAX_BODY_BYTES)
    prompt = json_text(body, "prompt", 1, MAX_PROMPT_CHARACTERS)
    answer = ask([{"role": "user", "content": prompt}])
    id = start("answers", write(answer), answer.close)
    path = url_for(".stream", id=id)
    headers = {"Location": path, "Content-Type": "text/plain"}
    return f"{request.host_url[:-1]}{path}\n", 202, headers


@bp.get("/answers/<id>")
def stream(id):
    return follow("answers", id)


@bp.delete("/answers/<id>")
def end(id):
    stop("answers", id)
    return "", 204


def write(answer):
    try:
        for text in deltas(answer):
            yield Event({"text": text})
        yield Event("[DONE]", event="finished")
    except ModelError as error:
        yield Event({"error": str(error)}, event="failed")
