import base64
import hashlib
import json
import re
import threading
import time
from contextlib import closing

import pytest
from conftest import read_until, wait_until
from playwright.sync_api import Page, expect

from demos import html
from demos.html import HEAD, PARTS, SCRIPT

FAILED = "This part failed."
READY = {name: f"Ready after {PARTS[name]} s of work." for name in PARTS}


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


def test_a_part_is_sent_as_soon_as_it_is_ready(monkeypatch):
    monkeypatch.setattr(html, "NOTICE_SECONDS", 30)
    monkeypatch.setattr(
        html, "work", lambda name, event, *_: f"{name}!" * event.wait(20)
    )
    ready = {name: threading.Event() for name in ("one", "two", "three")}
    page = html.page("", ready)
    assert next(page) == beginning(ready)
    began = time.monotonic()
    for name in ("two", "three", "one"):
        ready[name].set()
        assert next(page) == part(name, f"{name}!") + "\n"
    assert time.monotonic() - began < 30
    assert list(page) == []


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
    page = html.page("", {"slow": 60})
    assert next(page) == beginning(["slow"])
    assert next(page) == "\n"
    page.close()


def test_work_and_threads_end_with_the_page(caplog):
    caplog.set_level("INFO")
    before = set(threading.enumerate())
    page = html.page("", {"slow": 60, "slower": 61})
    next(page)
    assert len(set(threading.enumerate()) - before) == 2
    page.close()
    assert set(threading.enumerate()) <= before
    assert sorted(caplog.messages) == [
        "html: slow stopped: client disconnected",
        "html: slower stopped: client disconnected",
    ]


def test_the_headers_allow_streaming_and_only_our_own_script(server):
    digest = hashlib.sha256(SCRIPT.encode()).digest()
    source = f"'sha256-{base64.b64encode(digest).decode()}'"
    with server.get("/stream/html") as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/html; charset=utf-8"
        assert client.header("Cache-Control") == "no-store, no-transform"
        assert client.header("X-Accel-Buffering") == "no"
        policy = client.header("Content-Security-Policy").split("; ")
    assert "default-src 'none'" in policy
    assert f"script-src 'self' {source}" in policy
    assert "unsafe" not in " ".join(policy)


def test_the_page_starts_immediately_and_the_fastest_part_comes_first(server):
    texts = READY | {"mail": FAILED}
    with server.get("/stream/html?fail=mail") as client:
        chunks = client.chunks()
        assert next(chunks).decode() == beginning(PARTS)
        began = time.monotonic()
        for name in ("weather", "mail", "trains"):
            sent = read_until(chunks, b"</script>\n").decode()
            assert without_blank_lines(sent) == part(name, texts[name])
        assert time.monotonic() - began > 1  # of three seconds
        assert b"".join(chunks).strip() == b""


def test_an_unknown_name_of_a_part_is_refused(client):
    response = client.get("/stream/html?fail=nope")
    assert response.status_code == 400
    assert response.json == {
        "error": "fail must be one of trains, weather, mail, got 'nope'."
    }


def has_stopped(server, name: str) -> bool:
    return server.logged(f"^html: {name} stopped: client disconnected$") != []


def test_a_disconnect_stops_all_work(start, command):
    """A page counts as an open stream until all its threads have ended."""
    server = start(command, FLASK_MAX_STREAMS="1")

    def status() -> int:
        with server.get("/stream/hello") as client:
            return client.status

    with server.get("/stream/html") as client:
        next(client.chunks())
        assert status() == 503
    wait_until(lambda: status() == 200)
    wait_until(
        lambda: has_stopped(server, "trains") and has_stopped(server, "mail")
    )
    assert server.logged("Traceback") == []


RECORD = """
window.seen = [];
new MutationObserver(() => {
  const parts = [...document.querySelectorAll("p[id]")];
  window.seen.push(parts.map((one) => one.id).join(" "));
}).observe(document, {childList: true, subtree: true});
"""


