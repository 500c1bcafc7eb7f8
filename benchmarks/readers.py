"""The load generator: any number of event stream clients on plain sockets.

It runs in the measuring process, on a core that no server uses.
"""

import re
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from urllib.request import urlopen

BUFFER_BYTES = 256 * 1024
RESET = struct.pack("ii", 1, 0)  # closing frees the port immediately
MAX_PENDING = 20  # connections without a first byte
SILENCE_SECONDS = 30  # then the server counts as failed
LAST_CHUNK = b"0\r\n\r\n"
WORD = b"word"  # which the answers repeat


@dataclass
class Reading:
    """What the clients received during one measurement.

    count: the number of events (or messages).
    delays: in ms, from the time in an event's data to its arrival.
    busy: the load generator's share of its core.
    """

    count: int = 0
    delays: list[float] = field(default_factory=list)
    busy: float = 0.0


class Readers:
    """Connections to one event stream, open until `close`.

    unit: the bytes to count, which each event contains once.
    sent_at: a pattern that finds the time in ms at which an event was sent.

    Raises ConnectionError if a stream does not start, or if it ends.
    """

    def __init__(
        self,
        port: int,
        path: str,
        number: int,
        unit: bytes = b"data: ",
        sent_at: bytes | None = None,
        most_pending: int = MAX_PENDING,
    ):
        self._unit, self._sent_at = unit, sent_at and re.compile(sent_at)
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._reading = Reading()
        pending = set()
        for _ in range(number):
            pending.add(self._open(port, path))
            while len(pending) > most_pending:
                pending -= self._begun()
        while pending:
            pending -= self._begun()

    def _open(self, port: int, path: str) -> int:
        client = request(port, path)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._sockets[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN)
        return client.fileno()

    def _begun(self) -> set[int]:
        ready = self._receive(SILENCE_SECONDS)
        if not ready:
            raise ConnectionError("The server did not start a stream.")
        return ready

    def _receive(self, timeout: float) -> set[int]:
        ready = [descriptor for descriptor, _ in self._poll.poll(timeout)]
        for descriptor in ready:
            data = self._sockets[descriptor].recv(BUFFER_BYTES)
            if not data:
                raise ConnectionError("The server ended a stream.")
            self._reading.count += data.count(self._unit)
            if self._sent_at:
                now = time.time() * 1000
                for sent in self._sent_at.findall(data):
                    self._reading.delays.append(now - int(sent))
        return set(ready)

    def read(self, seconds: float, at_least: int = 0) -> Reading:
        """Read for `seconds`, and until `at_least` events have arrived.

        Raises ConnectionError if they do not arrive.
        """
        self._reading = Reading()
        busy, end = time.process_time(), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._receive(left)
        while self._reading.count < at_least:
            if not self._receive(SILENCE_SECONDS):
                raise ConnectionError("The server did not send an event.")
        self._reading.busy = (time.process_time() - busy) / seconds
        return self._reading

    def close(self) -> None:
        for client in self._sockets.values():
            client.close()
        self._poll.close()


def request(port: int, path: str, body: str = "") -> socket.socket:
    """Request a path, or post JSON to it, and return the connection."""
    head = [f"GET {path} HTTP/1.1", "Host: localhost"]
    if body:
        head[0] = f"POST {path} HTTP/1.1"
        head += ["Content-Type: application/json"]
        head += [f"Content-Length: {len(body)}"]
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall("\r\n".join([*head, "", body]).encode())
    return client


def read_page(port: int, path: str) -> float:
    """Load a page, and return how long it took, in ms."""
    begin = time.monotonic()
    with urlopen(f"http://127.0.0.1:{port}{path}") as page:
        page.read()
    return (time.monotonic() - begin) * 1000


def read_answers(
    port: int, path: str, number: int, body: str = ""
) -> list[float]:
    """Read `number` complete answers concurrently.

    Returns the ms from each request to the first delta of its answer. Raises
    ConnectionError if an answer breaks off, or if nothing arrives.
    """
    poll, answers, asked_at, delays, ends = select.epoll(), {}, {}, {}, {}
    for _ in range(number):
        now = time.monotonic()
        client = request(port, path, body)
        descriptor = client.fileno()
        answers[descriptor], asked_at[descriptor] = client, now
        ends[descriptor] = b""
        poll.register(client, select.EPOLLIN)
    while answers:
        ready = poll.poll(SILENCE_SECONDS)
        if not ready:
            raise ConnectionError("The server did not finish its answers.")
        for descriptor, _ in ready:
            data = answers[descriptor].recv(BUFFER_BYTES)
            if not data:
                raise ConnectionError("An answer broke off.")
            if descriptor not in delays and WORD in data:
                seconds = time.monotonic() - asked_at[descriptor]
                delays[descriptor] = seconds * 1000
            ends[descriptor] = (ends[descriptor] + data)[-len(LAST_CHUNK) :]
            if ends[descriptor] == LAST_CHUNK:
                poll.unregister(descriptor)
                answers.pop(descriptor).close()
    poll.close()
    return list(delays.values())
