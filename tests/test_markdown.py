import json

import pytest
from conftest import LiveServer, read_until, wait_until, without_comments
from playwright.sync_api import expect
from upstream import (
    DONE,
    FAULTS,
    FINISH,
    HELLO,
    KEY,
    PAUSE,
    ROLE,
    delta,
    stream,
)

from app import create_app
from demos.markdown import DRAW_SECONDS, blocks

RETRY = b"retry: 86400000\n"
FINISHED = b"event: done\ndata: [DONE]\n\n"
PROMPT = "/stream/markdown?prompt=Hi"

silent_in_mid_answer = stream(*HELLO[:2], end="silent")


@pytest.fixture
def app(online_app):
    return online_app


def drawn(index, html):
    data = json.dumps(
        {"index": index, "html": html},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return f"id: {index}\nevent: block\ndata: {data}\n\n".encode()


# The answer


def test_an_answer_is_blocks_and_then_done(client, upstream):
    upstream.answer = stream(ROLE, delta("*你*\n\nb"), FINISH, DONE)
    response = client.get(PROMPT)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert without_comments(response.data) == (
        RETRY
        + drawn(0, "<p><em>你</em></p>\n")
        + drawn(1, "<p>b</p>\n") * 2
        + FINISHED
    )
    (request,) = upstream.requests
    assert request.json["messages"] == [{"role": "user", "content": "Hi"}]
    assert request.headers["Authorization"] == f"Bearer {KEY}"


def test_each_removal_is_reported_after_its_block(client, upstream):
    upstream.answer = stream(delta("a <img\n"), delta("src=b>"), FINISH, DONE)
    body = without_comments(client.get(PROMPT).data)
    reported = '"where":"the text"}\n\n', 'src=\\"b\\"","where":"<img>"}\n\n'
    assert body.endswith(
        drawn(0, "<p>a </p>\n")
        + b'event: blocked\ndata: {"index":0,"what":"<img>",'
        + reported[0].encode()
        + b'event: blocked\ndata: {"index":0,"what":"'
        + reported[1].encode()
        + FINISHED
    )


def test_the_growing_block_is_sent_at_most_ten_times_a_second():
    seconds, times = 0.0, []

    def pieces():
        nonlocal seconds
        for _ in range(100):
            seconds += 0.02
            yield "word "

    for event in blocks(pieces(), clock=lambda: seconds):
        if event.event == "block":
            times.append(seconds)
    assert 18 <= len(times) <= 21
    gaps = [b - a for a, b in zip(times, times[1:-1], strict=False)]
    assert min(gaps) >= DRAW_SECONDS - 1e-9


def test_the_growing_block_is_sent_while_the_model_pauses(client, upstream):
    upstream.answer = stream(
        ROLE, delta("One"), delta(" *two"), PAUSE, delta("*"), FINISH, DONE
    )
    with client.get(PROMPT) as response:
        chunks = iter(response.response)
        read_until(chunks, drawn(0, "<p>One *two</p>\n"))
        assert next(chunks) == b":\n"
        upstream.resume()
        rest = b"".join(chunks)
    assert without_comments(rest).endswith(
        drawn(0, "<p>One <em>two</em></p>\n") + FINISHED
    )


# The page


def ask(page, prompt="Show me Markdown"):
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()


def finish(page):
    expect(page.locator("#state")).to_have_text("closed")


GOOD_LINKS = ["https://b.example", "http://b.example", "mailto:b@b.example"]
GOOD_LINKS += ["/b", "#b", "HTTPS://b.example"]
BAD_LINKS = [
    *("data:text/html,https://b.example", "vbscript:x(`https://b.example`)"),
    *("javascript:alert(`https://b.example`)", "java\nscript:x('http:')"),
    *("JavaScript:x(`mailto:b@b.example`)", "  javascript://https://b.example"),
    *("blob:https://b.example/c", "view-source:http://b.example", "xhttps:b"),
]


@pytest.fixture
def quick(page):
    """The lesson's page, with an offline model that does not pause."""
    with LiveServer(create_app({"OFFLINE_WORD_SECONDS": 0})) as server:
        page.goto(f"{server.url}/demos/markdown")
        yield page


def test_page_shows_rich_text_but_runs_nothing(quick):
    ask(quick)
    finish(quick)
    answer = quick.get_by_role("log", name="Answer")
    assert answer.get_by_role("heading").count() == 1
    assert answer.get_by_role("link").get_attribute("href").startswith("https:")
    assert answer.locator("ol ul li").count() == 2
    assert answer.locator("pre .k").first.inner_text() == "def"
    cells = answer.get_by_role("row").nth(1).get_by_role("cell")
    aligned = "cell => getComputedStyle(cell).textAlign"
    assert [cell.evaluate(aligned) for cell in cells.all()] == [
        "-webkit-left",
        "-webkit-right",
        "-webkit-center",
    ]
    assert quick.locator("#blocked").inner_text() == ""

    dialogs = []
    quick.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    quick.get_by_role("button", name="Attack").click()
    expect(quick.locator("#blocks")).to_contain_text("And a last word")
    finish(quick)
    removed = quick.get_by_role("log", name="Removed").inner_text()
    for report in (
        "block 2: onerror=\"alert('img')\" in <img>",
        "block 2: <svg> in the text",
        "block 3: href=\"javascript:alert('link')\" in <a>",
        "block 5: <script> in the text",
        'block 8: id="state" in <p>',
    ):
        assert removed.splitlines().count(report) == 1
    assert dialogs == []

    kept = quick.evaluate(
        """(addresses) => {
            const box = document.createElement("div");
            const link = (address) => `<a href="${address}">a</a>`;
            put(box, addresses.map(link).join(""));
            return [...box.children].map((a) => a.getAttribute("href"));
        }""",
        GOOD_LINKS + BAD_LINKS,
    )
    assert kept == GOOD_LINKS + [None] * len(BAD_LINKS)


def test_page_keeps_finished_blocks_and_shows_why_an_answer_fails(
    live, upstream, page
):
    upstream.answer = stream(
        delta("One\n\nTwo"), PAUSE, delta("!"), FINISH, DONE
    )
    page.goto(f"{live.url}/demos/markdown")
    ask(page)
    blocks = page.locator("#blocks")
    expect(blocks).to_contain_text("Two")
    page.evaluate("() => { window.first = blocks.querySelector('p'); }")
    upstream.resume()
    finish(page)
    expect(blocks).to_have_text("One\nTwo!\n")
    assert page.evaluate("() => blocks.querySelector('p') === first")

    upstream.answer, sentence, _ = FAULTS["401"]
    ask(page)
    expect(blocks).to_have_text(sentence)
    finish(page)

    upstream.answer = silent_in_mid_answer
    ask(page)
    expect(blocks).to_have_text("Hello\n")
    page.get_by_role("button", name="Stop").click()
    wait_until(upstream.connections[-1].disconnected.is_set)
