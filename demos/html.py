"""HTML: a page that goes on changing while it streams

Not every stream is an event stream. This page goes out at once, with a
placeholder for each slow part. The parts are computed side by side, and each
is sent the moment it is ready, followed by a script that moves it into place.

Notice: the quickest part is there after one second and all of them after
three, the time of the slowest alone. It is one request, an ordinary page, and
without JavaScript the parts are there to read as well, below the placeholders.

Try: set “What fails” to mail and press Start. After two seconds its place says
so, the terminal says why, and the rest arrives. Then press Start and Stop, and
see in the terminal that the work stops.

    curl -N "http://127.0.0.1:5000/stream/html?fail=trains"
"""

import logging
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from flask import Blueprint, Response, abort, g, request
from markupsafe import Markup

PARTS = {"trains": 3, "weather": 1, "mail": 2}  # name: seconds of work
ATTENTION_SECONDS = 0.5
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
SCRIPT = """{
  const part = document.currentScript.previousElementSibling;
  document.getElementById(part.dataset.place).replaceWith(part);
}"""
HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>This morning</title>
<h1>This morning</h1>
"""
PLACEHOLDER = Markup(
    '<p id="{0}"><a href="#{0}-part">{0}</a> is on its way …</p>\n'
)
PART = Markup('<p id="{0}-part" data-place="{0}"><b>{0}</b>: {1}</p>\n')

bp = Blueprint("html", __name__)
logger = logging.getLogger(__name__)


@bp.get("/stream/html")
def stream():
    fail = request.args.get("fail", "")
    if fail and fail not in PARTS:
        abort(400, f"fail must be one of {', '.join(PARTS)}, not {fail!r}.")
    g.inline_scripts = [SCRIPT]  # the only ones that the app's policy allows
    return Response(page(fail), mimetype="text/html", headers=HEADERS)


def compute(name, seconds, fail, closed):
    """Work, and stop when `closed` is set: the page ends with all its parts."""
    if closed.wait(seconds):
        logger.info("html: %s stopped, nobody waits for it", name)
        return ""
    if name == fail:
        raise OSError("It cannot be reached.")
    return f"Ready after {seconds} s of work."


def outcome(name, future):
    try:
        return future.result()
    except Exception:
        logger.exception("html: %s failed", name)
        return "This part has failed."


def page(fail, parts=PARTS, compute=compute):
    closed = threading.Event()
    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            working = {
                pool.submit(compute, name, seconds, fail, closed): name
                for name, seconds in parts.items()
            }
            yield HEAD + "".join(map(PLACEHOLDER.format, parts))
            while working:
                done, _ = wait(working, ATTENTION_SECONDS, FIRST_COMPLETED)
                for future in done:
                    name = working.pop(future)
                    yield PART.format(name, outcome(name, future))
                    yield f"<script>{SCRIPT}</script>\n"
                yield "\n"  # the way to learn whether the reader has left
        finally:
            closed.set()
