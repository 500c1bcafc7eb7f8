"""Starting, stopping, reloading and leaving, as it happens in operation."""

import http.client
import json
import os
import re
import signal
import socket
import struct
import threading
import time
from contextlib import closing

import pytest
from conftest import PROJECT, Client, wait_until
from playwright.sync_api import expect
from upstream import Upstream, page

from event_source import parse_events

MANY = 200
PATHS = [
    "/stream/hello",
    "/real-time-updates?interval=0.05",
    "/sse?interval=0.05",
    "/stream/thinking?question=Why",
    "/stream/batch?rate=100&flush=10",
    "/stream/batch?rate=100&flush=0",
    "/completion?prompt=Why",
]


def worker_of(server):
    pids = server.logged(r"Booting worker with pid: \d+")
    return int(re.search(r"pid: (\d+)", pids[-1]).group(1))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_a_stop_ends_200_streams_with_their_clean_up(start, number):
    server = start("gunicorn")
    clients = [server.get("/sse?interval=10") for _ in range(MANY)]
    for client in clients:
        assert client.status == 200
    begin = time.monotonic()
    server.stop(getattr(signal, number))
    assert time.monotonic() - begin < 5
    assert len(server.logged("^clock: closed after 0 ticks$")) == MANY
    for client in clients:
        client.close()


def test_idle_connections_do_not_delay_a_stop(start):
    server = start("gunicorn")
    address = ("127.0.0.1", server.port)
    with (
        server.get("/demos/hello") as visitor,
        socket.create_connection(address),
        socket.create_connection(address) as slow,
    ):
        assert visitor.read()
        slow.sendall(b"GET /demos")
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 5
    assert server.logged("Traceback|ERROR") == []


def ask(server, **body):
    body |= {"messages": [{"role": "user", "content": "Hi"}]}
    return server.post(
        "/v1/chat/completions",
        json.dumps(body).encode(),
        Content_Type="application/json",
    )


def test_a_reload_lets_an_answer_finish_that_is_no_stream(start):
    def answer(connection):
        connection.pause()
        page(b"{}")(connection)

    with Upstream(answer) as upstream:
        server = start("gunicorn", OPENAI_BASE_URL=upstream.url)
        with ask(server) as client:
            wait_until(lambda: upstream.requests)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(server.logged("Booting worker")) == 2)
            upstream.go_on()
            assert client.read() == b"{}"


STREAM = "/stream/reconnect?retry=7&drop_after=2&drop=end"


def raw_answer(port, request):
    """Return the head and the body of an answer, as they are sent."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request.encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body


def test_gunicorn_sends_each_event_as_one_chunk(start):
    server = start("gunicorn")
    request = f"GET {STREAM} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    head, body = raw_answer(server.port, request)
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
    assert [chunk.count(b"data: ") for chunk in chunks] == [0, 1, 1, 1, 0]


def test_gunicorn_sends_no_chunks_to_a_client_that_knows_none(start):
    server = start("gunicorn")
    head, body = raw_answer(server.port, f"GET {STREAM} HTTP/1.0\r\n\r\n")
    assert "Transfer-Encoding" not in head
    assert body.startswith(b"retry: 7\nevent: asked\n")
    assert body.endswith(b"\n\nid: 2\ndata: event 2\n\n")


def test_an_event_larger_than_all_buffers_arrives_whole(start):
    server = start("gunicorn probe:app", PYTHONPATH=str(PROJECT / "tests"))
    with server.get("/large") as client:
        assert client.read() == b":\ndata: " + 20_000_000 * b"a" + b"\n\n"


def test_an_endless_request_line_is_refused(server):
    with server.get("/sse?interval=" + "1" * 70_000) as client:
        assert client.status == 414


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_clean_up_that_takes_its_time_is_not_cut_short(start, number):
    server = start("gunicorn probe:app", PYTHONPATH=str(PROJECT / "tests"))
    with server.get("/slow-clean-up") as client:
        next(parse_events(client.chunks()))
        server.process.send_signal(getattr(signal, number))
        wait_until(lambda: server.logged("^cleaned up$"))


class Browser(threading.Thread):
    """Reads a stream as a browser does, and reconnects when it drops."""

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


def test_a_reload_loses_and_repeats_no_id_of_200_readers(start):
    server = start("gunicorn")
    path = "/real-time-updates?interval=0.5"
    browsers = [Browser(server.port, path) for _ in range(MANY)]
    wait_until(lambda: all(len(b.ids) >= 2 for b in browsers), 30)
    old = worker_of(server)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not is_alive(old))
    assert time.monotonic() - begin < 5
    wait_until(lambda: all(b.connections >= 2 for b in browsers), 30)
    seen = [len(b.ids) for b in browsers]
    wait_until(
        lambda: all(
            len(b.ids) > n for b, n in zip(browsers, seen, strict=True)
        ),
        30,
    )
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


def leave_at_once(server, path):
    server.get(path).close()


def leave_with_a_reset(server, path):
    reset(server.get(path))


def leave_after_the_first_bytes(server, path):
    with server.get(path) as client:
        next(client.chunks())


def leave_with_a_reset_in_the_middle(server, path):
    client = server.get(path)
    events = parse_events(client.chunks())
    next(events)
    reset(client)


def leave_after_closing_one_half(server, path):
    with server.get(path) as client:
        client.sock.shutdown(socket.SHUT_WR)
        next(client.chunks())


def ask_for_the_head_only(server, path):
    with closing(Client(server.port, "HEAD", path)) as client:
        assert client.status == 200


WAYS = [
    leave_at_once,
    leave_with_a_reset,
    leave_after_the_first_bytes,
    leave_with_a_reset_in_the_middle,
    leave_after_closing_one_half,
    ask_for_the_head_only,
]


def alive(server):
    with server.get("/probe", Connection="close") as client:
        return json.loads(client.read())


@pytest.mark.parametrize(
    "command", ["flask --app probe run", "gunicorn probe:app"]
)
def test_nothing_is_left_of_200_streams_left_in_every_way(start, command):
    server = start(command, PYTHONPATH=str(PROJECT / "tests"))
    alive(server)
    before = alive(server)
    for number in range(MANY):
        way = WAYS[number % len(WAYS)]
        way(server, PATHS[number // len(WAYS) % len(PATHS)])

    def nothing_is_left():
        now = alive(server)
        return all(now[kind] <= before[kind] for kind in before)

    wait_until(nothing_is_left, 20)


def test_a_browser_comes_back_to_a_restarted_server(start, page):
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


def test_gunicorn_asks_for_no_options_and_makes_no_files(start):
    server = start("gunicorn app:app")
    assert server.logged("Using worker: StreamingWorker")
    assert not server.logged("[Cc]ontrol socket")
