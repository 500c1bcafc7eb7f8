"""HTML: stream a page whose slow parts arrive later

One ordinary response can carry its parts in any order. The server
sends the page immediately, with a placeholder for each slow part.
It computes the parts in parallel, and sends each as soon as it is
ready, with a script that moves the part into its place.

Notice: the fastest part arrives after one second. All have arrived
after three, the time of the slowest. Without JavaScript, you can
read the parts below the placeholders. This is not an event stream,
so the browser does not reconnect.

Try: set "What fails" to mail and press Start. After two seconds the
page says that mail failed, and the terminal says why. The other
parts arrive. Then press Start and Stop: the terminal says that the
work has stopped.

    curl -N http://127.0.0.1:5000/stream/html
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor, wait

from flask import Blueprint, Response, abort, request
from markupsafe import Markup

PARTS = {"trains": 3, "weather": 1, "mail": 2}  # seconds of work
NOTICE_SECONDS = 0.5  # to notice a disconnect
HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}
SCRIPT = """{
  const part = document.currentScript.previousElementSibling;
  document.getElementById(part.dataset.place).replaceWith(part);
}"""
# WebKit paints nothing until it has about 200 visible characters.
HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>This morning</title>
<h1>This morning</h1>
<p>Some parts of this page take the server a few seconds. It
prepares them in parallel and sends each as soon as it is ready.
A short script then moves the part into its place. Without
JavaScript, the parts stay below their places.</p>
"""
PLACEHOLDER = Markup(
    '<p id="{0}"><a href="#{0}-part">{0}</a> is on its way …</p>\n'
)
PART = Markup(
    '<p id="{0}-part" data-place="{0}"><b>{0}</b>: {1}</p>\n'
)
MOVE = Markup(f"<script>{SCRIPT}</script>\n")

bp = Blueprint("html", __name__)
logger = logging.getLogger(__name__)


@bp.get("/stream/html")
def stream():
    fail = request.args.get("fail", "")
    if fail and fail not in PARTS:
        allowed = ", ".join(PARTS)
        abort(400, f"fail must be one of {allowed}, got {fail!r}.")
    return Response(page(fail), headers=HEADERS)


def work(name, seconds, fail, closed):
    if closed.wait(seconds):
        logger.info("html: %s stopped: client disconnected", name)
        return ""
    if name == fail:
        raise OSError("The service is unreachable.")
    return f"Ready after {seconds} s of work."


def part(name, seconds, fail, closed):
    try:
        text = work(name, seconds, fail, closed)
    except Exception:
        logger.exception("html: %s failed", name)
        text = "This part failed."
    return PART.format(name, text) + MOVE


def page(fail, parts=PARTS):
    closed = threading.Event()
    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            working = {
                pool.submit(part, name, seconds, fail, closed)
                for name, seconds in parts.items()
            }
            yield HEAD + "".join(map(PLACEHOLDER.format, parts))
            while working:
                done, working = wait(
                    working, NOTICE_SECONDS, "FIRST_COMPLETED"
                )
                ready = "".join(one.result() for one in done)
                yield ready + "\n"  # fails if the browser is gone
        finally:
            closed.set()  # and the pool waits for all its threads
