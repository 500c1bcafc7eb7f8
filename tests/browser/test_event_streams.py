"""Chromium dispatches what the tables say and what `parse_events` yields."""

import threading
from collections import defaultdict
from collections.abc import Iterator

import pytest
from event_streams import ENCODED, LAST_IDS, RESPONSES, STREAMS
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
    if (source.readyState === EventSource.CLOSED) resolve([isOpen, ids.at(-1)]);
  };
})))
"""

sent: dict[str, list[str | None]] = defaultdict(list)
"""For each path, the Last-Event-ID of each request."""


@Request.application
def serve_case(request: Request) -> Response:
    table, _, number = request.path[1:].partition("/")
    if not table:
        return Response(mimetype="text/html")
    sent[request.path].append(request.headers.get("Last-Event-ID"))
    stream, status, kind = b"retry: 1\n", 200, "text/event-stream"
    if table == "streams":
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


def read_to_the_end(browser, url: str, table: str, cases: dict) -> dict:
    """Return for each case whether it opened, and the id of its last event."""
    page = browser.new_page()
    page.goto(url)
    urls = [f"/{table}/{number}" for number in range(len(cases))]
    found = page.evaluate(READ_TO_THE_END, urls)
    page.close()
    return dict(zip(cases, found, strict=True))


def test_browser_reads_the_responses_that_the_table_says(browser, url):
    found = read_to_the_end(browser, url, "responses", RESPONSES)
    assert {name: is_open for name, (is_open, _) in found.items()} == {
        name: is_read for name, (_, _, is_read) in RESPONSES.items()
    }


def test_browser_resumes_after_the_ids_that_the_table_says(browser, url):
    found = read_to_the_end(browser, url, "ids", LAST_IDS)
    assert {name: id for name, (_, id) in found.items()} == {
        name: id for name, (_, id) in LAST_IDS.items()
    }
    for number, (name, (_, id)) in enumerate(LAST_IDS.items()):
        header = id.strip().encode().decode("latin-1") or None
        assert sent[f"/ids/{number}"] == [None, header, header], name
