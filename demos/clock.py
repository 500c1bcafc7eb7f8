"""Clock: headers at once, and a clean-up when the browser leaves

The connection opens at once, a whole interval before the first tick, and when
the browser leaves, the generator is closed: its `finally` gives back whatever
an endless stream was holding.

Notice: watch the terminal of the server while you press Stop. The clean-up
comes at a tick, not at once: only by writing does a server learn that nobody
listens, and under gunicorn the first tick after that still seems to succeed.

Try: set the interval to 2 and press Start. The state is open two seconds before
the first tick. Press Stop after it: the terminal tells of the clean-up at the
next tick, two seconds later.

    curl -N "http://127.0.0.1:5000/sse?interval=2&lang=zh"
"""

import logging
import time
from datetime import datetime

from flask import Blueprint, abort, request

from sse import Event, EventStream, query_number

INTERVAL_SECONDS = 1.0
SENTENCES = {
    "en": "The time is {:%H:%M:%S}",
    "zh": "当前时间是 {:%H:%M:%S}",
}

bp = Blueprint("clock", __name__)
logger = logging.getLogger(__name__)


@bp.get("/sse")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    lang = request.args.get("lang", "en")
    if lang not in SENTENCES:
        abort(400, f"lang must be en or zh, not {lang!r}.")
    return EventStream(clock(interval, SENTENCES[lang]))


def clock(interval, sentence, now=datetime.now, sleep=time.sleep):
    ticks = 0
    try:
        while True:
            sleep(interval)
            ticks += 1
            yield Event(sentence.format(now()))
    finally:
        logger.info("clock: closed after %d ticks", ticks)
