"""How the app is served for real: `gunicorn`, in this folder."""

import os
import socket
from contextlib import suppress

import gevent
import gunicorn.http.message
from gunicorn.workers.ggevent import GeventWorker

from settings import read_settings

settings = read_settings(os.environ)


def send_chunks(body, client):
    """Send the body of an event stream in chunks (RFC 9112, section 7.1).

    gunicorn and gevent would send the same, with a third more work for each
    event. The price: in an access log, event streams have no bytes.
    """
    try:
        yield b""  # for gunicorn to send the headers
        for data in body:
            if data:  # an empty chunk would be the last one
                chunk = b"%X\r\n%b\r\n" % (len(data), data)
                sent = client.send(chunk)
                if sent < len(chunk):
                    client.sendall(memoryview(chunk)[sent:])
    finally:
        body.close()


class StreamingWorker(GeventWorker):
    """gunicorn's gevent worker, and an end of its event streams when it stops.

    Without it the worker waits for them, and for WebSockets, until it is killed
    half a minute later and no `finally` has run.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.clients = {}  # the socket that each greenlet serves
        self.environs = {}  # what is asked there, if a request is under way

    def handle(self, listener, client, addr):
        self.clients[gevent.getcurrent()] = client
        try:
            super().handle(listener, client, addr)
        finally:
            self.clients.pop(gevent.getcurrent(), None)

    def handle_request(self, listener_name, req, sock, addr):
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self.environs.pop(gevent.getcurrent(), None)
        if gevent.getcurrent() not in self.clients:
            raise StopIteration  # it was ended: no request can follow

    def load_wsgi(self):
        super().load_wsgi()
        app = self.wsgi

        def wsgi(environ, start_response):
            is_chunked = False

            def start(status, headers, exc_info=None):
                nonlocal is_chunked
                fields = dict(headers)
                media_type = fields.get("Content-Type", "")
                if media_type.startswith("text/event-stream"):
                    environ["sse.is_event_stream"] = True
                    is_http_1_1 = environ["SERVER_PROTOCOL"] == "HTTP/1.1"
                    is_chunked = is_http_1_1 and "Content-Length" not in fields
                return start_response(status, headers, exc_info)

            # A WebSocket, which nothing else would end either.
            if environ.get("HTTP_UPGRADE", "").lower() == "websocket":
                environ["sse.is_event_stream"] = True
            self.environs[gevent.getcurrent()] = environ
            body = app(environ, start)
            if is_chunked:
                body = send_chunks(body, environ["gunicorn.socket"])
            return body

        self.wsgi = wsgi

    def run(self):
        gevent.spawn(self.end_streams_at_last)
        super().run()

    def handle_quit(self, sig, frame):
        gevent.spawn(self.end_streams)
        super().handle_quit(sig, frame)

    def end_streams_at_last(self):
        while self.alive:
            gevent.sleep(0.1)
        while True:
            self.end_streams()
            gevent.sleep(0.1)

    def end_streams(self):
        """End event streams and idle connections; let other requests finish.

        GreenletExit is raised where a stream waits, for its `finally` to run.
        """
        for greenlet, client in list(self.clients.items()):
            environ = self.environs.get(greenlet)
            if environ is None or environ.get("sse.is_event_stream"):
                del self.clients[greenlet]
                if environ is not None:
                    greenlet.kill(block=False)
                # Not the shutdown of gevent, which is an error for the reader.
                with suppress(OSError):
                    client._sock.shutdown(socket.SHUT_RDWR)


wsgi_app = "app:app"

# The port of `flask run`, so that every curl line works under both.
bind = f"127.0.0.1:{settings['RUN_PORT']}"

# A stream is a greenlet and not a thread: a thousand of them are no burden.
worker_class = StreamingWorker

# What is published in one process must reach the readers in all of them.
has_redis = bool(os.environ.get("REDIS_URL"))
workers = os.cpu_count() if has_redis else 1


def on_starting(server):
    if has_redis:
        why = "one for each core, because they share a Redis"
    else:
        why = "more would not share what is published: set REDIS_URL for that"
    server.log.info("Workers: %d (%s)", server.cfg.workers, why)


# Beyond the cap on streams there is room for pages, and for saying 503.
worker_connections = settings["MAX_STREAMS"] + 200

# A prompt of 4000 characters makes a URL of up to 48 kB. Werkzeug takes 64;
# gunicorn's own upper limit is 8, and no limit at all is a way to attack it.
gunicorn.http.message.MAX_REQUEST_LINE = 64 * 1024
limit_request_line = 64 * 1024 - 1

# Nothing here is steered from outside.
control_socket_disable = True
