"""Settings for `gunicorn`; copy them together with `streaming_worker.py`."""

import os
import resource
import sys
from contextlib import suppress

import gunicorn.http.message

# Let gunicorn start in any folder.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from streaming_worker import StreamingWorker  # noqa: E402

# A wrong setting of this website stops the start here, with one line.
with suppress(ModuleNotFoundError):  # this file was copied without the website
    from website.settings import read_settings

    read_settings(os.environ)

wsgi_app = "app:app"

# The port of `flask run`, so that every curl line works under both.
bind = f"127.0.0.1:{os.environ.get('FLASK_RUN_PORT', 5000)}"

worker_class = StreamingWorker  # each stream is a greenlet, not a thread

# Processes share what they publish only through Redis. With it, run one for
# each core that this process may use; macOS doesn't say which.
workers, reason = 1, "set REDIS_URL to share events between several"
if os.environ.get("REDIS_URL"):
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
    workers, reason = len(cores(0)), "one per core, because they share a Redis"

# Beyond the limit on streams, leave room for pages and 503 responses.
worker_connections = int(os.environ.get("FLASK_MAX_STREAMS", 1000)) + 200

# Slow clients need more than the default 2 s, but idle ones use up slots.
keepalive = 15

# A prompt of 4000 characters makes a URL of up to 48 kB. Werkzeug accepts 64,
# gunicorn at most 8 unless this limit is raised; 0 would mean no limit at all.
gunicorn.http.message.MAX_REQUEST_LINE = 64 * 1024
limit_request_line = 64 * 1024 - 1
control_socket_disable = True  # nothing here uses it


def nworkers_changed(server, new, old):  # runs before anything starts
    if not issubclass(server.worker_class, StreamingWorker):
        raise SystemExit("Leave out -k: streams need the StreamingWorker.")
    if new > 1 and not os.environ.get("REDIS_URL"):
        if not old:
            raise SystemExit(f"Run 1 worker, or {reason}.")
        server.num_workers = old  # ignores the signal TTIN


def on_starting(server):
    server.log.info("Workers: %d (%s)", server.num_workers, reason)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * worker_connections:
        advice = "Too few open files for MAX_STREAMS: run `ulimit -n %d` first."
        server.log.warning(advice, 2 * worker_connections)
