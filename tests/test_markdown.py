import json
import re
import time

import pytest
from conftest import read_until, spoken, wait_until
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
    UNREACHABLE,
    delta,
    silence,
    stream,
)

from demos.markdown import answer
from event_source import parse_events
from language_model import MAX_PROMPT_CHARACTERS, _answer

LEAVE_SECONDS = 2
RETRY = b"retry: 86400000\n"
FINISHED = b"event: done\ndata: [DONE]\n\n"
PROMPT = "/stream/markdown?prompt=Hi"
EXAMPLE = "Show me Markdown"
ATTACK = "Attack this page"


def drawn(index, html):
    data = json.dumps(
        {"index": index, "html": html},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return f"id: {index}\nevent: block\ndata: {data}\n\n".encode()


def sent(pieces, seconds_apart=1.0):
    """Return (second, index, html) of every block that is sent for these."""
    seconds = 0.0

    def timed():
        nonlocal seconds
        for piece in pieces:
            seconds += seconds_apart
            yield piece

    events = []
    for event in answer(timed(), clock=lambda: seconds):
        if event is not KEEP_ALIVE and event.event == "block":
            events.append((seconds, event.data["index"], event.data["html"]))
    return events


def test_answer_is_blocks_and_then_done(online, upstream):
    upstream.answer = stream(ROLE, delta("*你*\n\nb"), FINISH, DONE)
    with online.get(PROMPT) as client:
        assert client.header("Content-Type") == "text/event-stream"
        assert spoken(client.read()) == (
            RETRY
            + drawn(0, "<p><em>你</em></p>\n")
            + drawn(1, "<p>b</p>\n") * 2
            + FINISHED
        )
    (request,) = upstream.requests
    assert request.json["messages"] == [{"role": "user", "content": "Hi"}]
    assert request.headers["Authorization"] == f"Bearer {KEY}"


def test_what_is_taken_out_is_told_after_its_block(online, upstream):
    upstream.answer = stream(delta("a <img\n"), delta("src=b>"), FINISH, DONE)
    with online.get(PROMPT) as client:
        body = spoken(client.read())
    told = '"where":"the text"}\n\n', 'src=\\"b\\"","where":"<img>"}\n\n'
    assert body.endswith(
        drawn(0, "<p>a </p>\n")
        + b'event: blocked\ndata: {"index":0,"what":"<img>",'
        + told[0].encode()
        + b'event: blocked\ndata: {"index":0,"what":"'
        + told[1].encode()
        + FINISHED
    )


def test_open_block_is_drawn_at_most_ten_times_a_second():
    times = [at for at, _, _ in sent(["word "] * 100, seconds_apart=0.02)]
    assert 18 <= len(times) <= 21
    gaps = [b - a for a, b in zip(times, times[1:-1], strict=False)]
    assert min(gaps) >= 0.1 - 1e-9


def test_finished_block_is_never_sent_again(offline):
    with offline.get("/stream/markdown?prompt=markdown") as client:
        events = list(parse_events(client.chunks()))
    blocks = [json.loads(e.data) for e in events if e.event == "block"]
    order = [block["index"] for block in blocks]
    assert order == sorted(order)
    assert set(order) == set(range(8))
    assert events[-1].event == "done"


def test_open_block_is_drawn_though_the_model_pauses(online, upstream):
    upstream.answer = stream(
        ROLE, delta("One"), delta(" *two"), PAUSE, delta("*"), FINISH, DONE
    )
    with online.get(PROMPT) as client:
        chunks = client.chunks()
        read_until(chunks, drawn(0, "<p>One *two</p>\n"))
        upstream.go_on()
        rest = b"".join(chunks)
    assert spoken(rest).endswith(
        drawn(0, "<p>One <em>two</em></p>\n") + FINISHED
    )


@pytest.mark.parametrize("name", FAULT_OF_EACH_KIND)
def test_a_fault_loses_no_text_and_is_told_last(online, upstream, name):
    fault = FAULTS[name]
    upstream.answer = fault.answer
    with online.get(PROMPT) as client:
        body = spoken(client.read())
    data = json.dumps({"error": fault.sentence}, separators=(",", ":"))
    last = f"event: failed\ndata: {data}\n\n".encode()
    if fault.texts:
        last = drawn(0, f"<p>{''.join(fault.texts)}</p>\n") + last
    assert body.endswith(last)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("last", ["0", "7", "x"])
def test_reconnect_gets_204_and_asks_nothing(online, upstream, last):
    with online.get(PROMPT, Last_Event_ID=last) as client:
        assert client.status == 204
    assert upstream.requests == []


@pytest.mark.parametrize(
    "query", ["", "?prompt=", f"?prompt={'x' * (MAX_PROMPT_CHARACTERS + 1)}"]
)
def test_prompt_of_another_length_is_refused(online, upstream, query):
    with online.get(f"/stream/markdown{query}") as client:
        assert client.status == 400
        assert json.loads(client.read()) == {
            "error": "prompt must have 1 to 4000 characters."
        }
    assert upstream.requests == []


def test_no_page_of_another_site_spends_money(online, upstream):
    with online.get(PROMPT, Sec_Fetch_Site="cross-site") as client:
        assert client.status == 403
    assert upstream.requests == []


@pytest.mark.parametrize(
    "behave", [silence, stream(delta("Hi"), end="silent")], ids=["yet", "again"]
)
def test_upstream_is_left_as_soon_as_the_client_has_left(
    online, upstream, behave
):
    upstream.answer = behave
    client = online.get(PROMPT)
    read_until(client.chunks(), RETRY if behave is silence else b"Hi")
    wait_until(lambda: upstream.requests)
    client.close()
    left = time.monotonic()
    wait_until(upstream.connections[0].left.is_set)
    assert upstream.connections[0].left_at - left < LEAVE_SECONDS


def ask(page, prompt=EXAMPLE):
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()


def finish(page):
    expect(page.locator("#state")).to_have_text("closed")


@pytest.fixture
def quick(start, page):
    """The lesson's page, with an offline model that writes at once."""
    server = start("flask run", FLASK_OFFLINE_WORD_SECONDS="0")
    page.goto(f"{server.url}/demos/markdown")
    return page


def test_page_shows_the_example_as_what_it_means(quick):
    quick.get_by_role("button", name="Example").click()
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


def test_page_tells_what_the_attack_tried_and_runs_none_of_it(quick):
    dialogs = []
    quick.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    quick.get_by_role("button", name="Attack").click()
    finish(quick)
    blocked = quick.get_by_role("log", name="Taken out")
    for told in (
        "block 2: onerror=\"alert('img')\" in <img>",
        "block 2: <svg> in the text",
        "block 3: href=\"javascript:alert('link')\" in <a>",
        "block 5: <script> in the text",
        'block 8: id="state" in <p>',
    ):
        assert blocked.get_by_text(told, exact=True).count() == 1
    expect(quick.locator("#blocks")).to_contain_text("the answer goes on.")
    assert dialogs == []


def test_page_keeps_the_nodes_of_a_finished_block(online, upstream, page):
    upstream.answer = stream(
        delta("One\n\nTwo"), PAUSE, delta("!"), FINISH, DONE
    )
    page.goto(f"{online.url}/demos/markdown")
    ask(page)
    expect(page.locator("#blocks")).to_contain_text("Two")
    page.evaluate("() => { window.first = byId('blocks').querySelector('p'); }")
    upstream.go_on()
    finish(page)
    expect(page.locator("#blocks")).to_have_text("One\nTwo!\n")
    assert page.evaluate("() => byId('blocks').querySelector('p') === first")


def test_compare_shows_that_rendering_everything_again_takes_longer(quick):
    ask(quick)
    finish(quick)
    assert quick.locator("#comparison").is_hidden()
    quick.get_by_role("button", name="Compare").click()
    names = ("Block by block", "Everything again")
    texts = [
        quick.get_by_role("region", name=name).inner_text() for name in names
    ]
    assert "".join(texts[0].split()) == "".join(texts[1].split()) != ""
    right, wrong = (
        float(re.fullmatch(r"([\d.]+) ms for 100 blocks", text)[1])
        for text in quick.locator("#comparison output").all_text_contents()
    )
    assert 0 < right < wrong


def test_page_shows_why_there_is_no_answer(online, page):
    page.goto(f"{online.url}/demos/markdown")
    ask(page)
    expect(page.locator("#blocks")).to_have_text(UNREACHABLE)
    finish(page)


def test_page_that_stops_an_answer_stops_the_model(online, upstream, page):
    upstream.answer = stream(*HELLO[:2], end="silent")
    page.goto(f"{online.url}/demos/markdown")
    ask(page)
    expect(page.locator("#blocks")).to_have_text("Hello\n")
    page.get_by_role("button", name="Stop").click()
    wait_until(upstream.connections[0].left.is_set, LEAVE_SECONDS)


def test_offline_model_has_an_answer_of_each_kind():
    for prompt in (EXAMPLE, f"{EXAMPLE} 中文"):
        for part in ("```python", "|---:|", "1. ", "](https://", "> "):
            assert part in _answer(prompt)
    for prompt in (ATTACK, "攻击"):
        for part in ("<img", "onerror", "(javascript:", "<svg onload", "<scr<"):
            assert part in _answer(prompt)
