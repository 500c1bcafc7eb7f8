"""Chunks, disconnects, stops, reloads and invalid commands, over sockets."""

import errno
import gc
import json
import logging
import os
import resource
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import IncompleteRead
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE_SECONDS, PROJECT, Client, Server, wait_until

from event_source import parse_events
from streaming_worker import StreamingWorker, send_chunks, shorten

FEW = 20
FOR_EVER = "gunicorn --graceful-timeout 600 --keep-alive 600 probe:app"
"""A server that stops only if the worker ends every stream and connection."""

PROBE = {"PYTHONPATH": str(PROJECT / "tests")}  # to import `probe`
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "WebSocket",  # some clients write it in small letters
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
SLOTS = len(DISCONNECTS) * len(PATHS)
ENVIRON = {**PROBE, "FLASK_MAX_STREAMS": str(SLOTS)}


@pytest.fixture(scope="module")
def flask_probe() -> Iterator[Server]:
    with Server("flask --app probe run", **ENVIRON) as running:
        yield running


@pytest.fixture(scope="module")
def gunicorn_probe() -> Iterator[Server]:
    with Server(FOR_EVER, **ENVIRON) as running:
        yield running


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


def reload(server):
    """Return the process id of the old worker, once there is a new one."""
    old = worker_of(server)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: worker_of(server) != old)
    return old


def terminate(server):
    server.process.send_signal(signal.SIGTERM)


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


@pytest.mark.parametrize("stop", [terminate, press_ctrl_c])
def test_a_stop_ends_all_connections_and_runs_every_cleanup(
    start, stop, tmp_path
):
    # gunicorn starts from any folder.
    command = f"{FOR_EVER} -c {PROJECT}/gunicorn.conf.py"
    server = start(command, folder=tmp_path, **PROBE)
    with ExitStack() as opened:
        paths = ["/sse?interval=10"] * FEW + ["/slow-clean-up"]
        clients = [opened.enter_context(server.get(path)) for path in paths]
        for client in clients:
            assert next(client.chunks())
        ws = server.get("/socket?interval=10", **HANDSHAKE)
        assert opened.enter_context(ws).status == 101
        open_idle_connections(server, opened)
        stop(server)
        server.process.wait()
        for client in clients:
            with pytest.raises(IncompleteRead):
                client.read()
    server.stop()  # completes the log
    assert len(server.logged("^clock: closed after 0 ticks$")) == FEW
    assert server.logged("^cleaned up$")
    assert server.logged("Traceback|ERROR") == []


def test_a_reload_lets_a_response_finish_but_not_a_stream_that_begins(
    gunicorn_probe, tmp_path
):
    with (
        gunicorn_probe.get(f"/once{tmp_path}/done") as page,
        gunicorn_probe.get(f"/once{tmp_path}/done?stream") as stream,
    ):
        wait_until(lambda: len(gunicorn_probe.logged("^waiting$")) == 2)
        old = reload(gunicorn_probe)
        (tmp_path / "done").touch()
        assert page.read() == b"done"
        with pytest.raises(IncompleteRead):
            stream.read()
    wait_until(lambda: not is_alive(old))


def test_a_reload_loses_and_repeats_no_event(gunicorn_probe):
    path = "/real-time-updates?interval=0.05"
    with ExitStack() as opened:
        streams = []
        for _ in range(FEW):
            client = opened.enter_context(gunicorn_probe.get(path))
            streams.append(parse_events(client.chunks()))
        received = [[next(events).id] for events in streams]
        old = reload(gunicorn_probe)
        for ids, events in zip(received, streams, strict=True):
            with pytest.raises(IncompleteRead):
                ids.extend(event.id for event in events)
    wait_until(lambda: not is_alive(old))
    for ids in received:
        with gunicorn_probe.get(path, Last_Event_ID=ids[-1]) as client:
            ids.append(next(parse_events(client.chunks())).id)
        assert ids == [str(number + 1) for number in range(len(ids))]


STREAM = "/stream/reconnect?retry=7&drop_after=2&drop=end"


def raw_response(server, request):
    """Return the head and the body of a response, as they are sent."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request.encode())
        response = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = response.partition(b"\r\n\r\n")
    return head.decode(), body


def test_sends_no_empty_chunk_and_closes_the_body():
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
    assert gunicorn_probe.logged(r"Workers: 1 \(set REDIS_URL")
    assert not gunicorn_probe.logged("[Cc]ontrol socket")


def test_no_signal_adds_a_worker_without_redis(gunicorn_probe):
    for number in (signal.SIGTTIN, signal.SIGUSR1):
        gunicorn_probe.process.send_signal(number)
    wait_until(lambda: gunicorn_probe.logged("Handling signal: usr1"))
    master = gunicorn_probe.process.pid
    children = Path(f"/proc/{master}/task/{master}/children").read_text()
    assert children.split() == [str(worker_of(gunicorn_probe))]


HEAD = b"POST /notifications HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
UPGRADE = b"Upgrade: websocket\r\n"


def connect(server):
    return socket.create_connection(
        ("127.0.0.1", server.port), timeout=PATIENCE_SECONDS
    )


def test_a_slow_client_stays_connected(gunicorn_probe):
    body = b'{"text": "Hi", "level": "info"}'
    with connect(gunicorn_probe) as slow:
        slow.sendall(HEAD + JSON % len(body) + body[:9])
        time.sleep(0.25)  # the worker looks every 0.1 s for late requests
        slow.sendall(body[9:])
        assert slow.recv(15) == b"HTTP/1.1 201 CR"


SHORT_SECONDS = 1  # the shortest --keep-alive


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server with short timeouts, and with room for few connections."""
    command = f"gunicorn --keep-alive {SHORT_SECONDS} probe:app"
    command += f" --worker-connections {FEW}"
    environ = {**PROBE, "LIMIT_SECONDS": str(SHORT_SECONDS)}
    with Server(command, **environ) as running:
        yield running
    assert running.logged("Traceback") == []


