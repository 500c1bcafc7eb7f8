"""npm packages that read event streams from `fetch` can read ours."""

import json
from pathlib import Path

import npm
import pytest

pytestmark = pytest.mark.own_page

PACKAGES = {
    "@microsoft/fetch-event-source": "2.0.1",
    "fetch-event-stream": "0.1.6",
    "eventsource-parser": "4.1.3",
}

# Each reads events as in its package's README, and reports when they end.
CLIENTS = {
    "@microsoft/fetch-event-source": """
        async (url, init, onmessage, onclose) => {
          const { fetchEventSource } = await import(
            "/npm/@microsoft/fetch-event-source/package/lib/esm/index.js");
          await fetchEventSource(url, { ...init, onmessage, onclose });
        }
    """,
    "fetch-event-stream": """
        async (url, init, onmessage, onclose) => {
          const { stream } = await import(
            "/npm/fetch-event-stream/package/esm/mod.js");
          const events = await stream(url, init);
          for await (const event of events) onmessage(event);
          onclose();
        }
    """,
    "eventsource-parser": """
        async (url, init, onmessage, onclose) => {
          const { EventSourceParserStream } = await import(
            "/npm/eventsource-parser/package/dist/stream.js");
          const response = await fetch(url, init);
          const events = response.body
            .pipeThrough(new TextDecoderStream())
            .pipeThrough(new EventSourceParserStream());
          for await (const event of events) onmessage(event);
          onclose();
        }
    """,
}

ASK = """
async ([body, last]) => {
  const events = [];
  let closed = 0;
  const controller = new AbortController();
  const init = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body,
    signal: controller.signal,
  };
  const onmessage = ({ event, data }) => {
    events.push([event || "message", data]);
    if (events.length === last) controller.abort();
  };
  const onclose = () => { closed++; };
  try {
    await (CLIENT)("/api/sse", init, onmessage, onclose);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
  return [events, closed];
}
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with the files of each package."""
    return npm.unpack(PACKAGES, npm.shared_folder(tmp_path_factory))


@pytest.fixture
def app_page(page, site, packages):
    """A page of the app that can also import the packages."""

    def serve(route):
        file = packages / route.request.url.partition("/npm/")[2]
        if not file.suffix:  # as bundlers do
            file = file.with_suffix(".js")
        route.fulfill(path=file, content_type="text/javascript")

    page.route(f"{site.url}/npm/**", serve)
    page.clock.install()
    page.goto(site.url)
    page.methods = []
    page.on("request", lambda request: page.methods.append(request.method))
    return page


@pytest.mark.parametrize("client", PACKAGES)
def test_a_client_reads_to_the_end_asks_once_and_can_abort(app_page, client):
    ask = ASK.replace("CLIENT", CLIENTS[client])
    events, closed = app_page.evaluate(ask, ['{"foo":"bar"}', None])
    asked = '{"method":"POST","headers":{},"body":{"foo":"bar"}}'
    assert events == [
        ["request", asked],
        ["message", '{"key":"foo","value":"bar"}'],
        ["done", '{"members":1}'],
    ]
    assert closed == 1

    body = json.dumps(dict.fromkeys("abcdefghij"))
    with app_page.expect_event("requestfailed") as aborted:
        events, _ = app_page.evaluate(ask, [body, 2])
    assert [type for type, _ in events] == ["request", "message"]
    assert aborted.value.url.endswith("/api/sse")

    app_page.clock.fast_forward("10:00")  # no timer asks again
    app_page.evaluate("() => fetch('')")  # flushes all earlier requests
    assert app_page.methods.count("POST") == 2
