import base64
import hashlib
import json
import re
import threading
from contextlib import closing

import pytest
from conftest import PATIENCE_SECONDS, read_until, wait_until
from playwright.sync_api import Page, expect

from demos import html
from demos.html import HEAD, PARTS, SCRIPT

FAILED = "This part failed."


def beginning(parts: dict) -> str:
    return HEAD + "".join(
        f'<p id="{name}"><a href="#{name}-part">{name}</a>'
        " is on its way …</p>\n"
        for name in parts
    )


def part(name: str, text: str) -> str:
    return (
        f'<p id="{name}-part" data-place="{name}">'
        f"<b>{name}</b>: {text}</p>\n"
        f"<script>{SCRIPT}</script>\n"
    )


def without_blank_lines(page: str) -> str:
    """Return a page without the blank lines that detect a disconnect."""
    return re.sub(r"(?m)^\n", "", page)


@pytest.fixture
def ready(monkeypatch) -> dict[str, threading.Event]:
    """The parts are ready when their events are set."""
    ready = {name: threading.Event() for name in PARTS}

    def work(name, seconds, fail, closed):
        ready[name].wait(PATIENCE_SECONDS)
        if name == fail:
            raise OSError
        return f"{name}!"

    monkeypatch.setattr(html, "NOTICE_SECONDS", 300)
    monkeypatch.setattr(html, "work", work)
    return ready


def test_the_page_starts_with_enough_text_for_webkit_to_paint():
    with closing(html.page("", dict.fromkeys(PARTS, 0))) as page:
        body = next(page).partition("</title>")[2]
    text = re.sub("<.+?>", "", body)
    assert len(re.sub(r"\s+", " ", text)) > 250


@pytest.mark.parametrize("fail", PARTS)
def test_one_part_fails_alone_and_only_the_log_shows_why(fail, caplog):
    page = "".join(html.page(fail, dict.fromkeys(PARTS, 0)))
    page = without_blank_lines(page)
    texts = dict.fromkeys(PARTS, "Ready after 0 s of work.") | {fail: FAILED}
    parts = [part(name, text) for name, text in texts.items()]
    assert all(one in page for one in parts)
    assert len(page) == len(beginning(PARTS) + "".join(parts))
    assert caplog.messages == [f"html: {fail} failed"]
    assert "OSError: The service is unreachable." in caplog.text


def test_the_text_of_a_part_is_escaped(monkeypatch):
    markup = '<img src=x onerror="alert(1)"> & more'
    monkeypatch.setattr(html, "work", lambda *_: markup)
    page = without_blank_lines("".join(html.page("", {"one": 0})))
    assert page == beginning(["one"]) + part(
        "one", "&lt;img src=x onerror=&#34;alert(1)&#34;&gt; &amp; more"
    )


def test_a_page_writes_while_it_waits_to_notice_a_disconnect():
    page = html.page("", {"slow": PATIENCE_SECONDS})
    assert next(page) == beginning(["slow"])
    assert next(page) == "\n"
    page.close()


def test_work_and_threads_end_with_the_page(caplog):
    caplog.set_level("INFO")
    before = set(threading.enumerate())
    page = html.page("", {"slow": PATIENCE_SECONDS, "slower": PATIENCE_SECONDS})
    next(page)
    assert len(set(threading.enumerate()) - before) == 2
    page.close()
    assert set(threading.enumerate()) <= before
    assert sorted(caplog.messages) == [
        "html: slow stopped: client disconnected",
        "html: slower stopped: client disconnected",
    ]


def test_streams_with_only_our_own_script(server):
    digest = hashlib.sha256(SCRIPT.encode()).digest()
    source = f"'sha256-{base64.b64encode(digest).decode()}'"
    with server.get("/stream/html") as client:
        assert client.header("Content-Type") == "text/html; charset=utf-8"
        assert client.header("Cache-Control") == "no-store, no-transform"
        policy = client.header("Content-Security-Policy").split("; ")
        start = beginning(PARTS).encode()
        assert read_until(client.chunks(), start).startswith(start)
    assert "default-src 'none'" in policy
    assert f"script-src 'self' {source}" in policy
    assert "unsafe" not in " ".join(policy)


