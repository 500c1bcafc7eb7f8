"""How the app is served for real: `gunicorn`, in this folder."""

import os
import socket
from contextlib import suppress

import gevent

from settings import read_settings

settings = read_settings(os.environ)

wsgi_app = "app:app"

# The port of `flask run`, so that every curl line works under both.
bind = f"127.0.0.1:{settings['RUN_PORT']}"

# A stream is a greenlet and not a thread: a thousand of them are no burden.
worker_class = "gevent"

# What a lesson remembers, it remembers in its process.
workers = 1

# Beyond the cap on streams there is room for pages, and for saying 503.
worker_connections = settings["MAX_STREAMS"] + 200

# A prompt of 4000 characters makes a URL of up to 48 kB, more than any limit
# that gunicorn could be given. A server in front sets one of its own.
limit_request_line = 0

# Nothing here is steered from outside.
control_socket_disable = True

# The greenlets of open event streams, each with its client's socket.
streams = {}


def post_worker_init(worker):
    """Note every event stream that begins, and watch for the worker's end."""
    app = worker.wsgi

    def noting_streams(environ, start_response):
        def start(status, headers, exc_info=None):
            media_type = dict(headers).get("Content-Type", "")
            if media_type.startswith("text/event-stream"):
                streams[gevent.getcurrent()] = environ["gunicorn.socket"]
            return start_response(status, headers, exc_info)

        return app(environ, start)

    worker.wsgi = noting_streams
    gevent.spawn(end_streams_with, worker)


def post_request(worker, req, environ, resp):
    streams.pop(gevent.getcurrent(), None)


def end_streams_with(worker):
    """End the streams on SIGTERM or a reload: gunicorn would wait for them."""
    while worker.alive:
        gevent.sleep(0.1)
    while True:
        end_streams()
        gevent.sleep(0.1)


def worker_int(worker):
    """On SIGINT and SIGQUIT, gunicorn leaves a moment after this."""
    end_streams()


def end_streams():
    """Raise GreenletExit where each stream waits, for its `finally` to run."""
    while streams:
        greenlet, client = streams.popitem()
        greenlet.kill(block=False)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
