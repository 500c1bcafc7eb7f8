"""Chunks, disconnects, stops, reloads and restarts, over real sockets."""

import errno
import http.client
import json
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PROJECT, Client, Server, wait_until
from playwright.sync_api import expect
from upstream import Upstream, delta, page, stream

from event_source import parse_events
from streaming_worker import send_chunks

MANY = 200
STOP_SECONDS = 15
"""Half the time that gunicorn waits for connections that do not end."""

PROBE = {"PYTHONPATH": str(PROJECT / "tests")}  # to import `probe`
FEW = {"FLASK_MAX_STREAMS": str(MANY // 2)}
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "WebSocket",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec_WebSocket_Version": "13",
}
PATHS = [
    "/stream/hello",
    "/real-time-updates?interval=0.05",
    "/sse?interval=0.05",
    "/stream/thinking?question=Why",
    "/stream/batch?rate=100&flush=10",
    "/stream/batch?rate=100&flush=0",
    "/completion?prompt=Why",
]


@pytest.fixture(scope="module")
def flask_probe() -> Iterator[Server]:
    running = Server("flask --app probe run", **PROBE, **FEW)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gunicorn_probe() -> Iterator[Server]:
    running = Server("gunicorn probe:app", **PROBE, **FEW)
    yield running
    running.stop()


def worker_of(server):
    booting = r"Booting worker with pid: \d+"
    wait_until(lambda: server.logged(booting))
    return int(server.logged(booting)[-1].rpartition(" ")[2])


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def press_ctrl_c(server):
    """Send SIGINT to the master and the worker, as a terminal does."""
    os.kill(worker_of(server), signal.SIGINT)
    server.process.send_signal(signal.SIGINT)


def open_idle_connections(server, opened):
    """Open one connection of each kind that has no active request."""
    address = ("127.0.0.1", server.port)
    visitor = opened.enter_context(server.get("/demos/hello"))
    assert visitor.read()
    opened.enter_context(socket.create_connection(address))
    half = opened.enter_context(socket.create_connection(address))
    half.sendall(b"GET /demos")


@pytest.mark.parametrize(
    "stop",
    [
        lambda server: server.process.send_signal(signal.SIGTERM),
        lambda server: server.process.send_signal(signal.SIGINT),
        lambda server: server.process.send_signal(signal.SIGQUIT),
        lambda server: server.process.send_signal(signal.SIGHUP),
        press_ctrl_c,
    ],
    ids=["TERM", "INT", "QUIT", "HUP", "Ctrl-C"],
)
def test_a_stop_ends_all_connections_and_runs_every_cleanup(start, stop):
    server = start("gunicorn --keep-alive 60 probe:app", **PROBE)
    old = worker_of(server)
    with ExitStack() as opened:
        paths = ["/sse?interval=10"] * MANY + ["/slow-clean-up"]
        clients = [opened.enter_context(server.get(path)) for path in paths]
        for client in clients:
            assert next(client.chunks())
        for upgrade in ["websocket", "WebSocket"] * 10:
            headers = HANDSHAKE | {"Upgrade": upgrade}
            client = server.get("/socket?interval=10", **headers)
            assert opened.enter_context(client).status == 101
        open_idle_connections(server, opened)
        stop(server)
        wait_until(lambda: not is_alive(old), STOP_SECONDS)
        closed = "^clock: closed after 0 ticks$"
        wait_until(lambda: len(server.logged(closed)) == MANY)
        wait_until(lambda: server.logged("^cleaned up$"))
        for client in clients:
            with pytest.raises(http.client.IncompleteRead):
                client.read()
    assert server.logged("Traceback|ERROR") == []


def ask(server, **body):
    body |= {"messages": [{"role": "user", "content": "Hi"}]}
    return server.post(
        "/v1/chat/completions",
        json.dumps(body).encode(),
        Content_Type="application/json",
    )


def test_a_reload_lets_a_response_finish_but_not_a_stream_that_begins(start):
    def answer(connection):
        connection.pause()
        if connection.request.json.get("stream"):
            stream(delta("Hello"), end="silent")(connection)
        else:
            page(b"{}")(connection)

    with Upstream(answer) as upstream:
        server = start("gunicorn", OPENAI_BASE_URL=upstream.url)
        old = worker_of(server)
        with ask(server) as complete, ask(server, stream=True) as streamed:
            wait_until(lambda: len(upstream.requests) == 2)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: worker_of(server) != old)
            for connection in upstream.connections:
                connection.resume()
            assert complete.read() == b"{}"
            with pytest.raises(http.client.IncompleteRead):
                streamed.read()
            wait_until(lambda: not is_alive(old), STOP_SECONDS)


