"""Send server-sent events from Flask.

    return EventStream(events())

Here `events` is a generator. It yields an `Event` for each event, and `None`
when there is nothing to send: `EventStream` then sends a comment, which keeps
the connection alive. Wrap a generator that can block in `keep_alive`.

Copy this file into any Flask app; it needs nothing else.
Standard: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import KW_ONLY, dataclass

from flask import Response, request

KEEP_ALIVE_SECONDS = 15.0
"""The longest silence of a stream: many proxies close idle connections after 30
to 60 seconds, and a server notices a disconnect only when it writes."""

COMMENT = b":\n"  # no blank line: some clients would dispatch an event
LINE_END = re.compile("\r\n|\r|\n")
NOT_IN_A_FIELD = re.compile("[\r\n\0]")
to_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode


@dataclass(slots=True)
class Event:
    """One event.

    data: a `str` is sent unchanged, anything else as compact JSON.
    event: the event type. Without one, browsers dispatch a `message` event.
    id: the event id. A browser sends the last one when it reconnects.
    retry: the reconnection time, in milliseconds.

    Other fields are omitted if `None`, not if `0`. Firefox drops NUL in `data`.

    Raises ValueError for CR, LF or NUL in `event` or `id`, and for a `retry`
    that is not a non-negative integer.
    """

    data: object
    _: KW_ONLY
    event: str | None = None
    id: str | int | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        if self.id is not None:
            self.id = str(self.id)
            if NOT_IN_A_FIELD.search(self.id):
                raise ValueError(f"id contains CR, LF or NUL: {self.id!r}")
        if self.event is not None and NOT_IN_A_FIELD.search(self.event):
            raise ValueError(f"event contains CR, LF or NUL: {self.event!r}")
        retry = self.retry
        if retry is not None and (type(retry) is not int or retry < 0):
            raise ValueError(f"retry must be an integer >= 0, got {retry!r}")

    def encode(self) -> bytes:
        """Return the event as lines of UTF-8, with `?` for a lone surrogate.

        Raises TypeError or ValueError if JSON cannot represent `data`.
        """
        if isinstance(self.data, str):
            data = LINE_END.sub("\ndata: ", self.data)
        else:
            data = to_json(self.data)  # has no line ends
        lines = f"data: {data}\n\n"
        if self.retry is not None:
            lines = f"retry: {self.retry}\n{lines}"
        if self.event is not None:
            lines = f"event: {self.event}\n{lines}"
        if self.id is not None:
            lines = f"id: {self.id}\n{lines}"
        return lines.encode(errors="replace")


class EventStream(Response):
    """A response that sends events as they are produced.

    events: an iterable of `Event` objects, of `None`, which sends a comment,
        or of bytes, which are sent unchanged.
    retry: the reconnection time in milliseconds, sent before the first event.

    Sends its first bytes immediately, so `open` fires before any event. After a
    disconnect, the second write fails and closes the generator: `finally` runs.
    """

    def __init__(self, events: Iterable, retry: int | None = None):
        Event("", retry=retry)  # raises
        self._beginning = COMMENT if retry is None else b"retry: %d\n" % retry
        super().__init__(iter(events), content_type="text/event-stream")
        # `no-transform`: a proxy that compressed the stream would delay it.
        self.headers["Cache-Control"] = "no-cache, no-transform"
        self.headers["X-Accel-Buffering"] = "no"  # nginx would buffer it

    def get_app_iter(self, environ: dict) -> Iterable[bytes]:
        empty = environ["REQUEST_METHOD"] == "HEAD" or self.status_code != 200
        return super().get_app_iter(environ) if empty else self

    def iter_encoded(self) -> Iterator[bytes]:
        """Yield the bytes to send. Werkzeug calls this, sometimes twice."""
        beginning, self._beginning = self._beginning, b""
        yield beginning
        for event in self.response:
            event = COMMENT if event is None else event
            yield event if isinstance(event, bytes) else event.encode()

    def __iter__(self) -> Iterator[bytes]:
        return self.iter_encoded()  # Werkzeug's iterator takes 1.2 KiB more


def keep_alive(
    events: Generator, seconds: float, interrupt: Callable = lambda: None
) -> Generator:
    """Yield what `events` yields, and `None` after every silence of `seconds`.

    Use it for a generator that can block, such as one that reads from another
    server. The generator runs in its own thread; its exceptions are raised
    here. When the stream ends or is closed, `interrupt` is called. It should
    wake a blocked generator, because only then can that generator be closed.
    """
    handover: queue.Queue = queue.Queue(2)  # an event and the end always fit
    closed = threading.Event()

    def pump() -> None:
        end = None
        try:
            with closing(events):
                for event in events:
                    handover.put((event, False))
                    if closed.is_set():
                        break
        except BaseException as error:
            end = error
        handover.put((end, True))

    def items() -> Generator:
        try:
            yield
            thread.start()
            while True:
                try:
                    item, is_end = handover.get(timeout=seconds)
                except queue.Empty:
                    item, is_end = None, False
                if is_end and item:
                    raise item
                if is_end:
                    return
                yield item
        finally:
            closed.set()
            while not handover.empty():
                handover.get_nowait()
            interrupt()
            if thread.ident is None:
                events.close()

    thread = threading.Thread(target=pump, daemon=True)
    stream = items()
    next(stream)  # else `close` before the first item would skip `finally`
    return stream


def last_event_number() -> int:
    """Return the request's Last-Event-ID, for ids that count 1, 2, 3 ...

    Returns 0 if it is missing or invalid. Resume at `last_event_number() + 1`.
    """
    last = request.headers.get("Last-Event-ID", "")
    return int(last) if re.fullmatch("[0-9]{1,15}", last) else 0
