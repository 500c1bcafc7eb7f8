"""Pages as articles about streamed answers write them, unchanged, against us.

Their readers paste such pages and point them at this app, so the URLs, the
events and how they leave must be what these pages take for granted.
"""

from collections.abc import Callable, Iterator

import pytest
from conftest import Server

from language_model import _answer

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

# It parses each read by itself: nothing is carried over to the next one.
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
def model(command) -> Iterator[Server]:
    """The app with an offline model in a hurry, its words still apart."""
    running = Server(command, FLASK_OFFLINE_WORD_SECONDS="0.005")
    yield running
    running.stop()


@pytest.fixture
def article(page) -> Callable:
    """Open a page under the app's own origin, as if the app served it."""

    def open_article(server: Server, html: str):
        url = f"{server.url}/article"
        page.route(
            url,
            lambda route: route.fulfill(body=html, content_type="text/html"),
        )
        page.goto(url)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        return page

    return open_article


def ask(page, prompt: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()


@pytest.mark.parametrize("prompt", ["How do I reconnect?", "怎么重连？ & 100%"])
@pytest.mark.parametrize(
    ("html", "path"),
    [(EVENT_SOURCE_PAGE, "/stream?prompt="), (FETCH_PAGE, CHAT_URL)],
    ids=["EventSource", "fetch"],
)
def test_page_shows_the_whole_answer_and_asks_once(
    article, model, html, path, prompt
):
    page = article(model, html)
    ask(page, prompt)
    page.wait_for_function("() => document.title !== ''")
    assert page.title() == "finished"
    assert page.locator("#answer").text_content() == _answer(prompt)
    page.evaluate("() => fetch('/')")  # what came before it is known after it
    first, *_, last = page.asked
    assert first.startswith(f"{model.url}{path}")
    assert page.asked == [first, last]


def test_stop_button_stops_the_answer(article, site):
    page = article(site, FETCH_PAGE)
    ask(page, "markdown")
    page.locator("#answer", has_text="hold").wait_for()
    with page.expect_event("requestfailed") as stopped:
        page.get_by_role("button", name="Stop").click()
    assert stopped.value.url == f"{site.url}{CHAT_URL}"
    page.wait_for_function("() => document.title !== ''")
    assert page.title() == "AbortError"
    shown = page.locator("#answer").text_content()
    answer = _answer("markdown")
    assert answer.startswith(shown)
    assert len(shown) < len(answer)
