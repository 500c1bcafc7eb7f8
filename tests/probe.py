"""The app with a view that counts what is alive in its process."""

import gc
import inspect
import sys
import threading

from app import app
from demos import DEMOS

NAMES = {"sse", "language_model", *(demo.__name__ for demo in DEMOS)}


@app.get("/probe")
def probe():
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
