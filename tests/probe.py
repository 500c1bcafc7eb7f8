"""The app with additional views for tests."""

import gc
import inspect
import os
import sys
import threading
import time

from flask import Response, request

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
WORKER = sys.modules.get("streaming_worker")
if WORKER and "LIMIT_SECONDS" in os.environ:
    seconds = float(os.environ["LIMIT_SECONDS"])
    WORKER.SILENCE_MS = int(1000 * seconds)
    WORKER.LIMITS["request"] = seconds


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


@app.get("/replay")
def replay():
    """Count the turns that another thread gets during a busy stream."""
    turns, ended = [], threading.Event()

    def take_turns():
        while not ended.is_set():
            turns.append(1)
            time.sleep(0)

    def stream():
        threading.Thread(target=take_turns).start()
        yield from [Event("a")] * 1000
        yield Event(len(turns))
        ended.set()

    return EventStream(stream())


@app.get("/probe")
def probe():
    """Count the threads, streams and connections of this process."""
    gc.collect()
    alive = dict.fromkeys(["greenlets", "streams", "connections"], 0)
    alive["threads"] = threading.active_count()
    for thing in gc.get_objects():
        if WORKER and isinstance(thing, WORKER.StreamingWorker):
            alive["connections"] = len(thing.open)
        elif inspect.isgenerator(thing) and thing.gi_frame is not None:
            module = thing.gi_frame.f_globals["__name__"]
            alive["streams"] += module in NAMES
        elif "gevent" in sys.modules:
            from gevent import Greenlet

            alive["greenlets"] += isinstance(thing, Greenlet) and not thing.dead
    return alive


@app.get("/large")
def large():
    return log_close(EventStream([Event(20_000_000 * "a")]))


@app.get("/large-page")
def large_page():
    return log_close(Response(20_000_000 * "a"))


def log_close(response):
    response.call_on_close(lambda: print("large: closed"))
    return response


@app.get("/once/<path:file>")
def once(file):
    """Wait until a file exists. Then return a page or an endless stream."""
    print("waiting")
    while not os.path.exists(f"/{file}"):
        time.sleep(0.01)
    return slow_clean_up() if "stream" in request.args else "done"
