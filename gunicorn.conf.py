"""Settings for `gunicorn`, run in this folder.

Copy it together with `streaming_worker.py`; it needs nothing else of ours.
"""

import os

import gunicorn.http.message

from streaming_worker import StreamingWorker

# A wrong setting of this website stops the start here, with one line.
try:
    from website.settings import read_settings
except ModuleNotFoundError:  # this file was copied without the website
    pass
else:
    read_settings(os.environ)

wsgi_app = "app:app"

# The port of `flask run`, so that every curl line works under both.
bind = f"127.0.0.1:{os.environ.get('FLASK_RUN_PORT', 5000)}"

# A stream is a greenlet, not a thread, so one process can hold thousands.
worker_class = StreamingWorker

# Processes share what they publish only through Redis.
has_redis = bool(os.environ.get("REDIS_URL"))

# One worker per core that this process may use; macOS doesn't say which.
if not has_redis:
    workers = 1
elif hasattr(os, "sched_getaffinity"):
    workers = len(os.sched_getaffinity(0))
else:
    workers = os.cpu_count()

# Beyond the limit on streams, leave room for pages and 503 responses.
worker_connections = int(os.environ.get("FLASK_MAX_STREAMS", 1000)) + 200

# A prompt of 4000 characters makes a URL of up to 48 kB. Werkzeug accepts 64,
# gunicorn at most 8 unless this limit is raised; 0 would mean no limit at all.
gunicorn.http.message.MAX_REQUEST_LINE = 64 * 1024
limit_request_line = 64 * 1024 - 1

# Disable the control socket, which nothing here uses.
control_socket_disable = True


def on_starting(server):
    reason = "one per core, because they share a Redis"
    if not has_redis:
        reason = "set REDIS_URL to share what is published between more"
    server.log.info("Workers: %d (%s)", server.cfg.workers, reason)
