"""Event streams, as the WHATWG HTML standard defines them, for Flask.

Values in, bytes out: an `Event` encodes itself, an `EventStream` is the
response that sends events, `keep_alive` speaks while a source is silent, and
`parse_events` reads a stream as a browser does. Below them stand the few
questions that the view of a stream asks its request.

Copy this file into any Flask app; it needs nothing else.
Standard: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

from flask import Response, abort, request

KEEP_ALIVE_SECONDS = 15
"""The longest silence of a stream. Only by writing does a server learn that
the client has gone."""

KEEP_ALIVE = b":\n"
"""A comment. Without a blank line: many clients take one for an empty event."""

MAX_EVENT_BYTES = 4 * 1024 * 1024

LINE_END = re.compile("\r\n|\r|\n")
NOT_IN_ID = re.compile("[\r\n\0]")
BYTES_LINE_END = re.compile(LINE_END.pattern.encode())
NUMBER = re.compile("[-+.0-9eE]+")
# More digits are no time, and Python refuses to convert very many.
RETRY = re.compile(rb"0*([0-9]{1,18})")


@dataclass(slots=True)
class Event:
    """One event.

    data: a `str` goes out as it is, anything else as compact JSON.
    event: the event type; without one, browsers dispatch a `message`.
    id: sets the last event ID, which a browser sends when it reconnects.
    retry: sets the reconnection time, in milliseconds.

    `None` leaves a field out; `0` and `""` are values.

    Raises ValueError for what the format cannot carry: CR or LF in `event` or
    `id`, NUL in `id`, a `retry` that is not an integer of 0 or more.
    """

    data: Any
    _: KW_ONLY
    event: str | None = None
    id: str | int | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        if self.id is not None:
            self.id = str(self.id)
            if NOT_IN_ID.search(self.id):
                raise ValueError(f"id must hold no CR, LF or NUL: {self.id!r}")
        if self.event is not None and (
            "\r" in self.event or "\n" in self.event
        ):
            raise ValueError(f"event must hold no CR or LF: {self.event!r}")
        if self.retry is not None:
            _retry_line(self.retry)

    def encode(self) -> bytes:
        """Return the event as the lines of an event stream, UTF-8.

        Raises TypeError or ValueError for data that JSON cannot hold. A lone
        surrogate, which UTF-8 cannot hold, goes out as `?`.
        """
        if isinstance(self.data, str):
            data = LINE_END.sub("\ndata: ", self.data)
        else:
            data = _to_json(self.data)
        lines = f"data: {data}\n\n"
        if self.retry is not None:
            lines = f"{_retry_line(self.retry)}\n{lines}"
        if self.event is not None:
            lines = f"event: {self.event}\n{lines}"
        if self.id is not None:
            lines = f"id: {self.id}\n{lines}"
        return lines.encode(errors="replace")


_to_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode


def _retry_line(retry: int) -> str:
    if type(retry) is not int or retry < 0:
        raise ValueError(f"retry must be an integer of 0 or more: {retry!r}")
    return f"retry: {retry}"


class EventStream(Response):
    """The response that sends events as they come.

    events: an iterable of `Event`, or of bytes that are sent as they are.
    retry: the reconnection time in milliseconds, sent before the first event.

    The first bytes leave at once, so that `open` fires before the first event.
    When the client goes away, a generator is closed: its `finally` runs at the
    second write that nobody receives.

    Raises ValueError for a `retry` that is not an integer of 0 or more.
    """

    def __init__(
        self, events: Iterable[Event | bytes], *, retry: int | None = None
    ):
        self._beginning = KEEP_ALIVE
        if retry is not None:
            self._beginning = f"{_retry_line(retry)}\n".encode()
        super().__init__(
            iter(events),
            content_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    def iter_encoded(self) -> Iterator[bytes]:
        """Yield the bytes to send, for Werkzeug."""
        beginning, self._beginning = self._beginning, b""
        yield beginning
        for event in self.response:
            yield event if isinstance(event, bytes) else event.encode()


def _close(events: Iterable) -> None:
    if hasattr(events, "close"):
        events.close()


def keep_alive(
    events: Iterable[Event | bytes],
    seconds: float = KEEP_ALIVE_SECONDS,
    *,
    interrupt: Callable[[], object] = lambda: None,
) -> Iterator[Event | bytes]:
    """Pass `events` on, and a comment whenever none came for `seconds`.

    For a source that can block in silence: it moves to a thread of its own and
    hands its events over through a bounded queue. What it raises is raised
    here. When the stream closes, `interrupt` is called to wake a source that
    is blocked (by shutting its socket down, say) and the source is closed.
    """
    # Room for the event in hand and for the end, once the stream has closed.
    handover: queue.Queue = queue.Queue(maxsize=2)
    closed = threading.Event()

    def pump() -> None:
        end = None
        try:
            try:
                for event in events:
                    handover.put(event)
                    if closed.is_set():
                        break
            finally:
                _close(events)
        except BaseException as error:
            end = error
        handover.put(end)

    threading.Thread(target=pump, daemon=True).start()
    try:
        while True:
            try:
                item = handover.get(timeout=seconds)
            except queue.Empty:
                yield KEEP_ALIVE
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        while not handover.empty():
            handover.get_nowait()
        interrupt()


class EventTooLarge(ValueError):
    """An event stream held an event larger than its reader accepts."""

    def __init__(self, max_bytes: int):
        super().__init__(
            f"The stream holds an event of over {max_bytes} bytes."
        )


def parse_events(
    chunks: Iterable[bytes], max_bytes: int = MAX_EVENT_BYTES
) -> Iterator[Event]:
    """Yield the events of an event stream that arrives in any chunks of bytes.

    They are what a browser dispatches: `data` is text, `event` is the type
    (`message` by default), `id` is the last event ID, carried on from event to
    event. `retry` is there if the event's lines set it. An event that the
    stream ends in the middle of is dropped.

    Raises EventTooLarge for data, or any line, of over `max_bytes`.
    """
    data, size, event_type, last_event_id, retry = [], 0, "", "", None
    for line in _lines(chunks, max_bytes):
        if not line:
            if data:
                text = b"\n".join(data).decode(errors="replace")
                yield Event(
                    text,
                    event=event_type or "message",
                    id=last_event_id,
                    retry=retry,
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
    """Yield each line that CRLF, LF or CR has ended, the first without BOM."""
    line, after_cr, bom = bytearray(), False, b"\xef\xbb\xbf"
    most = max_bytes + len(bom + b"data: ")
    for chunk in filter(None, chunks):
        if after_cr:
            chunk = chunk.removeprefix(b"\n")
        after_cr = chunk.endswith(b"\r")
        *ends, rest = BYTES_LINE_END.split(chunk)
        for end in ends:
            whole = bytes(line + end) if line else end
            if len(whole) > most:
                raise EventTooLarge(max_bytes)
            yield whole.removeprefix(bom)
            line, bom = bytearray(), b""
        line += rest
        if len(line) > most:
            raise EventTooLarge(max_bytes)


def last_event_number() -> int:
    """Return the request's Last-Event-ID for ids that count 1, 2, 3 ...

    0 where it is missing or is no such number, so that a stream can always go
    on at `last_event_number() + 1`.
    """
    last = request.headers.get("Last-Event-ID", "")
    return int(last) if re.fullmatch("[0-9]{1,15}", last) else 0


def query_number(
    name: str, default: float, lowest: float, highest: float
) -> float:
    """Return a number from the request's query, of the type of `default`.

    Aborts with 400, and a sentence that says what is allowed, for anything
    that is not a number from `lowest` to `highest`.
    """
    text = request.args.get(name, str(default))
    try:
        number = type(default)(text) if NUMBER.fullmatch(text) else None
    except ValueError:
        number = None
    if number is None or not lowest <= number <= highest:
        kind = "an integer" if isinstance(default, int) else "a number"
        abort(
            400,
            f"{name} must be {kind} from {lowest} to {highest}, not {text!r}.",
        )
    return number


def json_object(max_bytes: int) -> dict[str, Any]:
    """Return the JSON object that is the request's body.

    Aborts with a sentence that says what is allowed: 415 for a body of another
    type, 413 for more than `max_bytes`, 400 for what is no JSON object.
    """
    if not request.is_json:
        abort(415, "The body must have the Content-Type application/json.")
    body = parse_object(body_bytes(max_bytes))
    if body is None:
        abort(400, 'The body must be a JSON object, such as {"a": 1}.')
    return body


def json_text(
    body: dict[str, Any], name: str, lowest: int, highest: int
) -> str:
    """Return a text that is a member of a JSON object.

    Aborts with 400, and a sentence that says what is allowed, for anything that
    is not a string of `lowest` to `highest` characters.
    """
    text = body.get(name)
    if not isinstance(text, str) or not lowest <= len(text) <= highest:
        abort(
            400, f"{name} must be a text of {lowest} to {highest} characters."
        )
    return text


def body_bytes(max_bytes: int) -> bytes:
    """Return the request's body.

    Aborts with 413 for more than `max_bytes`, with 400 for a body that breaks
    off or is framed wrongly.
    """
    try:
        text = request.stream.read(max_bytes + 1)
    except Exception:  # every server has errors of its own for this
        abort(400, "The body cannot be read.")
    if len(text) > max_bytes:
        abort(413, f"The body must have at most {max_bytes} bytes.")
    return text


def parse_object(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `text` is, None if it is none.

    Strictly as RFC 8259 has it: what is returned can be sent on as JSON.
    """
    try:
        value = json.loads(text.decode())
        json.dumps(value, allow_nan=False)  # Python reads NaN, JSON has none
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_cross_site() -> bool:
    """Tell whether a page of another site made this request.

    Browsers say so in Sec-Fetch-Site (W3C Fetch Metadata), to trustworthy
    origins only; without it, the Origin of a cross-origin request tells.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "cross-site"
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host