def ids(parts) -> list[str]:
    return parts.locator("p[id]").evaluate_all("all => all.map((p) => p.id)")


def test_each_part_replaces_its_placeholder(page: Page, live, ready):
    page.goto(f"{live.url}/demos/html")
    requests = []
    page.on("request", lambda request: requests.append(request))
    page.get_by_label("What fails").select_option("weather")
    page.get_by_role("button", name="Start").click()
    page.frame_locator("#frame").locator("#mail").wait_for()
    frame, expected = page.frames[-1], list(PARTS)
    for name in ("weather", "mail", "trains"):
        assert ids(frame) == expected
        ready[name].set()
        frame.locator(f"#{name}-part").wait_for()
        expected[expected.index(name)] += "-part"
        wait_until(lambda: ids(frame) == expected)
    assert frame.locator("p[id]").all_text_contents() == [
        "trains: trains!",
        f"weather: {FAILED}",
        "mail: mail!",
    ]
    documents = [one for one in requests if one.resource_type == "document"]
    assert [one.url for one in documents] == [frame.url]
    assert frame.url.endswith("/stream/html?fail=weather")


def test_every_part_can_be_read_without_javascript(browser, live, ready):
    for event in ready.values():
        event.set()
    with closing(browser.new_context(java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(f"{live.url}/stream/html")
        assert ids(page)[:3] == ["trains", "weather", "mail"]
        for name in PARTS:
            page.get_by_role("link", name=name).click()
            expect(page.locator("p:target")).to_have_text(f"{name}: {name}!")


HIDE = "dispatchEvent(new PageTransitionEvent('pagehide'))"


def test_stop_and_leaving_the_page_keep_its_parts_and_stop_the_work(
    live, page: Page, monkeypatch, caplog
):
    caplog.set_level("INFO", "demos.html")
    for name, seconds in {"trains": 600, "weather": 0, "mail": 600}.items():
        monkeypatch.setitem(PARTS, name, seconds)
    page.goto(f"{live.url}/demos/html")
    entries = page.evaluate("history.length")
    frame = page.frame_locator("#frame")
    stop = page.get_by_role("button", name="Stop")
    ends = {"trains": stop.click, "mail": lambda: page.evaluate(HIDE)}
    for fail, end in ends.items():  # a new URL could enter the history
        caplog.clear()
        page.get_by_label("What fails").select_option(fail)
        page.get_by_role("button", name="Start").click()
        frame.get_by_text("trains is on its way").wait_for()
        frame.locator("#weather-part").wait_for()
        end()
        for name in ("trains", "mail"):
            stopped = f"html: {name} stopped: client disconnected"
            wait_until(lambda stopped=stopped: stopped in caplog.messages)
        assert {"trains", "weather-part"} <= set(ids(frame))
    assert page.evaluate("history.length") == entries


def expect_abort(page: Page) -> None:
    expect(page.locator("#state")).to_contain_text("open")
    with page.expect_event("requestfailed"):
        page.evaluate(HIDE)


def test_a_page_aborts_a_fetch_that_it_could_not_resume(lesson_page):
    page = lesson_page("post")
    members = json.dumps(dict.fromkeys(range(1000), 0))  # a pause for each
    page.locator("#body").fill(members)
    page.get_by_role("button", name="Send").click()
    expect_abort(page)
    page = lesson_page("before_sse")
    page.get_by_role("button", name="Start").click()
    expect_abort(page)


def test_the_wire_panel_aborts_a_fetch_that_it_could_not_resume(lesson_page):
    page = lesson_page("prices")
    page.locator("#wire summary").click()
    expect(page.locator("#wire pre")).to_contain_text("status 200")
    with page.expect_event("requestfailed"):
        page.evaluate(HIDE)
