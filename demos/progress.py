"""Progress: a long task in the background

A POST that starts a long task is answered at once, with 202 and the place where
the task can be followed. There an event stream tells how far it is, and how it
ended. The task does not depend on who follows it, nor on anybody doing so.

Notice: reload the page in the middle, or open its address in a second window:
the bar goes on where the task is. A reader who comes too late is told the end,
and one who has had it gets 204, so that the browser asks no more.

Try: with `flask run --reload`, start a task of 500 steps, set STEP_SECONDS to
0.02, and save. The task has ended with its process, and the page says so. Start
again: the steps come ten times as fast.

    curl -N $(curl -s --json '{"steps": 20}' http://127.0.0.1:5000/jobs)
"""

import time

from flask import Blueprint, abort, url_for

import background
from sse import Event, json_object

STEP_SECONDS = 0.2
MAX_STEPS = 1000
MAX_BODY_BYTES = 1024

bp = Blueprint("progress", __name__)


@bp.post("/jobs")
def start():
    steps = json_object(MAX_BODY_BYTES).get("steps")
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        abort(400, f"steps must be an integer from 1 to {MAX_STEPS}.")
    id = background.start("jobs", work(steps))
    return background.accepted(url_for(".stream", id=id))


@bp.get("/jobs/<id>")
def stream(id):
    return background.follow("jobs", id, from_newest=True)


@bp.delete("/jobs/<id>")
def stop(id):
    background.stop("jobs", id)
    return "", 204


def work(steps, sleep=time.sleep):
    for done in range(steps):
        message = f"Step {done + 1} of {steps}"
        state = {"done": done, "total": steps, "message": message}
        yield Event(state, event="progress")
        sleep(STEP_SECONDS)
    state = {"done": steps, "total": steps, "message": "All steps are done."}
    yield Event(state, event="finished")
