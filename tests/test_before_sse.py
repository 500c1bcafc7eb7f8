import json
import socket
import struct
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

import pytest
from conftest import COMMANDS, Address, LiveServer, Server, wait_until
from playwright.sync_api import expect

from app import create_app
from demos.before_sse import ticking
from event_source import parse_events

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
OVER_WSGI = {name.replace("_", "-"): HANDSHAKE[name] for name in HANDSHAKE}
NO_HANDSHAKE = {"error": "This URL expects a WebSocket handshake."}
CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
STREAM = "/stream/before_sse"
ROWS = ("poll", "long", "socket", "stream")
Row = namedtuple("Row", ["requests", "events", "delay"])


@pytest.fixture(autouse=True)
def _no_traceback(request):
    """Fail the test if its server has logged a traceback."""
    if "server" not in request.fixturenames:
        yield
        return
    server = request.getfixturevalue("server")
    length = len(server.log)
    yield
    assert "Traceback" not in "\n".join(server.log[length:])


def newest(interval):
    return int(time.time() / interval)


def open_socket(server, query="interval=10", **headers):
    return server.get(f"/socket?{query}", **HANDSHAKE | headers)


def frames(client):
    """Yield the opcode and the payload of each frame as it arrives."""
    while head := client.response.fp.read(2):
        size = head[1]
        if size == 126:
            size = int.from_bytes(client.response.fp.read(2), "big")
        yield head[0] & 15, client.response.fp.read(size)


def frame(opcode, payload=b"", is_last=True):
    """Return a frame as a browser sends it, masked with zeros."""
    size = len(payload)
    length = (
        bytes([size | 128]) if size < 126 else struct.pack("!BH", 254, size)
    )
    return (
        bytes([opcode | (128 if is_last else 0)]) + length + bytes(4) + payload
    )


def send(client, *frames):
    client.sock.sendall(b"".join(frames))


def by_polls(path):
    def ticks(server, interval, after):
        while True:
            query = f"interval={interval}&after={after}"
            with server.get(f"{path}?{query}") as client:
                answer = json.loads(client.read())
            yield from answer["ticks"]
            after = answer["newest"]

    return ticks


def by_socket(server, interval, after):
    query = f"interval={interval}&after={after}"
    with open_socket(server, query) as client:
        for _, payload in frames(client):
            yield json.loads(payload)


def by_stream(server, interval, after):
    query = f"interval={interval}&after={after}"
    with server.get(f"{STREAM}?{query}") as client:
        for event in parse_events(client.chunks()):
            tick = json.loads(event.data)
            assert event.id == str(tick["n"])
            yield tick


WAYS = {
    "poll": by_polls("/poll"),
    "long-poll": by_polls("/long-poll"),
    "socket": by_socket,
    "stream": by_stream,
}


def test_no_tick_is_early_even_if_sleep_returns_early():
    clock, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        clock[0] += min(seconds, 0.25)

    ticks = ticking(0.5, 199, now=lambda: clock[0], sleep=sleep)
    assert next(ticks) == {"n": 200, "at": 100.0}
    assert slept == []
    assert next(ticks) == {"n": 201, "at": 100.5}
    assert slept == [0.5, 0.25]
    assert clock == [100.5]


def test_a_late_client_gets_at_most_100_events_without_waiting():
    clock = [1000.0]
    ticks = ticking(2, 500, now=lambda: clock[0], sleep=lambda _: 1 / 0)
    clock[0] += 4
    assert [next(ticks)["n"] for _ in range(2)] == [501, 502]
    clock[0] += 8000
    late = [next(ticks)["n"] for _ in range(101)]
    assert late == [*range(4402, 4503)]
    with pytest.raises(ZeroDivisionError):
        next(ticks)


def test_sends_exactly_these_bytes(client):
    n = newest(2.5)
    with client.get(f"{STREAM}?interval=2.5&after={n - 1}") as response:
        sent = b"".join(islice(response.iter_encoded(), 2))
    assert sent == b':\nid: %d\ndata: {"n":%d,"at":%.1f}\n\n' % (n, n, n * 2.5)


