"""Pages of other sites can neither spend our money nor open our WebSocket."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import Server
from playwright.sync_api import expect
from upstream import DONE, delta, stream

LOADS = """
<!doctype html>
<title>Another site</title>
<img src="TARGET=img">
<iframe src="TARGET=frame"></iframe>
<script src="TARGET=script"></script>
<link rel="stylesheet" href="TARGET=style">
<script>
  fetch("TARGET=fetch", { mode: "no-cors", referrerPolicy: "no-referrer" });
  new EventSource("TARGET=source");
  new WebSocket("TARGET=socket".replace("completion", "socket"));
</script>
"""
SPECULATION_RULES = """
<script type="speculationrules">
  {
    "prefetch": [{ "urls": ["TARGET=prefetch"], "eagerness": "immediate" }],
    "prerender": [{ "urls": ["TARGET=prerender"], "eagerness": "immediate" }]
  }
</script>
"""
LOADED = ("img", "frame", "script", "style", "fetch", "source", "socket")
SPECULATED = ("prefetch", "prerender")


@pytest.fixture
def lan_server(upstream) -> Iterator[Server]:
    with Server(
        "flask run",
        OPENAI_BASE_URL=upstream.url,
        FLASK_TRUSTED_HOSTS="ours.test",
    ) as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[ThreadingHTTPServer]:
    """A server with a single page, which is its attribute `page`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(self.server.page.encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# Over plain HTTP, a browser sends Sec-Fetch-Site to loopback addresses only.
@pytest.mark.parametrize(
    ("their_host", "our_host", "kinds"),
    [
        ("localhost", "127.0.0.1", LOADED + SPECULATED),
        ("theirs.test", "ours.test", LOADED),
    ],
)
def test_pages_of_other_sites_are_refused(
    page, lan_server, elsewhere, upstream, their_host, our_host, kinds
):
    upstream.answer = stream(delta("Hello"), DONE)
    ours = f"http://{our_host}:{lan_server.port}"
    html = LOADS + (SPECULATION_RULES if "prefetch" in kinds else "")
    elsewhere.page = html.replace("TARGET", f"{ours}/completion?prompt")
    foreign = page.context.new_page()
    foreign.goto(f"http://{their_host}:{elsewhere.server_port}/")
    for kind in kinds:
        refused = f"prompt={kind} .* 403 "
        while not lan_server.logged(refused):
            foreign.wait_for_timeout(20)
    assert upstream.requests == []

    page.goto(f"{ours}/demos/completion")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_label("Answer")).to_have_text("Hello")
    assert len(upstream.requests) == 1
