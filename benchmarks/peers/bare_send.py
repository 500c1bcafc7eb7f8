"""A bare loop of `send`, for the minimum cost of a broadcast in Python."""

import json
import os
import socket
import sys
import time
from threading import Thread

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:\n"
PRICES = {
    "ALFA": 120.123,
    "BRVO": 48.512,
    "CHLI": 310.205,
    "DLTA": 9.607,
    "ECHO": 75.111,
}
PAUSE_SECONDS = 1 / float(os.environ["EVENTS_PER_SECOND"])
readers = []


def accept():
    address = ("127.0.0.1", int(sys.argv[1]))
    with socket.create_server(address, backlog=2048) as listener:
        while True:
            reader, _ = listener.accept()
            reader.recv(4096)
            reader.send(HEAD)
            readers.append(reader)


Thread(target=accept, daemon=True).start()
while True:
    time.sleep(PAUSE_SECONDS)
    id = f"{time.time_ns() // 1_000_000}-0"
    event = f"id: {id}\ndata: {json.dumps(PRICES)}\n\n".encode()
    for reader in list(readers):
        try:
            reader.send(event)
        except OSError:
            readers.remove(reader)
