"""gunicorn's gevent worker, which can stop while event streams are open.

After TERM or HUP, gunicorn's worker sets `alive` to false, and waits for its
connections. Streams never end, so it is killed after 30 s, and no `finally`
block runs. None runs after QUIT or INT either. This worker follows six rules:

1. A stream is a response of the type text/event-stream, or a request to upgrade
   to a WebSocket. All other requests may finish.
2. Once `alive` is false, streams end. The worker raises GreenletExit where each
   one waits, so its `finally` runs. It shuts down the socket, so the client
   reconnects. It does so only once, because twice could interrupt a `finally`.
3. Once `alive` is false, idle connections soon stop reading, so they end.
4. After QUIT, it waits up to QUIT_SECONDS for each `finally`. Ctrl-C sends two.
   It never exits once `run` has ended, because `atexit` may be ending jobs.
5. It sends each part of a stream as one chunk (RFC 9112, section 7.1), in half
   of gunicorn's CPU time. After TURN parts, it lets other greenlets run.
6. Linux drops a client that reads or acknowledges nothing for SILENCE_MS.
   `keepalive` limits the time for a request's head, LIMITS that for its body.
"""

import socket
import sys
from contextlib import suppress
from errno import EHOSTUNREACH, ETIMEDOUT
from socket import IPPROTO_TCP, SHUT_RD, SHUT_RDWR
from time import monotonic

import gevent
from gunicorn.workers.ggevent import GeventWorker

LOOK_SECONDS, QUIT_SECONDS, SILENCE_MS, TURN = 0.1, 5.0, 20_000, 20
LIMITS = {"idle": LOOK_SECONDS, "request": 30.0, "stream": 0.0}


class StreamingWorker(GeventWorker):
    open = {}  # maps greenlets; see `note`
    quitting, is_running = None, True

    def load_wsgi(self):
        """Detect streams (1), and chunk those that gunicorn would chunk (5)."""
        super().load_wsgi()
        self.log.error_log.addFilter(shorten)
        gevent.spawn(self.watch)
        app = self.wsgi

        def wsgi(environ, start_response):
            client = environ["gunicorn.socket"]
            upgrade = environ.get("HTTP_UPGRADE", "").lower()
            if environ["REQUEST_METHOD"] == "GET" and upgrade == "websocket":
                self.note(client, "stream")
            body = app(environ, start_response)
            response = start_response.__self__  # gunicorn's, with its headers
            media_type = dict(response.headers).get("Content-Type", "")
            if media_type.startswith("text/event-stream"):
                self.note(client, "stream")
                if response.chunked:
                    body = send_chunks(body, client)
            return body

        self.wsgi = wsgi

    def note(self, client, state):
        self.open[gevent.getcurrent()] = client, state, monotonic()

    def handle(self, listener, client, addr):
        with suppress(AttributeError, OSError):  # not on Linux, or not TCP
            client.setsockopt(IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
        self.note(client, "idle")
        super().handle(client, client, addr)  # the listener may be closed
        self.open.pop(gevent.getcurrent(), None)

    def handle_request(self, listener_name, req, client, addr):
        self.note(client, "request")
        super().handle_request(listener_name, req, client, addr)
        if gevent.getcurrent() not in self.open:
            raise StopIteration  # it has ended (2, 6): accept no more requests
        self.note(client, "idle")

    def watch(self):
        while True:
            list(self.end_connections())  # more become due over time
            gevent.sleep(LOOK_SECONDS)

    def end_connections(self):
        for greenlet in list(self.open):  # tuples of items() would trigger GC
            client, state, since = self.open[greenlet]
            due = state == "request" or not self.alive
            if due and monotonic() >= since + LIMITS[state]:
                del self.open[greenlet]
                if streams := state == "stream":
                    greenlet.kill(block=False)
                with suppress(OSError):  # gevent's would make a read raise
                    client._sock.shutdown(SHUT_RDWR if streams else SHUT_RD)
                yield greenlet

    def handle_quit(self, sig, frame):  # (4)
        if self.quitting is None:  # a greenlet that has ended is falsy
            self.quitting = gevent.spawn(self.quit)

    def quit(self):
        self.alive = False
        gevent.joinall(list(self.end_connections()), timeout=QUIT_SECONDS)
        if self.is_running:
            sys.exit()

    def run(self):
        super().run()
        self.is_running = False


def shorten(record):  # log no traceback for a client that vanished (6)
    error = record.exc_info and record.exc_info[1]
    if getattr(error, "errno", None) in (ETIMEDOUT, EHOSTUNREACH):
        record.exc_info = None
    return True


def send_chunks(body, client):
    try:
        yield b""  # makes gunicorn send the headers
        for count, data in enumerate(body):
            if data:  # an empty chunk would end the response
                chunk = b"%X\r\n%b\r\n" % (len(data), data)
                if (sent := client.send(chunk)) < len(chunk):
                    client.sendall(memoryview(chunk)[sent:])
            if count % TURN == 0:
                gevent.sleep(0)
    finally:
        body.close()
