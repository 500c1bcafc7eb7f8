"""Progress: a live progress bar for a background job

Start a job with POST, follow it with EventSource, and survive a
reload. The POST gets 202 with the URL of an event stream.

Notice: reload the page, or open a second window: the bar continues.
A client that connects after the end gets just the final event; one
that already has it gets 204.

Try: with `flask run --reload`, start 500 steps, change
`STEP_SECONDS = 0.2` to 0.02, and save. The page reports that the
job died. Start again: the steps are ten times as fast.

    curl -N $(curl -s --json '{"steps": 20}' \
    http://127.0.0.1:5000/jobs)
"""

import time

from flask import Blueprint, abort, request, url_for

from background import follow, start, stop
from checks import json_object, same_origin_only
from sse import Event

STEP_SECONDS = 0.2
MAX_STEPS = 1000
MAX_BODY_BYTES = 1024

bp = Blueprint("progress", __name__)
bp.before_request(same_origin_only)


@bp.post("/jobs")
def begin():
    steps = json_object(MAX_BODY_BYTES).get("steps")
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        abort(400, f"steps must be an integer, 1 to {MAX_STEPS}.")
    path = url_for(".stream", id=start("jobs", work(steps)))
    headers = {"Location": path, "Content-Type": "text/plain"}
    return f"{request.host_url[:-1]}{path}\n", 202, headers


@bp.get("/jobs/<id>")
def stream(id):
    return follow("jobs", id, from_newest=True)


@bp.delete("/jobs/<id>")
def end(id):
    stop("jobs", id)
    return "", 204


def work(steps, sleep=time.sleep):
    for done in range(steps):
        message = f"Step {done + 1} of {steps}"
        state = {"done": done, "total": steps, "message": message}
        yield Event(state, event="progress")
        sleep(STEP_SECONDS)
    state = {"done": steps, "total": steps, "message": "All done."}
    yield Event(state, event="finished")
