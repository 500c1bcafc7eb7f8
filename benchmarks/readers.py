"""The load: readers of event streams, as many as one wants, on plain sockets.

They run in the process that measures, on a core that no server has.
"""

import re
import select
import socket
import struct
import time
from dataclasses import dataclass, field

BUFFER_BYTES = 256 * 1024
RESET = struct.pack("ii", 1, 0)  # on close, so that no port stays taken
MAX_PENDING = 20  # connections that wait for their first bytes
SILENCE_SECONDS = 30  # after which a server will not answer any more
LAST_CHUNK = b"0\r\n\r\n"
WORD = b"word"  # of which the answers consist


@dataclass
class Reading:
    """What readers received in a while.

    count: how often the bytes that stand for an event (or a message) came.
    delays: in ms, from the time that an event holds to its arrival.
    busy: the part of its core that the load has taken.
    """

    count: int = 0
    delays: list[float] = field(default_factory=list)
    busy: float = 0.0


class Readers:
    """Connections to one event stream, open until `close`.

    unit: the bytes to count, those that each event holds once.
    sent_at: a pattern for the time in ms at which an event was sent.

    Raises ConnectionError where a stream does not begin, or ends.
    """

    def __init__(
        self,
        port: int,
        path: str,
        number: int,
        unit: bytes = b"data: ",
        sent_at: bytes | None = None,
    ):
        self._unit, self._sent_at = unit, sent_at and re.compile(sent_at)
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._reading = Reading()
        pending = set()
        for _ in range(number):
            pending.add(self._open(port, path))
            while len(pending) > MAX_PENDING:
                pending -= self._begun()
        while pending:
            pending -= self._begun()

    def _open(self, port: int, path: str) -> int:
        client = asked(port, path)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._sockets[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN)
        return client.fileno()

    def _begun(self) -> set[int]:
        ready = self._receive(SILENCE_SECONDS)
        if not ready:
            raise ConnectionError("The server begins no stream.")
        return ready

    def _receive(self, timeout: float) -> set[int]:
        ready = [descriptor for descriptor, _ in self._poll.poll(timeout)]
        for descriptor in ready:
            data = self._sockets[descriptor].recv(BUFFER_BYTES)
            if not data:
                raise ConnectionError("The server has ended a stream.")
            self._reading.count += data.count(self._unit)
            if self._sent_at:
                now = time.time() * 1000
                for sent in self._sent_at.findall(data):
                    self._reading.delays.append(now - int(sent))
        return set(ready)

    def read(self, seconds: float, at_least: int = 0) -> Reading:
        """Return what comes from now on, for so long, and at least so much.

        Raises ConnectionError where it does not come.
        """
        self._reading = Reading()
        busy, end = time.process_time(), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._receive(left)
        while self._reading.count < at_least:
            if not self._receive(SILENCE_SECONDS):
                raise ConnectionError("The server sends no event.")
        self._reading.busy = (time.process_time() - busy) / seconds
        return self._reading

    def close(self) -> None:
        for client in self._sockets.values():
            client.close()
        self._poll.close()


def asked(port: int, path: str) -> socket.socket:
    """Return a connection on which this path has been asked for."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


def read_answers(port: int, path: str, number: int) -> list[float]:
    """Read that many answers at once, to their ends.

    Return the ms from each request to the first delta of its answer. Raises
    ConnectionError where one breaks off, or nothing comes.
    """
    poll, answers, asked_at, delays, ends = select.epoll(), {}, {}, {}, {}
    for _ in range(number):
        now = time.monotonic()
        client = asked(port, path)
        descriptor = client.fileno()
        answers[descriptor], asked_at[descriptor] = client, now
        ends[descriptor] = b""
        poll.register(client, select.EPOLLIN)
    while answers:
        ready = poll.poll(SILENCE_SECONDS)
        if not ready:
            raise ConnectionError("The server does not end its answers.")
        for descriptor, _ in ready:
            data = answers[descriptor].recv(BUFFER_BYTES)
            if not data:
                raise ConnectionError("An answer has broken off.")
            if descriptor not in delays and WORD in data:
                seconds = time.monotonic() - asked_at[descriptor]
                delays[descriptor] = seconds * 1000
            ends[descriptor] = (ends[descriptor] + data)[-len(LAST_CHUNK) :]
            if ends[descriptor] == LAST_CHUNK:
                poll.unregister(descriptor)
                answers.pop(descriptor).close()
    poll.close()
    return list(delays.values())
