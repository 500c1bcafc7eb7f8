"""gunicorn's gevent worker, which can stop while event streams are open.

How gunicorn stops: on TERM, its master sends TERM to the workers. On HUP it
starts new workers first. On INT and QUIT it sends QUIT. After TERM, a worker
sets `alive` to false, closes its listeners and waits for its connections. An
event stream never ends, so the master kills the worker after `graceful_timeout`
(30 s), and no `finally` has run. HUP runs them, but as late; QUIT runs none.
This worker follows five rules instead:

1. A stream is a response of the type text/event-stream, or a request to upgrade
   to a WebSocket. All other requests may finish.
2. Once `alive` is false, streams end: GreenletExit is raised where each waits,
   so its `finally` runs, and its socket is shut down, so the client reconnects.
   A second GreenletExit would interrupt a `finally`, so there is only one.
3. A connection that has been idle for LOOK_SECONDS stops reading, so it ends.
4. QUIT waits up to QUIT_SECONDS for every `finally`. Ctrl-C brings it twice, to
   the worker and through the master, so the second one is ignored.
5. Each part of a stream is sent as one chunk (RFC 9112, section 7.1), in half
   the CPU time of gunicorn and gevent. An access log shows no size for streams.
"""

from contextlib import suppress
from math import inf
from socket import SHUT_RD, SHUT_RDWR
from time import monotonic

import gevent
from gunicorn.workers.ggevent import GeventWorker

LOOK_SECONDS = 0.1
QUIT_SECONDS = 5.0
NOW, NEVER = 0, inf


class StreamingWorker(GeventWorker):
    def __init__(self, *args):
        super().__init__(*args)
        self.ends = {}  # greenlet: (its socket, when a stop may end it)
        self.quitting = None

    def load_wsgi(self):
        """Find streams (1), and chunk those that gunicorn would chunk (5)."""
        super().load_wsgi()
        app = self.wsgi

        def wsgi(environ, start_response):
            greenlet, client = gevent.getcurrent(), environ["gunicorn.socket"]
            if environ.get("HTTP_UPGRADE", "").lower() == "websocket":
                self.ends[greenlet] = client, NOW
            body = app(environ, start_response)
            response = start_response.__self__  # gunicorn's, with its headers
            media_type = dict(response.headers).get("Content-Type", "")
            if media_type.startswith("text/event-stream"):
                self.ends[greenlet] = client, NOW
                if response.chunked:
                    body = send_chunks(body, client)
            return body

        self.wsgi = wsgi

    def handle(self, listener, client, addr):
        """Note a connection that has no request yet (3)."""
        self.ends[gevent.getcurrent()] = client, monotonic() + LOOK_SECONDS
        try:
            super().handle(listener, client, addr)
        finally:
            self.ends.pop(gevent.getcurrent(), None)

    def handle_request(self, listener_name, req, client, addr):
        """Note that a request may finish (1), and that it has (3)."""
        self.ends[gevent.getcurrent()] = client, NEVER
        super().handle_request(listener_name, req, client, addr)
        if gevent.getcurrent() not in self.ends:
            raise StopIteration  # it was ended (2), so no request follows
        self.ends[gevent.getcurrent()] = client, monotonic() + LOOK_SECONDS

    def run(self):
        """Watch `alive` (2, 3)."""
        gevent.spawn(self.watch)
        super().run()

    def watch(self):
        while True:
            gevent.sleep(LOOK_SECONDS)
            if not self.alive:
                self.end_connections()  # more of them as time passes

    def end_connections(self):
        ended = []
        for greenlet, (client, when) in list(self.ends.items()):
            if when <= monotonic():
                del self.ends[greenlet]
                if when == NOW:
                    greenlet.kill(block=False)
                with suppress(OSError):  # gevent's own would fail the reader
                    client._sock.shutdown(SHUT_RDWR if when == NOW else SHUT_RD)
                ended.append(greenlet)
        return ended

    def handle_quit(self, sig, frame):
        """End the streams before gunicorn exits (4)."""
        self.quitting = self.quitting or gevent.spawn(self.quit, sig, frame)

    def quit(self, sig, frame):
        self.alive = False
        gevent.joinall(self.end_connections(), timeout=QUIT_SECONDS)
        super().handle_quit(sig, frame)


def send_chunks(body, client):
    try:
        yield b""  # makes gunicorn send the headers
        for data in body:
            if data:  # an empty chunk would be the last one
                chunk = b"%X\r\n%b\r\n" % (len(data), data)
                sent = client.send(chunk)
                if sent < len(chunk):
                    client.sendall(memoryview(chunk)[sent:])
    finally:
        body.close()
