"""gunicorn's gevent worker, able to stop while streams are open.

Theory of operation:

1. On TERM, gunicorn's master sends TERM to its workers; on HUP it first starts
   new ones. A worker then sets `alive` to false, closes its listeners, and
   waits up to `graceful_timeout` (30 s) for requests to finish. An event stream
   never does. So every deploy takes half a minute, and no `finally` runs.
2. On INT and QUIT, the master sends QUIT, and the worker exits without waiting.
3. Therefore, once `alive` is false or QUIT has come, this worker ends the
   greenlets of its event streams and WebSockets: GreenletExit is raised where a
   stream waits, so its `finally` runs. Then it shuts the socket down: the
   client takes that for a dropped connection, and reconnects.
4. Idle connections (keep-alive, or a request that has not arrived) are closed.
   All other requests may finish.
5. Chunks are written here (RFC 9112, section 7.1): through gunicorn and gevent,
   each event would cost a third more. The price: an access log has no size for
   event streams.
"""

import socket
from contextlib import suppress

import gevent
from gunicorn.workers.ggevent import GeventWorker

LOOK_SECONDS = 0.1


class StreamingWorker(GeventWorker):
    def __init__(self, *args):
        super().__init__(*args)
        self.clients = {}  # greenlet: the socket that it serves
        self.requests = {}  # greenlet: whether its request is a stream

    def handle(self, listener, client, addr):
        """Note the connection of this greenlet (3, 4)."""
        self.clients[gevent.getcurrent()] = client
        try:
            super().handle(listener, client, addr)
        finally:
            self.clients.pop(gevent.getcurrent(), None)

    def handle_request(self, listener_name, req, sock, addr):
        """Note that this greenlet has no request any more (4)."""
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self.requests.pop(gevent.getcurrent(), None)
        if gevent.getcurrent() not in self.clients:
            raise StopIteration  # it was ended, so no request can follow

    def load_wsgi(self):
        """Note which requests are streams (3), and send their chunks (5)."""
        super().load_wsgi()
        app = self.wsgi

        def wsgi(environ, start_response):
            is_chunked = False

            def start(status, headers, exc_info=None):
                nonlocal is_chunked
                fields = dict(headers)
                media_type = fields.get("Content-Type", "")
                if media_type.startswith("text/event-stream"):
                    self.requests[gevent.getcurrent()] = True
                    is_http_1_1 = environ["SERVER_PROTOCOL"] == "HTTP/1.1"
                    is_chunked = is_http_1_1 and "Content-Length" not in fields
                return start_response(status, headers, exc_info)

            is_socket = environ.get("HTTP_UPGRADE", "").lower() == "websocket"
            self.requests[gevent.getcurrent()] = is_socket
            body = app(environ, start)
            if is_chunked:
                body = send_chunks(body, environ["gunicorn.socket"])
            return body

        self.wsgi = wsgi

    def run(self):
        """Look whether `alive` has turned false (3): TERM, and HUP."""
        gevent.spawn(self.end_streams_at_last)
        super().run()

    def handle_quit(self, sig, frame):
        """End the streams before gunicorn exits (2, 3): QUIT (and INT)."""
        gevent.spawn(self.end_streams)
        super().handle_quit(sig, frame)

    def end_streams_at_last(self):
        while self.alive:
            gevent.sleep(LOOK_SECONDS)
        while True:  # streams that were about to start come later
            self.end_streams()
            gevent.sleep(LOOK_SECONDS)

    def end_streams(self):
        for greenlet, client in list(self.clients.items()):
            is_stream = self.requests.get(greenlet)
            if is_stream is None or is_stream:
                del self.clients[greenlet]
                if is_stream:
                    greenlet.kill(block=False)
                # gevent's own shutdown would be an error for its reader.
                with suppress(OSError):
                    client._sock.shutdown(socket.SHUT_RDWR)


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