def test_all_four_ways_deliver_the_same_events(server):
    for way in WAYS.values():
        after = newest(0.25) - 6
        expected = [
            {"n": n, "at": n * 0.25} for n in range(after + 1, after + 8)
        ]
        ticks = way(server, 0.25, after)
        assert [next(ticks) for _ in expected] == expected
        ticks.close()


def test_replays_at_most_100_events(client):
    before = newest(1)
    ticks = client.get("/poll?interval=1&after=0").json["ticks"]
    assert before - 99 <= ticks[0]["n"] <= newest(1) - 99


def test_a_future_event_counts_as_the_newest(client):
    before = newest(0.1)
    answer = client.get(f"/long-poll?interval=0.1&after={10**15}").json
    assert before < answer["ticks"][0]["n"] <= newest(0.1)


def test_the_last_event_id_takes_precedence_over_the_query_string(client):
    now = newest(1)
    path = f"{STREAM}?interval=1&after={now - 5}"
    for last, back in {str(now - 3): 3, "x": 5, "-1": 5, "": 5}.items():
        with client.get(path, headers={"Last-Event-ID": last}) as response:
            events = parse_events(response.iter_encoded())
            assert next(events).id == str(now - back + 1)


def test_a_page_of_another_site_can_open_no_websocket(client):
    headers = OVER_WSGI | {"Origin": "http://localhost:1"}
    assert client.get("/socket", headers=headers).status_code == 403


def test_no_cache_stores_a_response(client):
    for path, value in {
        "/poll": "no-store",
        "/long-poll": "no-store",
        STREAM: "no-cache, no-transform",
    }.items():
        with client.get(f"{path}?interval=0.01") as response:
            assert response.headers["Cache-Control"] == value


def test_refuses_a_request_without_a_valid_handshake(server):
    for headers in (
        {},
        {"Connection": "Upgrade", "Upgrade": "websocket"},
        HANDSHAKE | {"Sec_WebSocket_Version": "12"},
        HANDSHAKE | {"Upgrade": "h2c"},
    ):
        with server.get("/socket", **headers) as client:
            assert client.status == 400, headers
            assert json.loads(client.read()) == NO_HANDSHAKE


def test_a_message_of_more_than_one_byte_closes_the_socket(server):
    for too_much in (
        [frame(TEXT, b"xx")],
        [frame(BINARY, b"x" * 600)],
        [frame(TEXT, b"x", is_last=False), frame(CONTINUED, b"x")],
    ):
        with open_socket(server, "interval=0.05") as client:
            assert client.status == 101
            received = frames(client)
            send(client, frame(TEXT, b"x"), frame(PING, b"still there?"))
            assert (PONG, b"still there?") in received
            send(client, *too_much)
            *_, (opcode, payload) = received
            assert opcode == CLOSE
            assert int.from_bytes(payload[:2], "big") == 1009


def test_nothing_follows_the_response_to_a_close_frame(server):
    with open_socket(server) as client:
        assert client.status == 101
        received = frames(client)
        send(client, frame(CLOSE, b"\x03\xe8"))
        *_, last = received
        assert last == (CLOSE, b"\x03\xe8")


@pytest.mark.parametrize("opcode", [TEXT, PONG])
def test_a_client_that_floods_the_socket_delays_nobody(server, opcode):
    burst = frame(opcode, b"x") * 1000

    def flood(client):
        with suppress(OSError):
            while True:
                send(client, burst)

    with open_socket(server) as client:
        assert client.status == 101
        flooding = threading.Thread(target=flood, args=(client,))
        flooding.start()
        with server.get("/poll") as other:
            assert other.status == 200
        assert flooding.is_alive()
        client.sock.shutdown(socket.SHUT_RDWR)
        flooding.join()


def close(client):
    client.close()


def close_with_a_frame(client):
    send(client, frame(CLOSE))
    assert CLOSE in (opcode for opcode, _ in frames(client))
    client.close()


def reset(client):
    linger = struct.pack("ii", 1, 0)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.close()


def status(client):
    with client:
        return client.status


