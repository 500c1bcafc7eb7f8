"""Read server-sent events in Python.

    response = requests.get(url, stream=True)
    read = response.raw.read1  # `iter_content` may wait for the end
    for event in parse_events(iter(lambda: read(65536, True), b"")):
        print(event.event, event.data)

`parse_events` is the parser that the standard defines, and nothing else: it
accepts bytes from anywhere, and does not reconnect. Four rules of the standard
are easy to get wrong:

- A line ends with CRLF, LF or CR, even where that is split between two chunks.
  U+2028 and other separators that Python recognizes do not end a line.
- A blank line dispatches the event. If there was no `data` line, no event is
  dispatched: the event type is discarded, but the id is kept.
- The last event ID carries over to later events. An id with NUL is ignored.
- If the stream ends before an event's blank line, that event is dropped.

Copy this file anywhere; it needs nothing else.
Standard: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_EVENT_BYTES = 4 * 1024 * 1024

BOM = b"\xef\xbb\xbf"
LINE_END = re.compile(b"\r\n|\r|\n")
# A longer number is not a real delay, and Python won't convert a huge one.
RETRY = re.compile(rb"0{0,99}([0-9]{1,18})")


class EventTooLarge(ValueError):
    """The stream contains a larger event than its client accepts."""

    def __init__(self, max_bytes: int):
        super().__init__(
            f"The stream contains an event over {max_bytes} bytes long."
        )


class ReceivedEvent(NamedTuple):
    """An event as a browser dispatches it.

    event: the event type, `message` by default.
    id: the last event ID, which may come from an earlier event.
    retry: the reconnection time in milliseconds, if this event sets it.
    """

    data: str
    event: str = "message"
    id: str = ""
    retry: int | None = None


def parse_events(
    chunks: Iterable[bytes], max_bytes: int = MAX_EVENT_BYTES
) -> Iterator[ReceivedEvent]:
    """Yield the events of a stream that arrives in chunks of any size.

    Yields each event as soon as its blank line arrives. Raises EventTooLarge
    if the data of an event, or a line, is longer than `max_bytes`.
    """
    data, size, event_type, last_event_id, retry = [], 0, "", "", None
    for line in _lines(chunks, max_bytes):
        if not line:
            if data:
                yield ReceivedEvent(
                    b"\n".join(data).decode(errors="replace"),
                    event_type or "message",
                    last_event_id,
                    retry,
                )
            data, size, event_type, retry = [], 0, "", None
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            size += len(value) + bool(data)
            if size > max_bytes:
                raise EventTooLarge(max_bytes)
            data.append(value)
        elif field == b"event":
            event_type = value.decode(errors="replace")
        elif field == b"id" and b"\0" not in value:
            last_event_id = value.decode(errors="replace")
        elif field == b"retry" and (digits := RETRY.fullmatch(value)):
            retry = int(digits[1])


def _lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    """Yield each complete line. Drop a BOM at the start of the stream."""
    line, after_cr, bom = bytearray(), False, BOM
    most = max_bytes + len(BOM + b"data: ")
    for chunk in filter(None, chunks):
        if after_cr:
            chunk = chunk.removeprefix(b"\n")
        after_cr = chunk.endswith(b"\r")
        *ends, rest = LINE_END.split(chunk)
        for end in ends:
            whole = bytes(line + end) if line else end
            if len(whole) > most:
                raise EventTooLarge(max_bytes)
            yield whole.removeprefix(bom)
            line, bom = bytearray(), b""
        line += rest
        if len(line) > most:
            raise EventTooLarge(max_bytes)
