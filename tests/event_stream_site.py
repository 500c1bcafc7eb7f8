"""A site that serves the tables of event_streams.py, and what browsers read.

`evaluate` calls a JavaScript function with one argument in an open page of this
site, and returns its result.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import select
from threading import Event

from conftest import PATIENCE_SECONDS, LiveServer
from event_streams import (
    BACK,
    BEHAVIOR,
    DIFFERENCES,
    ENCODED,
    LAST_IDS,
    LEAST_WAITS_MS,
    RESPONSES,
    STREAMS,
)
from werkzeug.wrappers import Request, Response

CASES = STREAMS | {
    f"encoded: {name}": (stream, [event])
    for name, (_, stream, event) in ENCODED.items()
}
TYPES = sorted({type for _, events in CASES.values() for type, _, _ in events})
TYPES.append("ab")  # Firefox's name for "a\0b"

# Browsers open six connections to a host. Keep one free for the page.
CONNECTIONS = 5

READ_STREAMS = """
async ({count, connections, types}) => {
  const read = (number) => new Promise((resolve) => {
    const events = [];
    const source = new EventSource(`/streams/${number}`);
    const listen = (event) => {
      if (event instanceof MessageEvent) {
        events.push([event.type, event.data, event.lastEventId]);
      } else if (event.type === "error") {
        source.close();
        resolve(events);
      }
    };
    for (const type of ["error", ...types]) {
      source.addEventListener(type, listen);
    }
  });
  const dispatched = [];
  let next = 0;
  const readOneAfterAnother = async () => {
    while (next < count) {
      const number = next++;
      dispatched[number] = await read(number);
    }
  };
  await Promise.all(Array.from({length: connections}, readOneAfterAnother));
  return dispatched;
}
"""
# Read until the connection fails for good.
READ_TO_THE_END = """
(urls) => Promise.all(urls.map((url) => new Promise((resolve) => {
  const source = new EventSource(url);
  const ids = [];
  let isOpen = false;
  source.onopen = () => { isOpen = true; };
  source.onmessage = ({ lastEventId }) => ids.push(lastEventId);
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) {
      resolve([isOpen, ids.at(-1) ?? null]);
    }
  };
})))
"""

# Return how long a browser waits until it reconnects.
WAIT = """
(urls) => Promise.all(urls.map((url) => new Promise((resolve) => {
  const source = new EventSource(url);
  let lost;
  source.onopen = () => {
    if (!lost) return;
    source.close();
    resolve(performance.now() - lost);
  };
  source.onerror = () => { lost ??= performance.now(); };
})))
"""
CLOCK_MS = 20  # browsers blur their clocks

HAS = """
() => [
  Symbol.asyncIterator in ReadableStream.prototype,
  "setHTML" in Element.prototype,
]
"""
CANCEL = """
async (url) => {
  const reader = (await fetch(url)).body.getReader();
  await reader.read();
  reader.cancel();
}
"""
READ_DATA = """
(url) => new Promise((resolve) => {
  const source = new EventSource(url);
  const all = [];
  source.onmessage = ({ data }) => all.push(data);
  source.onerror = () => {
    source.close();
    resolve(all);
  };
})
"""

sent: dict[str, list[str | None]] = defaultdict(list)
"""For each path, the Last-Event-ID of each request."""

# Whether /silence has more to send, and whether its client has disconnected.
has_more, is_closed = Event(), Event()


def silence(socket) -> Iterator[bytes]:
    """Yield a text. Once `has_more` is set, yield more until a disconnect."""
    try:
        yield b"word " * 400  # WebKit delays a shorter text
        while not select([socket], [], [], 0.02)[0]:
            if has_more.is_set():
                yield b"more"
    finally:
        is_closed.set()


def cut_bom(seconds: float) -> Iterator[bytes]:
    """Yield a BOM in two pieces. No test can see when the first was read."""
    yield b"\xef\xbb"
    time.sleep(seconds)
    yield b"\xbfdata: a\n\ndata: b\n\n"


@Request.application
def serve_case(request: Request) -> Response:
    table, _, number = request.path[1:].partition("/")
    if not table:
        return Response("<!doctype html>", mimetype="text/html")
    if table == "silence":
        words = silence(request.environ["werkzeug.socket"])
        return Response(words, mimetype="text/html")
    if table == "BOM":
        return Response(cut_bom(float(number)), mimetype="text/event-stream")
    sent[request.path].append(request.headers.get("Last-Event-ID"))
    stream, status, kind = b"retry: 1\n", 200, "text/event-stream"
    if table == "default":
        stream = b"\n"
    elif table == "streams":
        stream, _ = list(CASES.values())[int(number)]
    elif len(sent[request.path]) > 2:
        status = 204
    elif table == "responses":
        status, kind, _ = list(RESPONSES.values())[int(number)]
    elif len(sent[request.path]) == 1:
        stream += list(LAST_IDS.values())[int(number)][0]
    else:
        stream += b"data: again\n\n"
    response = Response(stream, status)
    response.headers.remove("Content-Type")
    if kind:
        response.headers["Content-Type"] = kind
    return response


@contextmanager
def event_stream_site() -> Iterator[str]:
    """Run the site. Yield its URL."""
    sent.clear()
    has_more.clear()
    is_closed.clear()
    with LiveServer(serve_case) as server:
        yield f"{server.url}/"


def check_streams(engine: str, evaluate: Callable) -> None:
    """Check which events an engine dispatches."""
    options = {"count": len(CASES), "connections": CONNECTIONS, "types": TYPES}
    streams = evaluate(READ_STREAMS, options)
    dispatched = {
        name: [tuple(event) for event in events]
        for name, events in zip(CASES, streams, strict=True)
    }
    standard = {name: events for name, (_, events) in CASES.items()}
    _check("streams", engine, dispatched, standard)


def check_responses(engine: str, evaluate: Callable) -> None:
    """Check which responses an engine reads as event streams."""
    found = _read_to_the_end("responses", RESPONSES, evaluate)
    opened = {name: is_open for name, (is_open, _) in found.items()}
    standard = {name: is_read for name, (_, _, is_read) in RESPONSES.items()}
    _check("responses", engine, opened, standard)


def check_last_ids(engine: str, evaluate: Callable) -> None:
    """Check with which Last-Event-ID an engine reconnects, twice."""
    found = _read_to_the_end("ids", LAST_IDS, evaluate)
    ids = {name: id for name, (_, id) in found.items()}
    standard = {name: id for name, (_, id) in LAST_IDS.items()}
    _check("last IDs", engine, ids, standard)
    for number, (name, id) in enumerate(ids.items()):
        header = id.strip().encode().decode("latin-1") or None
        assert sent[f"/ids/{number}"] == [None, header, header], name


def _check(table: str, engine: str, found: dict, standard: dict) -> None:
    """Check that an engine has only its known differences."""
    different = {
        name: one for name, one in found.items() if one != standard[name]
    }
    known = {}
    for tables in DIFFERENCES[engine].values():
        known |= tables.get(table, {})
    assert different == known


def check_waits(engine: str, evaluate: Callable) -> None:
    """Check that an engine never reconnects before its known delay."""
    waits = evaluate(WAIT, ["/default", "/retry/1"])
    for found, known in zip(waits, LEAST_WAITS_MS[engine], strict=True):
        assert found >= known - CLOCK_MS


def check_behavior(engine: str, evaluate: Callable) -> None:
    """Check what an engine has, and how it handles two unusual streams."""
    has_for_await, has_set_html = evaluate(HAS)
    evaluate(CANCEL, "/silence")
    closes = is_closed.wait(0.5 if engine == "firefox" else PATIENCE_SECONDS)
    has_more.set()
    assert is_closed.wait(PATIENCE_SECONDS)
    for seconds in (0.01, 1, 10):  # a slow browser gets both pieces together
        data = evaluate(READ_DATA, f"/BOM/{seconds}")
        if engine != "webkit" or data == ["b"]:
            break
    found = [has_for_await, has_set_html, closes, data]
    found = dict(zip(BEHAVIOR, found, strict=True))
    _check("behavior", engine, found, BEHAVIOR)


def check_back(engine: str, state: str | None) -> None:
    """Check the `readyState` of a frame after Back. None: there is no frame."""
    ((name, standard),) = BACK.items()
    _check("back", engine, {name: state or standard}, BACK)


def _read_to_the_end(table: str, cases: dict, evaluate: Callable) -> dict:
    """Return for each case whether it opened, and the id of its last event."""
    urls = [f"/{table}/{number}" for number in range(len(cases))]
    return dict(zip(cases, evaluate(READ_TO_THE_END, urls), strict=True))


CHECKS = [
    check_streams,
    check_responses,
    check_last_ids,
    check_waits,
    check_behavior,
]
