import json
import time

import pytest
from conftest import read_until, wait_until, without_comments
from playwright.sync_api import expect
from upstream import (
    DONE,
    FAULT_OF_EACH_KIND,
    FAULTS,
    FINISH,
    HELLO,
    KEY,
    PAUSE,
    ROLE,
    delta,
    stream,
)

import language_model
from app import create_app
from demos.markdown import DRAW_SECONDS, blocks
from event_source import parse_events

NOTICE_SECONDS = 2
RETRY = b"retry: 86400000\n"
FINISHED = b"event: done\ndata: [DONE]\n\n"
PROMPT = "/stream/markdown?prompt=Hi"

one_server = pytest.mark.parametrize("command", ["flask"], indirect=True)

silent_after_headers = stream(end="silent")
silent_in_mid_answer = stream(*HELLO[:2], end="silent")


@pytest.fixture
def app(upstream, monkeypatch):
    """The app in this process, with an upstream."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield create_app()
    language_model.session.close()


def drawn(index, html):
    data = json.dumps(
        {"index": index, "html": html},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return f"id: {index}\nevent: block\ndata: {data}\n\n".encode()


def sent(pieces, seconds_apart=1.0):
    """Return (second, index, html) of every block sent for these pieces."""
    seconds = 0.0

    def timed():
        nonlocal seconds
        for piece in pieces:
            seconds += seconds_apart
            yield piece

    events = []
    for event in blocks(timed(), clock=lambda: seconds):
        if event is not None and event.event == "block":
            events.append((seconds, event.data["index"], event.data["html"]))
    return events


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
    times = [at for at, _, _ in sent(["word "] * 100, seconds_apart=0.02)]
    assert 18 <= len(times) <= 21
    gaps = [b - a for a, b in zip(times, times[1:-1], strict=False)]
    assert min(gaps) >= DRAW_SECONDS - 1e-9


def test_a_finished_block_is_never_sent_again():
    client = create_app({"OFFLINE_WORD_SECONDS": 0}).test_client()
    response = client.get("/stream/markdown?prompt=markdown")
    events = list(parse_events([response.data]))
    sent = [json.loads(e.data) for e in events if e.event == "block"]
    order = [block["index"] for block in sent]
    assert order == sorted(order)
    assert set(order) == set(range(8))
    assert events[-1].event == "done"


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


@pytest.mark.parametrize("name", FAULT_OF_EACH_KIND)
def test_a_fault_loses_no_text_and_is_the_last_event(client, upstream, name):
    fault = FAULTS[name]
    upstream.answer = fault.answer
    body = without_comments(client.get(PROMPT).data)
    data = json.dumps({"error": fault.sentence}, separators=(",", ":"))
    last = f"event: failed\ndata: {data}\n\n".encode()
    if fault.texts:
        last = drawn(0, f"<p>{''.join(fault.texts)}</p>\n") + last
    assert body.endswith(last)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [silent_after_headers, silent_in_mid_answer],
    ids=["after headers", "in mid-answer"],
)
def test_a_disconnect_closes_the_connection_to_the_upstream(
    online, upstream, answer
):
    upstream.answer = answer
    client = online.get(PROMPT)
    begun = RETRY if answer is silent_after_headers else b"Hello"
    read_until(client.chunks(), begun)
    wait_until(lambda: upstream.requests)
    (connection,) = upstream.connections
    assert not connection.disconnected.is_set()
    client.close()
    closed_at = time.monotonic()
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - closed_at < NOTICE_SECONDS


# Refused requests, which cost nothing


@pytest.mark.parametrize("last", ["0", "7", "x"])
def test_a_reconnect_gets_204_and_sends_no_prompt(client, upstream, last):
    response = client.get(PROMPT, headers={"Last-Event-ID": last})
    assert response.status_code == 204
    assert upstream.requests == []


@pytest.mark.parametrize("query", ["", "?prompt=", f"?prompt={'x' * 4001}"])
def test_an_empty_or_too_long_prompt_is_refused(client, upstream, query):
    response = client.get(f"/stream/markdown{query}")
    assert response.status_code == 400
    assert response.json == {
        "error": "prompt must be text of 1 to 4000 characters."
    }
    assert upstream.requests == []


# The page


def ask(page, prompt="Show me Markdown"):
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()


def finish(page):
    expect(page.locator("#state")).to_have_text("closed")


@pytest.fixture
def quick(offline, page):
    """The lesson's page, with an offline model that does not pause."""
    page.goto(f"{offline.url}/demos/markdown")
    return page


@one_server
def test_page_shows_the_example_as_rich_text(quick):
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


@one_server
def test_page_lists_what_the_attack_tried_and_runs_none_of_it(quick):
    dialogs = []
    quick.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    quick.get_by_role("button", name="Attack").click()
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
    expect(quick.locator("#blocks")).to_contain_text("And a last word")
    assert dialogs == []


GOOD_LINKS = ["https://b.example", "http://b.example", "mailto:b@b.example"]
GOOD_LINKS += ["/b", "#b", "HTTPS://b.example"]
BAD_LINKS = [
    *("data:text/html,https://b.example", "vbscript:x(`https://b.example`)"),
    *("javascript:alert(`https://b.example`)", "java\nscript:x('http:')"),
    *("JavaScript:x(`mailto:b@b.example`)", "  javascript://https://b.example"),
    *("blob:https://b.example/c", "view-source:http://b.example", "xhttps:b"),
]


@one_server
def test_page_keeps_only_links_with_allowed_schemes(quick):
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


@one_server
def test_page_keeps_the_nodes_of_a_finished_block(online, upstream, page):
    upstream.answer = stream(
        delta("One\n\nTwo"), PAUSE, delta("!"), FINISH, DONE
    )
    page.goto(f"{online.url}/demos/markdown")
    ask(page)
    expect(page.locator("#blocks")).to_contain_text("Two")
    page.evaluate("() => { window.first = blocks.querySelector('p'); }")
    upstream.resume()
    finish(page)
    expect(page.locator("#blocks")).to_have_text("One\nTwo!\n")
    assert page.evaluate("() => blocks.querySelector('p') === first")


@one_server
def test_page_shows_the_reason_for_a_failure(online, page):
    page.goto(f"{online.url}/demos/markdown")
    ask(page)
    sentence = "The language model is unreachable."
    expect(page.locator("#blocks")).to_have_text(sentence)
    finish(page)


@one_server
def test_the_stop_button_stops_the_model(online, upstream, page):
    upstream.answer = silent_in_mid_answer
    page.goto(f"{online.url}/demos/markdown")
    ask(page)
    expect(page.locator("#blocks")).to_have_text("Hello\n")
    page.get_by_role("button", name="Stop").click()
    stopped_at = time.monotonic()
    (connection,) = upstream.connections
    wait_until(connection.disconnected.is_set)
    assert connection.disconnected_at - stopped_at < NOTICE_SECONDS