def ids(parts) -> list[str]:
    return parts.locator("p[id]").evaluate_all("all => all.map((p) => p.id)")


@pytest.mark.own_page
def test_each_part_replaces_its_placeholder(page: Page, lesson_page):
    page.add_init_script(RECORD)
    lesson_page("html")
    requests = []
    page.on("request", lambda request: requests.append(request))
    page.get_by_label("What fails").select_option("weather")
    page.get_by_role("button", name="Start").click()
    page.frame_locator("#frame").locator("#trains-part").wait_for()

    frame = page.frames[-1]
    steps = [
        "trains weather mail",
        "trains weather-part mail",
        "trains weather-part mail-part",
        "trains-part weather-part mail-part",
    ]
    seen = frame.evaluate("seen")
    assert [one for one in dict.fromkeys(seen) if one in steps] == steps
    assert " ".join(ids(frame)) == steps[-1]
    assert frame.locator("p[id]").all_text_contents() == [
        f"trains: {READY['trains']}",
        f"weather: {FAILED}",
        f"mail: {READY['mail']}",
    ]
    documents = [one for one in requests if one.resource_type == "document"]
    assert [one.url for one in documents] == [frame.url]
    assert frame.url.endswith("/stream/html?fail=weather")


def test_every_part_can_be_read_without_javascript(browser, site):
    with closing(browser.new_context(java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(f"{site.url}/stream/html")
        assert ids(page) == [
            *("trains", "weather", "mail"),
            *("weather-part", "mail-part", "trains-part"),
        ]
        for name, text in READY.items():
            page.get_by_role("link", name=name).click()
            expect(page.locator("p:target")).to_have_text(f"{name}: {text}")


def test_stop_keeps_the_parts_so_far_and_stops_the_work(start, page: Page):
    server = start("flask run")
    page.goto(f"{server.url}/demos/html")
    page.get_by_role("button", name="Start").click()
    frame = page.frame_locator("#frame")
    expect(frame.locator("#weather-part")).to_contain_text(READY["weather"])
    page.get_by_role("button", name="Stop").click()
    wait_until(lambda: has_stopped(server, "trains"))
    assert {"trains", "weather-part"} <= set(ids(frame))


def test_a_second_start_adds_nothing_to_the_history(lesson_page):
    page = lesson_page("html")
    entries = page.evaluate("history.length")
    for fail in ("trains", "weather"):
        page.get_by_label("What fails").select_option(fail)
        with page.expect_event(
            "framenavigated", lambda frame: frame != page.main_frame
        ) as navigated:
            page.get_by_role("button", name="Start").click()
        assert navigated.value.url.endswith(f"/stream/html?fail={fail}")
    assert page.evaluate("history.length") == entries


HIDE = "dispatchEvent(new PageTransitionEvent('pagehide'))"


def test_the_frame_stops_loading_when_the_user_navigates_away(lesson_page):
    page = lesson_page("html")
    page.get_by_role("button", name="Start").click()
    page.frame_locator("#frame").locator("#weather-part").wait_for()
    page.evaluate(HIDE)
    assert page.frames[-1].evaluate("document.readyState") != "loading"


@pytest.mark.parametrize("name", ["post", "before_sse"])
def test_a_page_aborts_a_fetch_that_it_could_not_resume(lesson_page, name):
    page = lesson_page(name)
    if name == "post":  # at its end, the page aborts it anyway
        long = dict.fromkeys(range(1000))
        page.locator("#body").fill(json.dumps(long))
    page.locator("#form button").first.click()
    expect(page.locator("#state")).to_contain_text("open")
    with page.expect_event("requestfailed"):  # the page aborted it
        page.evaluate(HIDE)


def test_the_wire_panel_aborts_a_fetch_that_it_could_not_resume(lesson_page):
    page = lesson_page("prices")
    page.locator("#wire summary").click()
    expect(page.locator("#wire pre")).to_contain_text("status 200")
    with page.expect_event("requestfailed"):
        page.evaluate(HIDE)
