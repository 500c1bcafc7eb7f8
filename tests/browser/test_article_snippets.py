"""Client pages from articles about streamed answers work with this app.

Readers paste such pages and point them at this app. The app must offer the URLs
and events that these pages expect, even at another origin.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import upstream
from conftest import PROJECT, Server

CHAT_URL = "/v1/chat/completions"

EVENT_SOURCE_PAGE = """
<!doctype html>
<input id="prompt"> <button>Ask</button>
<pre id="answer"></pre>
<script>
  const [prompt, button, answer] = document.body.children;
  button.onclick = () => {
    const query = encodeURIComponent(prompt.value);
    const source = new EventSource(`/stream?prompt=${query}`);
    source.onmessage = (event) => {
      const payload = JSON.parse(event.data);
      if (payload.action === "terminate") {
        source.close();
        document.title = "finished";
      } else {
        answer.textContent += payload.text;
      }
    };
  };
</script>
"""

# It parses each read on its own, and carries nothing over to the next one.
FETCH_PAGE = """
<!doctype html>
<input id="prompt"> <button>Ask</button> <button>Stop</button>
<pre id="answer"></pre>
<script>
  const [prompt, ask, stop, answer] = document.body.children;
  const controller = new AbortController();
  stop.onclick = () => controller.abort();
  ask.onclick = async () => {
    try {
      const response = await fetch("/v1/chat/completions", {
        method: "POST",
        headers: {
          "Content-Type": "application/json",
          Authorization: "Bearer sk-none",
        },
        body: JSON.stringify({
          model: "gpt-4o-mini",
          messages: [{ role: "user", content: prompt.value }],
          stream: true,
        }),
        signal: controller.signal,
      });
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const lines = decoder.decode(value).split("\\n")
          .map((line) => line.replace("data: ", ""))
          .filter((line) => line !== "" && line !== "[DONE]");
        for (const line of lines) {
          const { content } = JSON.parse(line).choices[0].delta;
          if (content) answer.textContent += content;
        }
      }
      document.title = "finished";
    } catch (error) {
      document.title = error.name;
    }
  };
</script>
"""


@pytest.fixture(scope="module")
def model() -> Iterator[Server]:
    """The app with a fast offline model that sends word by word."""
    with Server("gunicorn", FLASK_OFFLINE_WORD_SECONDS="0.005") as running:
        yield running


@pytest.fixture
def article(page) -> Callable:
    """Return a function that opens a page and records its requests."""

    def open_article(url: str, html: str = ""):
        if html:
            html_type = "text/html"
            page.route(
                url,
                lambda route: route.fulfill(body=html, content_type=html_type),
            )
        page.goto(url)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        return page

    return open_article


@pytest.fixture
def foreign(model) -> Callable:
    """Return a function that serves a page at an origin that is not ours."""
    with ExitStack() as stack:

        def serve(html: str) -> str:
            for path in ("/stream", "/v1"):
                html = html.replace(f"`{path}", f"`{model.url}{path}")
                html = html.replace(f'"{path}', f'"{model.url}{path}')
            page = upstream.page(html.encode(), "200 OK", "text/html")
            return stack.enter_context(upstream.Upstream(page)).url

        yield serve


def answer(name: str) -> str:
    """Return an answer of the offline model."""
    return (PROJECT / f"website/answers/{name}.md").read_text("utf-8")


def ask(page, prompt: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()


PAGES = {
    "EventSource": (EVENT_SOURCE_PAGE, "/stream?prompt="),
    "fetch": (FETCH_PAGE, CHAT_URL),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_of_another_origin_shows_the_complete_answer_and_asks_once(
    article, model, foreign, name
):
    html, path = PAGES[name]
    page = article(foreign(html))
    ask(page, "怎么重连？ & 100%")
    page.wait_for_function("() => document.title !== ''")
    assert page.title() == "finished"
    assert page.locator("#answer").text_content() == answer("reconnect.zh")
    page.evaluate("() => fetch('')")  # flushes all earlier requests
    first, *_, last = page.asked
    assert first.startswith(f"{model.url}{path}")
    assert page.asked == [first, last]


def test_stop_button_stops_the_answer(article, site):
    page = article(f"{site.url}/article", FETCH_PAGE)
    ask(page, "markdown")
    page.locator("#answer", has_text="contain").wait_for()
    with page.expect_event("requestfailed") as stopped:
        page.get_by_role("button", name="Stop").click()
    assert stopped.value.url == f"{site.url}{CHAT_URL}"
    page.wait_for_function("() => document.title !== ''")
    assert page.title() == "AbortError"
    shown = page.locator("#answer").text_content()
    complete = answer("markdown.en")
    assert complete.startswith(shown)
    assert len(shown) < len(complete)
