"""Clock: send headers immediately, clean up on disconnect

The server sends its headers before the first event, and learns of a
disconnect only when it writes. On a disconnect, the generator is
closed, and its `finally` releases what an endless stream holds.

Notice: watch the server's terminal while you press Stop. The
clean-up comes with a tick: the next one or, because the first write
can still succeed, the one after it.

Try: set the interval to 2 and press Start. The stream opens two
seconds before its first tick. Press Stop: within two ticks, the
terminal logs the tick count twice: for the page and the Wire panel.

    curl -N "http://127.0.0.1:5000/sse?interval=2&lang=zh"
"""

import logging
import time
from datetime import datetime

from flask import Blueprint, abort, request

from checks import allow_any_origin, query_number
from sse import Event, EventStream

INTERVAL_SECONDS = 1.0
SENTENCES = {
    "en": "The time is {:%H:%M:%S}",
    "zh": "当前时间是 {:%H:%M:%S}",
}

bp = Blueprint("clock", __name__)
bp.after_request(allow_any_origin)
logger = logging.getLogger(__name__)


@bp.get("/sse")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    lang = request.args.get("lang", "en")
    if lang not in SENTENCES:
        abort(400, f"lang must be en or zh, got {lang!r}.")
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
