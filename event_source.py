"""Read server-sent events in Python.

    for event in EventSource("http://127.0.0.1:5000/real-time-updates"):
        print(event.event, event.data)

EventSource reconnects like a browser. `python -m event_source URL` prints a
stream. `parse_events` only parses. Only CRLF, LF or CR ends a line, unlike in
`str.splitlines`, and a CRLF may be split between two chunks.

Copy this file anywhere; it needs requests.
Standard: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from random import uniform
from types import SimpleNamespace
from typing import NamedTuple

import requests
from urllib3.exceptions import HTTPError

MAX_EVENT_BYTES = 4 * 1024 * 1024
BOM = b"\xef\xbb\xbf"
# A longer number is not a real delay, and Python won't convert a huge one.
RETRY = re.compile(rb"0{0,99}([0-9]{1,18})")
logger = logging.getLogger(__name__)


class EventTooLarge(ValueError):
    """The stream contains a larger event than its client accepts."""


class ReceivedEvent(NamedTuple):
    """An event as a browser dispatches it."""

    data: str
    event: str = "message"  # the event type
    id: str = ""  # the last event ID, which may come from an earlier event
    retry: int | None = None  # the reconnection time in ms, if set here


def parse_events(
    chunks: Iterable[bytes], max_bytes: int = MAX_EVENT_BYTES, source=None
) -> Iterator[ReceivedEvent]:
    """Yield the events of a stream that arrives in chunks of any size.

    Yields each event as soon as its blank line arrives. Sets `last_event_id`
    and `retry` of `source`, even without an event. Raises EventTooLarge if the
    data of an event, or a line, is longer than `max_bytes`.
    """
    source = source or SimpleNamespace(last_event_id="")
    data, size, event_type, id, retry = [], 0, "", source.last_event_id, None
    for line in chain.from_iterable(_lines(chunks, max_bytes)):
        if not line:
            source.last_event_id = id
            if data:
                text = b"\n".join(data).decode(errors="replace")
                yield ReceivedEvent(text, event_type or "message", id, retry)
            data, size, event_type, retry = [], 0, "", None
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            size += len(value) + bool(data)
            data.append(value)
        elif field == b"event":
            event_type = value.decode(errors="replace")
        elif field == b"id" and b"\0" not in value:
            id = value.decode(errors="replace")
        elif field == b"retry" and (digits := RETRY.fullmatch(value)):
            source.retry = retry = int(digits[1])
        if size > max_bytes or len(line) > max_bytes + len(b"data: "):
            raise EventTooLarge(f"An event is over {max_bytes} bytes.")


def _lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[list[bytes]]:
    """Yield the lines that each chunk completes. Drop a BOM at the start."""
    line, after_cr, bom = bytearray(), False, BOM
    for chunk in filter(None, chunks):
        if after_cr:
            chunk = chunk.removeprefix(b"\n")
        after_cr = chunk.endswith(b"\r")
        # For bytes, `splitlines` splits only at CRLF, LF and CR. The added dot
        # keeps the unfinished last line apart, even if it is empty.
        *lines, rest = (chunk + b".").splitlines()
        if lines:
            lines[0], line = bytes(line + lines[0]), bytearray()
            lines[0], bom = lines[0].removeprefix(bom), b""
        yield lines
        line += rest[:-1]
        if len(line) > max_bytes + len(BOM + b"data: "):
            raise EventTooLarge(f"An event is over {max_bytes} bytes.")


class EventSource(Iterator[ReceivedEvent]):
    """The events of a URL. Reconnects like a browser, and ends with a 204.

    last_event_id: resume after this id. Each event updates it.
    timeout: reconnect after this many seconds of silence, or never if None.

    Raises requests.HTTPError if the `response` is not an event stream.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        session: requests.Session | None = None,
        last_event_id: str = "",
        timeout: float | None = 45.0,  # good servers send a heartbeat every 15
    ):
        get = requests.get if session is None else session.get
        self._get = partial(get, url, stream=True, timeout=timeout)
        self._headers = {"Accept": "text/event-stream", **(headers or {})}
        self.last_event_id, self.response = last_event_id, None
        self.retry = 3000  # in milliseconds, unless the stream sets it
        self._closed, self._events = threading.Event(), self._read()

    def __next__(self) -> ReceivedEvent:
        return next(self._events)

    def close(self) -> None:
        """End the iteration. Wakes a thread that waits, but not for headers."""
        self._closed.set()
        with suppress(AttributeError, OSError, RuntimeError, ValueError):
            self.response.raw.shutdown()  # fails if there is nothing to read
        # A reader must not find these events while they are being closed.
        events, self._events = self._events, (event for event in ())
        with suppress(ValueError):  # a reader in another thread ends by itself
            events.close()

    def _read(self) -> Iterator[ReceivedEvent]:
        wait = 0.0
        while not self._closed.wait(min(wait, threading.TIMEOUT_MAX)):
            headers = dict(self._headers)
            if self.last_event_id:
                headers["Last-Event-ID"] = self.last_event_id.encode().strip()
            try:
                with self._get(headers=headers) as self.response:
                    yield from parse_events(self._chunks(), source=self)
                reason = "the response ended"
            except (requests.ConnectionError, requests.Timeout, HTTPError) as e:
                reason = type(e).__name__
            # Jitter keeps clients from reconnecting at the same moment.
            wait = max(self.retry, 100) / 1000 * uniform(1, 1.5)
            if not self._closed.is_set():
                logger.info("Reconnecting in %.1f s: %s", wait, reason)

    def _chunks(self) -> Iterator[bytes]:
        status, raw = self.response.status_code, self.response.raw
        kind = self.response.headers.get("Content-Type", "").lower()
        if status == 204:
            self._closed.set()
        elif (status, kind.split(";")[0].strip()) != (200, "text/event-stream"):
            message = f"expected an event stream, got {status} and {kind!r}"
            raise requests.HTTPError(message, response=self.response)
        # Not `iter_content`, which may wait for the end.
        while not self._closed.is_set() and (data := raw.read1(65536, True)):
            yield data


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("Usage: python -m event_source URL")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for event in EventSource(sys.argv[1]):
            print(event.id, event.event, event.data, flush=True)
    except (KeyboardInterrupt, OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
