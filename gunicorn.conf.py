"""Settings for `gunicorn`, run in this folder.

Copy it together with `streaming_worker.py`; it needs nothing else.
"""

import os

import gunicorn.http.message

from streaming_worker import StreamingWorker

try:
    from website.settings import read_settings
except ModuleNotFoundError:  # it was copied
    settings = {"RUN_PORT": 5000, "MAX_STREAMS": 1000}
else:
    settings = read_settings(os.environ)  # stops here if one is wrong

wsgi_app = "app:app"

# The port of `flask run`, so that every curl line works under both.
bind = f"127.0.0.1:{settings['RUN_PORT']}"

# A stream is a greenlet, not a thread, so one process holds thousands.
worker_class = StreamingWorker

# Processes share what they publish only if there is a Redis.
has_redis = bool(os.environ.get("REDIS_URL"))
workers = os.cpu_count() if has_redis else 1

# Beyond the limit on streams, leave room for pages and 503 responses.
worker_connections = settings["MAX_STREAMS"] + 200

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
