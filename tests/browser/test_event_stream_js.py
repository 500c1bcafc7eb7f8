"""In Chromium, `static/event-stream.js` yields what the tables say."""

from collections.abc import Callable, Iterator

import pytest
from conftest import PROJECT
from event_streams import ENCODED, STREAMS
from upstream import PAUSE, Connection, Upstream, page, stream

from event_source import parse_events

CASES = STREAMS | {
    f"encoded: {name}": (body, [event])
    for name, (_, body, event) in ENCODED.items()
}

# Lines of the first event that may set the reconnection time.
RETRIES = [
    b"retry: 500",
    b"retry:500",
    b"retry: 0",
    b"retry: 007",
    b"retry: 00000000000000000000500",
    b"retry: 1\nretry: 2",
    b"retry: 1\nretry: soon",
    b"retry: -1",
    b"retry: +1",
    b"retry: 1.5",
    b"retry: 1e3",
    b"retry: 1_000",
    b"retry: 0x10",
    b"retry: 1 ",
    b"retry:  1",
    b"retry:",
    b"retry",
    b"retry: 1\0",
    b"Retry: 1",
    "retry: \u0661".encode(),
    b"retry: \xb9",
]
RETRY_STREAMS = [fields + b"\ndata: a\n\ndata: b\n\n" for fields in RETRIES]

MODULE = (PROJECT / "static/event-stream.js").read_bytes()
ANSWERS = {
    "/": page(b"<!doctype html>", content_type="text/html"),
    "/event-stream.js": page(MODULE, content_type="text/javascript"),
    "/empty": page(b"", "204 No Content"),
    "/endless": stream(b"data: a\n\ndata: b\n\n", end="silent"),
    "/cut": stream(b"data: a\n\ndata: b\n", PAUSE, end="cut"),
}
ANSWERS |= {
    f"/case/{number}": page(body, content_type="text/event-stream")
    for number, (body, _) in enumerate(CASES.values())
}
ANSWERS |= {
    f"/retry/{number}": page(body, content_type="text/event-stream")
    for number, body in enumerate(RETRY_STREAMS)
}
NOT_FOUND = page(b"", "404 Not Found")

# `read` passes on each event until `take` returns "break". `readAll` collects
# all events. `cut` creates a response in chunks of these sizes.
HELPERS = """
async () => {
  const { readEventStream } = await import("/event-stream.js");

  window.read = async (response, take, controller) => {
    for await (const event of readEventStream(response, controller)) {
      if (take(event) === "break") break;
    }
  };

  window.readAll = async (response) => {
    const events = [];
    await read(response, (event) => { events.push(event); });
    return events;
  };

  window.cut = (bytes, nextSize) => {
    let at = 0;
    return new Response(new ReadableStream({
      pull(controller) {
        controller.enqueue(bytes.slice(at, at += nextSize()));
        if (at >= bytes.length) controller.close();
      },
    }));
  };
}
"""

READ = "async (path) => readAll(await fetch(path))"
READ_CASES = """
async ([count, ways]) => {
  let state = 1;
  const sizes = {
    "one chunk": () => Infinity,
    "byte by byte": () => 1,
    "any pieces": () => (state = (state * 48271) % 2147483647) % 9,
  };
  const read = Object.fromEntries(ways.map((way) => [way, []]));
  for (let number = 0; number < count; number++) {
    const response = await fetch(`/case/${number}`);
    const bytes = new Uint8Array(await response.clone().arrayBuffer());
    // A MiB, byte by byte, takes 10 s but tests no more than 16 KiB does.
    const scale = 1 + (bytes.length >> 14);
    for (const way of ways) {
      const pieces = way === "socket"
        ? response : cut(bytes, () => sizes[way]() * scale);
      read[way].push(await readAll(pieces));
    }
  }
  return read;
}
"""

READ_TEXT = """
async ([text, times]) => {
  const bytes = new TextEncoder().encode(text.repeat(times) + "\\n\\n");
  await readAll(cut(bytes, () => 32));
}
"""


def answer(connection: Connection) -> None:
    ANSWERS.get(connection.request.path, NOT_FOUND)(connection)


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with Upstream(answer) as server:
        yield server


@pytest.fixture(scope="module")
def tab(browser, server):
    """A page that has loaded the module."""
    tab = browser.new_page()
    tab.goto(f"http://127.0.0.1:{server.server_address[1]}/")
    tab.evaluate(HELPERS)
    yield tab
    tab.close()