STREAM = "/stream/reconnect?retry=7&drop_after=2&drop=end"


def raw_response(server, request):
    """Return the head and the body of a response, as they are sent."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request.encode())
        response = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = response.partition(b"\r\n\r\n")
    return head.decode(), body


def test_an_empty_part_is_no_chunk_and_the_body_is_closed():
    class Body(list):
        def close(self):
            sent.append("closed")

    sent = []
    client = SimpleNamespace(send=lambda chunk: sent.append(chunk) or 99)
    assert list(send_chunks(Body([b"a", b"", b"bc"]), client)) == [b""]
    assert sent == [b"1\r\na\r\n", b"2\r\nbc\r\n", "closed"]


def test_gunicorn_sends_each_event_as_one_chunk(gunicorn_probe):
    request = (
        f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    head, body = raw_response(gunicorn_probe, request)
    assert "Transfer-Encoding: chunked" in head
    sizes, chunks = [], []
    while body:
        size, _, body = body.partition(b"\r\n")
        sizes.append(int(size, 16))
        chunks.append(body[: sizes[-1]])
        assert body[sizes[-1] :][:2] == b"\r\n"
        body = body[sizes[-1] + 2 :]
    assert sizes[-1] == 0
    assert chunks[0] == b"retry: 7\n"
    assert [chunk.count(b"data: ") for chunk in chunks] == [0, 1, 1, 0]


def test_gunicorn_sends_no_chunks_to_an_http_1_0_client(gunicorn_probe):
    head, body = raw_response(gunicorn_probe, f"GET {STREAM} HTTP/1.0\r\n\r\n")
    assert "Transfer-Encoding" not in head
    assert body.startswith(b"retry: 7\nid: 1\ndata: event 1\n\n")
    assert body.endswith(b"\n\nid: 2\ndata: event 2\n\n")


def test_gunicorn_sends_no_body_for_head(gunicorn_probe):
    request = (
        f"HEAD {STREAM} HTTP/1.1\r\n"
        "Host: localhost\r\nConnection: close\r\n\r\n"
    )
    head, body = raw_response(gunicorn_probe, request)
    assert "Content-Type: text/event-stream" in head
    assert body == b""


def test_a_busy_stream_lets_others_run(gunicorn_probe):
    with gunicorn_probe.get("/replay") as client:
        *events, turns = parse_events([client.read()])
    assert len(events) == 1000
    assert int(turns.data) > 10


def test_an_event_larger_than_all_buffers_arrives_complete(gunicorn_probe):
    with gunicorn_probe.get("/large") as client:
        assert client.read() == b":\ndata: " + 20_000_000 * b"a" + b"\n\n"


def test_a_request_line_over_the_limit_is_rejected(gunicorn_probe, site):
    for server in (gunicorn_probe, site):
        with server.get("/sse?interval=" + "1" * 70_000) as client:
            assert client.status == 414


def test_gunicorn_needs_no_options(gunicorn_probe):
    assert gunicorn_probe.logged("Using worker: StreamingWorker")
    assert not gunicorn_probe.logged("[Cc]ontrol socket")


SHORT_SECONDS = 1.5
SHORT = {"SHORT_SECONDS": str(SHORT_SECONDS), "FLASK_MAX_STREAMS": "62"}
"""Short timeouts, for a worker with room for 262 connections."""


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    running = Server("gunicorn --keep-alive 2 probe:app", **PROBE, **SHORT)
    yield running
    running.stop()
    assert running.logged("Traceback") == []


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


HEAD = b"POST /notifications HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
HALF_REQUESTS = {
    "head": HEAD,
    "body": HEAD + JSON % 99 + b"{",
    "body, as if for a WebSocket": HEAD
    + b"Upgrade: websocket\r\n"
    + JSON % 99
    + b"{",
}


@pytest.mark.parametrize("half", HALF_REQUESTS)
def test_unfinished_requests_do_not_lock_others_out(impatient, half):
    with ExitStack() as opened:
        clients = [opened.enter_context(connect(impatient)) for _ in range(262)]
        for client in clients:
            client.sendall(HALF_REQUESTS[half])
        with impatient.get("/demos/hello") as visitor:
            assert visitor.status == 200
        for client in clients:
            while client.recv(65536):
                pass


def test_a_client_that_never_reads_is_disconnected(impatient):
    with (
        impatient.get("/large") as stream,
        impatient.get("/large-page") as page,
    ):
        assert (stream.status, page.status) == (200, 200)
        wait_until(lambda: alive(impatient)["connections"] == 1)


def test_slow_clients_and_quiet_streams_stay_connected(impatient):
    seconds = 2 * SHORT_SECONDS
    body = b'{"text": "Hi", "level": "info"}'
    with (
        impatient.get(f"/sse?interval={seconds}") as quiet,
        impatient.get(f"/socket?interval={seconds}", **HANDSHAKE) as ws,
        connect(impatient) as slow,
    ):
        assert ws.status == 101
        slow.sendall(HEAD + JSON % len(body))
        for number in range(len(body)):
            time.sleep(SHORT_SECONDS / 5 / len(body))
            slow.sendall(body[number : number + 1])
        assert slow.recv(15) == b"HTTP/1.1 201 CR"
        assert next(parse_events(quiet.chunks())).data
        ws.sock.sendall(b"\x89\x80mask")  # a ping
        wait_until(lambda: ws.sock.recv(65536).endswith(b"\x8a\x00"))  # a pong


def test_a_vanished_client_is_logged_without_a_traceback():
    from streaming_worker import shorten  # imports gevent

    for number, is_short in ((errno.ETIMEDOUT, True), (errno.EIO, False)):
        error = OSError(number, "Failed")
        record = logging.makeLogRecord({"exc_info": (OSError, error, None)})
        assert shorten(record)
        assert (record.exc_info is None) == is_short


ALONE = "Run 1 worker, or set REDIS_URL to share events between several."
KIND = "Omit -k: event streams need the StreamingWorker."
INSTEAD = "Run `flask run` or, in production, `gunicorn` instead."
DOCSTRINGS = (
    "Unset PYTHONOPTIMIZE, and omit -OO: "
    "the pages show the docstrings of the lessons."
)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("-m gunicorn -w 2", ALONE),
        ("-m gunicorn -k sync", KIND),
        ("-m gunicorn -k gthread --threads 4", KIND),
        ("-m gunicorn -k gevent", KIND),
        ("app.py", INSTEAD),
        ("-OO -m gunicorn", DOCSTRINGS),
        ("-OO -m flask run", DOCSTRINGS),
    ],
)
def test_an_invalid_command_fails_with_one_line(command, line):
    ended = subprocess.run(
        [sys.executable, *command.split()],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stdout + ended.stderr == line + "\n"


def test_gunicorn_starts_from_another_folder(start, tmp_path):
    server = start(f"gunicorn -c {PROJECT}/gunicorn.conf.py", folder=tmp_path)
    with server.get("/demos/hello") as client:
        assert client.status == 200


def test_no_signal_adds_a_worker_without_redis(start):
    server = start("gunicorn")
    for number in (signal.SIGTTIN, signal.SIGUSR1):
        server.process.send_signal(number)
    wait_until(lambda: server.logged("Handling signal: usr1"))
    master = server.process.pid
    children = Path(f"/proc/{master}/task/{master}/children").read_text()
    assert children.split() == [str(worker_of(server))]


def test_logs_a_warning_if_too_few_open_files_are_allowed(start):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for open_files, warnings in ((599, 1), (600, 0)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, limits[1]))
        try:
            server = start("gunicorn", FLASK_MAX_STREAMS="100")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        advice = "WARNING.* ulimit -n is too low .*`ulimit -n 600`"
        assert len(server.logged(advice)) == warnings


class Browser(threading.Thread):
    """A client that reconnects as a browser does when its stream drops."""

    def __init__(self, port, path):
        super().__init__(daemon=True)
        self.port, self.path = port, path
        self.ids, self.connections = [], 0
        self.done = threading.Event()
        self.start()

    def run(self):
        while not self.done.is_set():
            headers = {"Last-Event-ID": self.ids[-1]} if self.ids else {}
            try:
                self.read(Client(self.port, "GET", self.path, None, headers))
            except (OSError, http.client.HTTPException):
                continue

    def read(self, client):
        with client:
            if client.status == 200:
                self.connections += 1
            for event in parse_events(client.chunks()):
                self.ids.append(event.id)
                if self.done.is_set():
                    break


def test_a_reload_loses_and_repeats_no_event_of_200_clients(start):
    server = start("gunicorn")
    path = "/real-time-updates?interval=0.5"
    browsers = [Browser(server.port, path) for _ in range(MANY)]
    try:
        wait_until(lambda: all(len(b.ids) >= 2 for b in browsers))
        old = worker_of(server)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not is_alive(old), STOP_SECONDS)
        wait_until(lambda: all(b.connections >= 2 for b in browsers))
        seen = [len(b.ids) for b in browsers]
        wait_until(
            lambda: all(
                len(b.ids) > n for b, n in zip(browsers, seen, strict=True)
            )
        )
    finally:
        for browser in browsers:
            browser.done.set()
    for browser in browsers:
        browser.join()
        count = len(browser.ids)
        assert browser.ids == [str(n) for n in range(1, count + 1)]


def reset(client):
    linger = struct.pack("ii", 1, 0)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.close()


def close_immediately(server, path):
    server.get(path).close()


def reset_immediately(server, path):
    reset(server.get(path))


def close_after_the_first_bytes(server, path):
    with server.get(path) as client:
        next(client.chunks())


def reset_after_the_first_event(server, path):
    client = server.get(path)
    next(parse_events(client.chunks()))
    reset(client)


def close_after_closing_one_half(server, path):
    with server.get(path) as client:
        client.sock.shutdown(socket.SHUT_WR)
        next(client.chunks())


def request_only_the_head(server, path):
    with closing(Client(server.port, "HEAD", path)) as client:
        assert client.status == 200


DISCONNECTS = [
    close_immediately,
    reset_immediately,
    close_after_the_first_bytes,
    reset_after_the_first_event,
    close_after_closing_one_half,
    request_only_the_head,
]


def alive(server):
    with server.get("/probe", Connection="close") as client:
        return json.loads(client.read())


@pytest.mark.parametrize("fixture", ["flask_probe", "gunicorn_probe"])
def test_200_disconnects_of_every_kind_leave_nothing_behind(request, fixture):
    server = request.getfixturevalue(fixture)
    alive(server)
    before = alive(server)
    for number in range(MANY):
        disconnect = DISCONNECTS[number % len(DISCONNECTS)]
        disconnect(server, PATHS[number // len(DISCONNECTS) % len(PATHS)])

    def nothing_is_left():
        now = alive(server)
        return all(now[kind] <= before[kind] for kind in before)

    wait_until(nothing_is_left)
    with server.get("/stream/hello") as client:
        assert client.status == 200  # the streams no longer count as open


def test_a_browser_reconnects_after_a_restart(start, page):
    server = start("gunicorn")
    page.goto(f"{server.url}/demos/numbers")
    page.get_by_label("Interval in seconds").fill("0.1")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("id 5:").wait_for()
    server.stop()
    expect(page.locator("#state")).to_have_text("reconnecting")
    start("gunicorn", port=server.port)
    expect(page.locator("#state")).to_have_text("open")
    received = int(page.locator("#received").text_content())
    page.get_by_text(f"id {received + 5}:").wait_for()
    assert page.locator("#missing").text_content() == "0"
    page.problems.clear()