@pytest.fixture(params=COMMANDS)
def one_slot(request, caplog) -> Iterator[Address]:
    """A server that allows one stream."""
    if request.param == "flask":
        with LiveServer(create_app({"MAX_STREAMS": 1})) as server:
            yield server
        # `caplog.text` would contain only what was logged after the test.
        records = caplog.get_records("call")
        log = "\n".join(map(caplog.handler.format, records))
    else:
        with Server("gunicorn", FLASK_MAX_STREAMS="1") as server:
            yield server
        log = "\n".join(server.log)
    assert "Traceback" not in log


def test_a_disconnect_frees_its_slot_before_the_next_tick(one_slot):
    server = one_slot

    def is_accepted(disconnect):
        with open_socket(server) as client:
            if client.status == 101:
                disconnect(client)
            return client.status == 101

    def frees_its_slot(disconnect):
        """Return whether it happens between ticks. Slow machines retry."""
        wait_until(lambda: is_accepted(disconnect))
        tick = newest(10)
        wait_until(lambda: is_accepted(close))
        return newest(10) == tick

    with open_socket(server) as client:
        assert client.status == 101
        assert status(open_socket(server)) == 503
        assert status(server.get("/long-poll")) == 503
        assert status(server.get(STREAM)) == 503
        assert status(server.get("/poll")) == 200
    for way in (close, close_with_a_frame, reset):
        wait_until(lambda way=way: frees_its_slot(way), 90)
    for _ in range(5):
        reset(open_socket(server, "interval=0.01"))  # during the handshake
        server.get("/long-poll?interval=0.1").close()
        assert status(server.get("/socket")) in (400, 503)
        assert status(server.get("/long-poll?interval=x")) in (400, 503)
    wait_until(lambda: is_accepted(close))


def rows(page):
    """Return the numbers that the page shows for each way at one moment."""
    table = page.evaluate(
        "ids => ids.map(id => [...document.getElementById(id).cells]"
        ".slice(1).map(cell => Number(cell.textContent.replace('–', '0'))))",
        ROWS,
    )
    return {way: Row(*row) for way, row in zip(ROWS, table, strict=True)}


def begin(page, interval="0.1", every="0.3"):
    page.get_by_label("An event every").fill(interval)
    page.get_by_label("A poll every").fill(every)
    page.get_by_role("button", name="Start").click()


def stop(page):
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#state")).to_have_text("closed")
    return rows(page)


def wait_for_events(page, count):
    wait_until(lambda: all(row.events >= count for row in rows(page).values()))


def test_four_ways_show_the_same_and_only_polls_request_again(
    page, lesson_page, site
):
    page.expected = "Data frame received after close"  # rare, but harmless
    requests, sockets = [], []
    page.on("request", lambda one: requests.append(one))
    page.on("websocket", lambda one: sockets.append(one))
    page = lesson_page("before_sse")
    page.evaluate(
        "() => { const { now } = Date; Date.now = () => now() + 3_600_000; }"
    )
    before = newest(0.1)
    begin(page, every="0.5")
    wait_for_events(page, 6)

    def long_polls_are_more_frequent():
        now = rows(page)
        return now["long"].requests > now["poll"].requests + 2

    wait_until(long_polls_are_more_frequent)
    shown = stop(page)
    assert shown["socket"].requests == shown["stream"].requests == 1
    assert 1 < shown["poll"].requests < shown["poll"].events / 2
    assert shown["poll"].delay > 100  # because it waits for half a second
    for row in shown.values():
        assert row.events <= newest(0.1) - before  # none counts twice
        assert -1000 < row.delay < 1_000_000  # the clock is an hour ahead

    asked = len(requests)
    later = by_stream(site, 0.1, newest(0.1))
    for _ in range(6):
        next(later)
    later.close()
    assert rows(page) == shown
    assert len(requests) == asked
    wait_until(lambda: all(one.is_closed() for one in sockets))

    begin(page)
    wait_for_events(page, 2)
    anew = stop(page)
    assert anew["socket"].requests == anew["stream"].requests == 1

    cells = page.locator("table.prose tbody td").all_text_contents()
    assert len(cells) == 14
    assert all(cell.strip() for cell in cells)