def last_asked(server: Upstream, path: str) -> Connection:
    """Return the last connection that requested this path."""
    return [
        connection
        for connection in server.connections
        if connection.requests and connection.request.path == path
    ][-1]


def test_yields_what_the_standard_says(tab):
    ways = ["one chunk", "byte by byte", "any pieces", "socket"]
    read = tab.evaluate(READ_CASES, [len(CASES), ways])
    for way in ways:
        yielded = {
            name: [(e["type"], e["data"], e["lastEventId"]) for e in events]
            for name, events in zip(CASES, read[way], strict=True)
        }
        expected = {name: events for name, (_, events) in CASES.items()}
        assert yielded == expected, way


def test_retry_is_a_number_if_it_is_digits_only(tab):
    for number, body in enumerate(RETRY_STREAMS):
        events = tab.evaluate(READ, f"/retry/{number}")
        parsed = [event.retry for event in parse_events([body])]
        assert [e["retry"] for e in events] == parsed, body


@pytest.mark.parametrize(
    "response", ["fetch('/empty')", "new Response(null, { status: 204 })"]
)
def test_a_response_without_a_body_has_no_events(tab, response):
    assert tab.evaluate(f"async () => readAll(await {response})") == []


def test_breaking_out_of_the_loop_closes_the_connection(tab, server):
    seen = tab.evaluate("""
        async () => {
          const seen = [];
          await read(await fetch("/endless"), (event) => {
            seen.push(event.data);
            return "break";
          });
          return seen;
        }
    """)
    assert seen == ["a"]
    assert last_asked(server, "/endless").disconnected.wait(5)


def test_breaking_out_of_the_loop_aborts_an_uncancellable_fetch(tab):
    aborted = tab.evaluate("""
        async () => {
          const bytes = new TextEncoder().encode("data: a\\n\\n");
          const response = new Response(new ReadableStream({
            start: (stream) => stream.enqueue(bytes),
            cancel: () => new Promise(() => {}), // as in Firefox
          }));
          const controller = new AbortController();
          await read(response, () => "break", controller);
          return controller.signal.aborted;
        }
    """)
    assert aborted


def test_breaking_out_of_the_loop_throws_no_abort_error(tab, server):
    tab.evaluate("""
        async () => {
          const controller = new AbortController();
          const { signal } = controller;
          const response = await fetch("/endless", { signal });
          await read(response, () => "break", controller);
        }
    """)
    assert last_asked(server, "/endless").disconnected.wait(5)


def test_an_abort_throws_an_error_out_of_the_loop(tab, server):
    seen, error = tab.evaluate("""
        async () => {
          const seen = [];
          const controller = new AbortController();
          const { signal } = controller;
          try {
            await read(await fetch("/endless", { signal }), (event) => {
              seen.push(event.data);
              if (event.data === "b") controller.abort();
            });
          } catch (error) {
            return [seen, error.name];
          }
          return [seen, "no error"];
        }
    """)
    assert (seen, error) == (["a", "b"], "AbortError")
    assert last_asked(server, "/endless").disconnected.wait(5)


def test_a_lost_connection_throws_an_error_after_the_last_event(tab, server):
    tab.evaluate("""
        async () => {
          window.seen = [];
          const response = await fetch("/cut");
          window.end = read(response, (event) => { seen.push(event.data); })
            .then(() => "no error", (error) => error.name);
        }
    """)
    tab.wait_for_function("() => seen.length === 1")
    last_asked(server, "/cut").resume()
    assert tab.evaluate("() => end") == "TypeError"
    assert tab.evaluate("() => seen") == ["a"]


@pytest.fixture
def cpu_seconds(tab) -> Iterator[Callable[[], float]]:
    """Return how long the tab has computed, however busy the machine is."""
    session = tab.context.new_cdp_session(tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        values = {one["name"]: one["value"] for one in metrics}
        return values["TaskDuration"]

    yield cpu_seconds
    session.detach()


@pytest.mark.parametrize(
    "text",
    ["data: a", "data: x\n", "id: 1\ndata: " + "x" * 99 + "\n\n"],
    ids=["one line", "many lines", "many events"],
)
def test_four_times_the_bytes_take_about_four_times_as_long(
    tab, cpu_seconds, text
):
    def seconds(size: int) -> float:
        before = cpu_seconds()
        tab.evaluate(READ_TEXT, [text, size // len(text)])
        return cpu_seconds() - before

    quarter, full = (
        min(seconds(size) for _ in range(2)) for size in (2**16, 2**18)
    )
    assert full < 10 * quarter
