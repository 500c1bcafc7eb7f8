"""Settings for `gunicorn`; copy them together with `streaming_worker.py`."""

import os
import resource
import sys
from contextlib import suppress

import gunicorn.http.message

# gunicorn may be started from any folder.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from streaming_worker import StreamingWorker  # noqa: E402

# If a setting of this website is invalid, print one line and exit.
with suppress(ImportError):  # this file was copied without the website
    from website.settings import read_settings

    read_settings(os.environ)

wsgi_app = "app:app"

# The same port as `flask run`, so that every curl line works with both.
bind = f"127.0.0.1:{os.environ.get('FLASK_RUN_PORT', 5000)}"

worker_class = StreamingWorker  # each stream is a greenlet, not a thread

# Processes share events only through Redis. With it, run one worker for each
# core that this process may use. macOS doesn't report them, so count all.
workers, reason = 1, "set REDIS_URL to share events between several"
if os.environ.get("REDIS_URL"):
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
    workers, reason = len(cores(0)), "they share a Redis"

# Leave room for pages and 503 responses, beyond the limit on streams.
worker_connections = int(os.environ.get("FLASK_MAX_STREAMS", 1000)) + 200

# Slow clients need more than the default of 2 s. Idle ones take up slots.
keepalive = 15

# A prompt of 4000 characters makes a URL of up to 48 kB. Werkzeug accepts 64.
# gunicorn accepts 8 unless this limit is raised. 0 would mean no limit at all.
gunicorn.http.message.MAX_REQUEST_LINE = 64 * 1024
limit_request_line = 64 * 1024 - 1
control_socket_disable = True  # nothing here uses it


def nworkers_changed(server, new, old):  # runs before anything starts
    if not issubclass(server.worker_class, StreamingWorker):
        raise SystemExit("Omit -k: event streams need the StreamingWorker.")
    if new > 1 and not os.environ.get("REDIS_URL"):
        if not old:
            raise SystemExit(f"Run 1 worker, or {reason}.")
        server.num_workers = old  # ignores the signal TTIN


def on_starting(server):
    server.log.info("Workers: %d (%s)", server.num_workers, reason)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * worker_connections:
        advice = "ulimit -n is too low for MAX_STREAMS. Run `ulimit -n %d`."
        server.log.warning(advice, 2 * worker_connections)