def test_unfinished_requests_do_not_lock_others_out(impatient):
    halves = [HEAD, HEAD + JSON % 99 + b"{", HEAD + UPGRADE + JSON % 99 + b"{"]
    with ExitStack() as opened:
        clients = [opened.enter_context(connect(impatient)) for _ in range(FEW)]
        for number, client in enumerate(clients):
            client.sendall(halves[number % len(halves)])
        with impatient.get("/no-such-page") as visitor:
            assert visitor.status == 404
        for client in clients:
            while client.recv(65536):
                pass


def test_a_client_that_never_reads_is_disconnected(impatient):
    with (
        impatient.get("/large") as stream,
        impatient.get("/large-page") as page,
    ):
        assert (stream.status, page.status) == (200, 200)
        wait_until(lambda: len(impatient.logged("^large: closed$")) == 2)


def test_quiet_streams_and_slow_responses_stay_connected(impatient, tmp_path):
    query = f"?interval={2 * SHORT_SECONDS}"
    with (
        impatient.get(f"/once{tmp_path}/done") as page,
        impatient.get(f"/sse{query}") as quiet,
        impatient.get(f"/socket{query}", **HANDSHAKE) as ws,
    ):
        assert ws.status == 101
        assert next(parse_events(quiet.chunks())).data
        ws.sock.sendall(b"\x89\x80mask")  # a ping
        wait_until(lambda: ws.sock.recv(65536).endswith(b"\x8a\x00"))  # a pong
        (tmp_path / "done").touch()
        assert page.read() == b"done"


def test_a_vanished_client_is_logged_without_a_traceback():
    for number, is_short in ((errno.ETIMEDOUT, True), (errno.EIO, False)):
        error = OSError(number, "Failed")
        record = logging.makeLogRecord({"exc_info": (OSError, error, None)})
        assert shorten(record)
        assert (record.exc_info is None) == is_short


def test_watching_streams_does_not_start_the_garbage_collector():
    worker = StreamingWorker.__new__(StreamingWorker)
    worker.alive = True
    worker.open = dict.fromkeys(range(2000), (None, "stream", 0.0))
    threads = []

    def note(*_):
        threads.append(threading.current_thread())

    gc.collect()
    gc.callbacks.append(note)
    try:
        assert list(worker.end_connections()) == []
    finally:
        gc.callbacks.remove(note)
    assert threading.current_thread() not in threads


def test_logs_a_warning_if_too_few_open_files_are_allowed(monkeypatch, caplog):
    monkeypatch.setenv("FLASK_MAX_STREAMS", "100")
    monkeypatch.setenv("SECRET_KEY", "k")
    settings = runpy.run_path(str(PROJECT / "gunicorn.conf.py"))
    server = SimpleNamespace(num_workers=1, log=logging.getLogger())
    for open_files, warnings in (
        (599, ["ulimit -n is too low for MAX_STREAMS. Run `ulimit -n 600`."]),
        (600, []),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, n=open_files: [n])
        caplog.clear()
        settings["on_starting"](server)
        logged = [one for one in caplog.records if one.levelname == "WARNING"]
        assert [one.getMessage() for one in logged] == warnings


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
        ("-OO -m flask run", DOCSTRINGS),
    ],
)
def test_an_invalid_command_fails_with_one_line(command, line):
    ended = subprocess.run(
        [sys.executable, *command.split()],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stdout + ended.stderr == line + "\n"


def alive(server):
    with server.get("/probe", Connection="close") as client:
        return json.loads(client.read())


def can_open(server, number):
    """Return whether this many streams can be open simultaneously."""
    with ExitStack() as opened:
        path = "/sse?interval=0.05"
        clients = [server.get(path) for _ in range(number)]
        for client in clients:
            opened.enter_context(client)
        return {client.status for client in clients} == {200}


@pytest.mark.parametrize("fixture", ["flask_probe", "gunicorn_probe"])
def test_disconnects_of_every_kind_leave_nothing_behind(request, fixture):
    server = request.getfixturevalue(fixture)
    alive(server)
    before = alive(server)
    for disconnect, path in product(DISCONNECTS, PATHS):
        disconnect(server, path)

    def nothing_is_left():
        now = alive(server)
        return all(now[kind] <= before[kind] for kind in before)

    wait_until(nothing_is_left)
    wait_until(lambda: can_open(server, SLOTS))
