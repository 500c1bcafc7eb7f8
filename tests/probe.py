"""The app with views that only tests need."""

import gc
import inspect
import sys
import threading
import time

from app import app
from demos import LESSONS
from sse import Event, EventStream

NAMES = {
    "sse",
    "broker",
    "redis_broker",
    "background",
    "language_model",
    *(lesson.module.__name__ for lesson in LESSONS.values()),
}


@app.get("/slow-clean-up")
def slow_clean_up():
    def stream():
        try:
            yield Event("a")
            time.sleep(60)
        finally:
            time.sleep(0.25)  # longer than gunicorn waits after QUIT
            print("cleaned up")

    return EventStream(stream())


@app.get("/probe")
def probe():
    """Count what is alive in this process."""
    gc.collect()
    alive = {"threads": threading.active_count(), "greenlets": 0, "streams": 0}
    for thing in gc.get_objects():
        if inspect.isgenerator(thing) and thing.gi_frame is not None:
            module = thing.gi_frame.f_globals["__name__"]
            alive["streams"] += module in NAMES
        elif "gevent" in sys.modules:
            from gevent import Greenlet

            alive["greenlets"] += isinstance(thing, Greenlet) and not thing.dead
    return alive


@app.get("/large")
def large():
    return EventStream([Event(20_000_000 * "a")])
