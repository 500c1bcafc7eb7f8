"""The state, timeline and bytes that every lesson's page shows."""

import re
from contextlib import closing

from conftest import wait_until
from playwright.sync_api import expect

MOST_ELEMENTS = 1000
# Dispatch as many events as the fastest stream sends in a second.
FLOOD = """
() => {
  const source = new EventSource("/sse?interval=10");
  source.onmessage = () => {};
  for (let n = 0; n < 10_000; n += 1) {
    const event = new MessageEvent("message", { data: "x", lastEventId: n });
    source.dispatchEvent(event);
  }
  return observed.lanes.flatMap((lane) => lane.connections)
    .flatMap((connection) => connection.marks).length;
}
"""


# Dispatch three events at the same moment.
TRIPLE = """
() => {
  const source = new EventSource("/sse?interval=10");
  const now = performance.now();
  performance.now = () => now;
  for (let n = 0; n < 3; n += 1) {
    source.dispatchEvent(new MessageEvent("message"));
  }
  delete performance.now;
}
"""
OPEN_FIVE = """
() => {
  for (let n = 0; n < 5; n += 1) new EventSource("/sse?interval=10");
}
"""
HAVE_ENDED = """
() => observed.lanes.every(({ connections }) => connections.at(-1).ended)
"""


def press(page, name):
    page.get_by_role("button", name=name, exact=True).first.click()


def state(page):
    return page.locator("#state")


def timeline(page, text):
    return page.locator("#timeline text").filter(has_text=re.compile(text))


def test_shows_connect_events_drop_attempts_reconnect_and_failure(lesson_page):
    page, requests = lesson_page("reconnect"), []

    def refuse_two_attempts_and_hold_the_third(route) -> None:
        if route.request.resource_type == "eventsource":
            requests.append(route)
        if route in requests[1:3]:
            route.abort()
        elif route not in requests[3:4]:
            route.continue_()

    page.route("**/stream/reconnect?*", refuse_two_attempts_and_hold_the_third)
    expect(state(page)).to_have_text("closed")
    page.get_by_label("drop_after").fill("1")
    press(page, "Start")
    expect(state(page)).to_have_text("open")
    timeline(page, "^1$").wait_for()
    expect(page.locator("#timeline circle.mark")).to_have_count(1)
    expect(page.locator("#timeline rect.bar")).to_have_count(1)

    expect(state(page)).to_have_text("reconnecting")
    timeline(page, r"^connection lost for \d+\.\d s$").wait_for()
    page.locator("#timeline line.waiting").wait_for(state="attached")
    # The connection is lost, and then two attempts fail.
    expect(page.locator("#timeline path.cross")).to_have_count(3)
    wait_until(lambda: requests[3:] or page.wait_for_timeout(10))
    requests[3].continue_()
    timeline(page, r"^reconnected, Last-Event-ID: 1$").wait_for()
    expect(page.locator("#timeline rect.bar").nth(1)).to_be_attached()
    timeline(page, "^2$").wait_for()

    sentences = page.locator("#sentences")
    expect(sentences).to_contain_text("Connection lost. Events received: 1.")
    expect(sentences).to_contain_text("Reconnected with Last-Event-ID 1.")
    press(page, "Stop")
    expect(state(page)).to_have_text("closed")
    expect(page.locator("#timeline line.end").first).to_be_attached()

    page.evaluate("() => { new EventSource('/demos/nope'); }")
    expect(state(page)).to_have_text("failed")
    timeline(page, "^failed$").wait_for()
    expect(sentences).to_contain_text("The connection failed for good.")
    page.expected = "Failed to load resource"


def test_names_event_types_and_shows_why_a_stream_was_refused(lesson_page):
    page = lesson_page("thinking")
    press(page, "Ask")
    timeline(page, "^thinking$").wait_for()
    expect(page.locator("#timeline rect.mark").first).to_be_visible()
    # Messages, which have no event type, are circles.
    expect(page.locator("#timeline circle.mark")).to_have_count(0)
    timeline(page, "^answer$").wait_for()

    page.get_by_label("Question").fill("")
    press(page, "Ask")
    wire = page.locator("#wire .wire")
    expect(wire).to_contain_text("status 400, application/json")
    expect(wire).to_contain_text("question must be text of 1 to 200")
    page.expected = "Failed to load resource"


def test_shows_what_fetch_reads(lesson_page):
    page = lesson_page("post")
    press(page, "Send")
    expect(state(page)).to_have_text("open")
    page.locator("#timeline rect.mark").first.wait_for()
    expect(state(page)).to_have_text("closed")


def test_shows_the_parts_of_a_page_in_a_frame(lesson_page):
    page = lesson_page("html")
    press(page, "Start")
    expect(state(page)).to_have_text("open")
    timeline(page, "^part$").wait_for()
    expect(state(page)).to_have_text("closed")


def test_shows_polls_long_polls_a_socket_and_a_stream(lesson_page):
    page = lesson_page("before_sse")
    press(page, "Start")
    for path in ("/poll", "/long-poll", "/socket", "/stream/before_sse"):
        timeline(page, f"^GET {path}$").wait_for()
    press(page, "Stop")
    page.wait_for_function(HAVE_ENDED)


def test_many_events_in_a_short_time_share_marks(lesson_page):
    page = lesson_page("clock")
    page.evaluate(TRIPLE)
    timeline(page, r"^×\d$").wait_for()
    assert page.evaluate(FLOOD) < 100
    expect(page.locator("#timeline .bar")).to_have_count(2)
    count = page.locator("#timeline *").count()
    assert count < MOST_ELEMENTS


def test_warns_with_a_number_when_no_connection_is_left(lesson_page):
    page = lesson_page("notifications")
    page.evaluate(OPEN_FIVE)
    expect(state(page)).to_have_text("5 open")
    with closing(page.context.new_page()) as other:
        other.goto(page.url.replace("notifications", "six_connections"))
        press(other, "Start")
        expect(state(other)).to_have_text("1 open, 7 connecting")
        words = "No connection is left: 6 streams are open in this browser"
        expect(other.locator("#crowd")).to_contain_text(words)
        press(page, "Send")
        expect(page.locator("#crowd")).to_contain_text(words)
        press(other, "Stop")
        expect(page.locator("#crowd")).to_have_text("")


def test_the_wire_panel_follows_the_page(lesson_page):
    page = lesson_page("numbers")
    wire = page.locator("#wire .wire")
    page.get_by_label("Interval in seconds").fill("0.2")
    press(page, "Start")
    expect(wire).to_contain_text("GET /real-time-updates?interval=0.2")
    running = page.locator(".Server .line.runs")
    expect(running).to_contain_text("yield Event(")
    number = running.get_attribute("data-number")
    expect(wire).to_contain_text(f"s, line {number}\nid: 1\\n\ndata: ")
    requests = []
    page.on("request", lambda request: requests.append(request))
    press(page, "Cut the connection")
    expect(wire).to_contain_text("the response has ended")
    expect(wire).to_contain_text("Last-Event-ID: ")
    fetched = [one.headers for one in requests if one.resource_type == "fetch"]
    assert any("last-event-id" in headers for headers in fetched)
    press(page, "Stop")
