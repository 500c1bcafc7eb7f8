"""Chromium dispatches what the tables say and what `parse_events` yields."""

import threading
from collections.abc import Iterator

import pytest
from event_streams import ENCODED, STREAMS
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from event_source import parse_events

CASES = STREAMS | {
    f"encoded: {name}": (stream, [event])
    for name, (_, stream, event) in ENCODED.items()
}
# Blink ignores a line end right after a BOM (event_source_parser.cc).
del CASES["BOM and a line end"]

TYPES = sorted({type for _, events in CASES.values() for type, _, _ in events})

# Chromium opens six connections to a host. Keep one free for the page.
CONNECTIONS = 5

READ_STREAMS = """
async ({count, connections, types}) => {
  const read = (number) => new Promise((resolve) => {
    const events = [];
    const source = new EventSource(`/${number}`);
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


@Request.application
def serve_case(request: Request) -> Response:
    if request.path == "/":
        return Response(mimetype="text/html")
    stream, _ = list(CASES.values())[int(request.path[1:])]
    return Response(stream, content_type="text/event-stream")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = make_server("127.0.0.1", 0, serve_case, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def dispatched(browser, url) -> dict[str, list[tuple[str, str, str]]]:
    """What Chromium dispatches in each case."""
    page = browser.new_page()
    page.goto(url)
    options = {"count": len(CASES), "connections": CONNECTIONS, "types": TYPES}
    streams = page.evaluate(READ_STREAMS, options)
    page.close()
    return {
        name: [tuple(event) for event in events]
        for name, events in zip(CASES, streams, strict=True)
    }


def test_browser_dispatches_what_the_standard_says(dispatched):
    assert dispatched == {name: events for name, (_, events) in CASES.items()}


def test_parser_yields_what_the_browser_dispatches(dispatched):
    parsed = {
        name: [(e.event, e.data, e.id) for e in parse_events([stream])]
        for name, (stream, _) in CASES.items()
    }
    assert dispatched == parsed
