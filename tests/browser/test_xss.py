"""No published payload runs or reaches another host.

The server and the page both sanitize, and a Content-Security-Policy is the last
defense. Each sanitizer is also tested alone, without the policy.
"""

import pytest
from conftest import Server, wait_until
from upstream import DONE, FINISH, Upstream, delta, stream
from xss_payloads import ALL, CHECK, CONTROLS, OURS, PUT, UNGUARDED

# Try one payload after another. Each is done once its stream is closed.
READ_ANSWERS = """
async (count) => {
  const received = [];
  for (let number = 0; number < count; number += 1) {
    form.prompt.value = number;
    form.querySelector("button").click();
    source.addEventListener("block", (event) => {
      received.push(JSON.parse(event.data).html);
    });
    while (source.readyState !== EventSource.CLOSED) {
      await new Promise((resolve) => { setTimeout(resolve, 5); });
    }
    check(blocks, number);
  }
  return received;
}
"""


class Watch:
    """A page of the lesson, with a record of everything it must not do."""

    def __init__(self, browser, url, script="() => {}", bypass_csp=True):
        self.context = browser.new_context(bypass_csp=bypass_csp)
        self.context.add_init_script(CHECK)
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.on("dialog", self._dialog)
        self.context.on("page", lambda page: self.seen.append("a window"))
        self.page.on(
            "framenavigated", lambda frame: self.seen.append(frame.url)
        )
        self.host = url
        self.seen = []
        self.page.goto(f"{url}/demos/markdown")
        self.page.evaluate(script)
        self.seen.clear()

    def _route(self, route):
        if route.request.url.startswith(self.host):
            route.continue_()
        else:
            self.seen.append(route.request.url)
            route.abort()

    def _dialog(self, dialog):
        self.seen.append(dialog.message)
        dialog.dismiss()

    def finish(self):
        """Wait for everything that is still pending, and return the record."""
        self.page.evaluate(
            "() => new Promise((resolve) => {"
            "  const image = new Image();"
            "  image.onerror = () => setTimeout(resolve, 100);"
            "  image.src = '/nowhere';"
            "})"
        )
        found = self.page.evaluate("() => found")
        self.context.close()
        return self.seen + found


def a_few_characters_at_a_time(connection):
    """Answer with the payload whose number is the prompt."""
    (message,) = connection.request.json["messages"]
    payload = (ALL + OURS)[int(message["content"])]
    pieces = [payload[at : at + 7] for at in range(0, len(payload), 7)]
    stream(*map(delta, pieces), FINISH, DONE)(connection)


@pytest.fixture(scope="module")
def url():
    with Upstream(a_few_characters_at_a_time) as upstream:
        server = Server("flask run", OPENAI_BASE_URL=upstream.url)
        yield server.url
        server.stop()


def test_corpus_is_large_and_has_no_payload_twice():
    assert len(ALL) == len(set(ALL)) >= 150


def test_payloads_are_detected_without_any_guard(browser, url):
    watch = Watch(browser, url, UNGUARDED)
    watch.page.evaluate(PUT, list(CONTROLS.values()))
    wait_until(
        lambda: (
            set(CONTROLS) <= set(watch.seen) or watch.page.wait_for_timeout(10)
        )
    )
    watch.finish()


def test_no_payload_runs_on_the_page_or_in_the_html_of_the_server(browser, url):
    watch = Watch(browser, url, bypass_csp=False)
    received = watch.page.evaluate(READ_ANSWERS, len(ALL + OURS))
    assert watch.finish() == []
    assert len(received) > len(ALL)
    watch = Watch(browser, url, UNGUARDED)
    watch.page.evaluate(PUT, received)
    assert watch.finish() == []


def test_the_page_sanitizes_even_if_the_server_does_not(browser, url):
    watch = Watch(browser, url)
    watch.page.evaluate(PUT, ALL + OURS)
    assert watch.finish() == []
