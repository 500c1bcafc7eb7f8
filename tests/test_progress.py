import json
import os
import re
import signal
import time

import pytest
from conftest import COMMANDS, Client, Server, spoken, wait_until
from playwright.sync_api import Page, expect

import background
import broker
from checks import FOREIGN
from demos.progress import work
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event

PAUSE_SECONDS = 0.2
LOST = {"error": background.LOST}
STOPPED = {"error": "The job was stopped."}
DONE = "The task is finished."
WRONG_STEPS = "steps must be an integer, 1 to 1000."
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'


def post(server: Server, body: bytes, **headers: str) -> Client:
    headers = {"Content_Type": "application/json"} | headers
    return server.post("/jobs", body, **headers)


def begin(server: Server, steps: int) -> str:
    """Start a job and return its place."""
    with post(server, b'{"steps": %d}' % steps) as answer:
        assert answer.status == 202
        return answer.header("Location")


def delete(server: Server, place: str, **headers: str) -> Client:
    return Client(server.port, "DELETE", place, headers=headers)


def error(client: Client) -> tuple[int, str]:
    with client:
        assert client.header("Content-Type") == "application/json"
        body = json.loads(client.read())
    assert list(body) == ["error"]
    return client.status, body["error"]


def without_waiting(body: bytes) -> bytes:
    """Return an event stream without the silence of a slow machine."""
    return re.sub(rb"id: .*\nevent: waiting\ndata: .*\n\n", b"", body)


def said(events) -> list[tuple[str, int | dict]]:
    """Return each event's type, and how far it is or what it says."""
    pairs = []
    for event in events:
        data = json.loads(event.data or "{}")
        pairs.append((event.event, data.get("done", data)))
    return pairs


def until(client: Client, done: int) -> Event:
    """Read until so many steps are done; return the event that says it."""
    for event in parse_events(client.chunks()):
        if event.event == "progress" and json.loads(event.data)["done"] == done:
            return event
    raise AssertionError("the stream has ended")


# The task


def test_work_tells_each_step_and_the_end():
    naps = []
    events = work(2, naps.append)
    assert b"".join(event.encode() for event in events).decode() == (
        "event: progress\n"
        'data: {"done":0,"total":2,"message":"Step 1 of 2"}\n\n'
        "event: progress\n"
        'data: {"done":1,"total":2,"message":"Step 2 of 2"}\n\n'
        "event: finished\n"
        'data: {"done":2,"total":2,"message":"All done."}\n\n'
    )
    assert naps == [PAUSE_SECONDS] * 2


def test_post_answers_at_once_where_the_task_can_be_followed(server):
    begun = time.monotonic()
    with post(server, b'{"steps": 1000}') as answer:
        body = answer.read().decode()
        assert time.monotonic() - begun < 10
        assert answer.status == 202
        place = answer.header("Location")
        assert re.fullmatch(r"/jobs/[\w-]{16}", place)
        assert answer.header("Content-Type") == "text/plain"
        assert body == f"{server.url}{place}\n"
    delete(server, place).close()


def test_the_stream_is_exactly_these_bytes(server):
    place = begin(server, 2)
    with server.get(place, Last_Event_ID="0-0") as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        assert client.header("X-Accel-Buffering") == "no"
        body = without_waiting(spoken(client.read()))
    ids = re.findall(rb"(?m)^id: (\d+)-(\d+)$", body)
    assert ids == sorted(set(ids), key=lambda id: tuple(map(int, id)))
    assert re.sub(rb"(?m)^id: .*", b"id", body) == (
        b"id\nevent: started\ndata: \n\n"
        b"id\nevent: progress\n"
        b'data: {"done":0,"total":2,"message":"Step 1 of 2"}\n\n'
        b"id\nevent: progress\n"
        b'data: {"done":1,"total":2,"message":"Step 2 of 2"}\n\n'
        b"id\nevent: finished\n"
        b'data: {"done":2,"total":2,"message":"All done."}\n\n'
    )


def test_a_late_reader_gets_the_end_and_then_204(server):
    place = begin(server, 1)
    with server.get(place) as client:
        client.read()
    with server.get(place) as late:
        (end,) = parse_events(late.chunks())
    assert said([end]) == [("finished", 1)]
    with server.get(place, Last_Event_ID=end.id) as client:
        assert (client.status, client.read()) == (204, b"")


def test_a_reader_begins_where_the_task_is(server):
    place = begin(server, 1000)
    with server.get(place) as reader:
        until(reader, 3)
    with server.get(place) as late:
        (event, done), *_ = said([next(parse_events(late.chunks()))])
        assert event == "progress"
        assert done >= 3
    delete(server, place).close()


def test_a_delete_ends_the_task_and_another_changes_nothing(server):
    place = begin(server, 1000)
    with server.get(place) as reader:
        events = parse_events(reader.chunks())
        next(events)
        for _ in range(2):
            with delete(server, place) as answer:
                assert (answer.status, answer.read()) == (204, b"")
        assert said(events)[-1] == ("failed", STOPPED)


def test_an_unknown_id_is_404(server):
    sentence = "There is nothing with the id 'x' in jobs."
    assert error(server.get("/jobs/x")) == (404, sentence)
    assert error(delete(server, "/jobs/x")) == (404, sentence)


REFUSED = {
    "0": (400, WRONG_STEPS),
    "-1": (400, WRONG_STEPS),
    "1001": (400, WRONG_STEPS),
    "1.5": (400, WRONG_STEPS),
    "1.0": (400, WRONG_STEPS),
    "true": (400, WRONG_STEPS),
    '"5"': (400, WRONG_STEPS),
    "null": (400, WRONG_STEPS),
    "[5]": (400, WRONG_STEPS),
    "1e2": (400, WRONG_STEPS),
    "9" * 900: (400, WRONG_STEPS),
    "NaN": (400, NO_OBJECT),
    "5} {": (400, NO_OBJECT),
    "5" + " " * 1024: (413, "The body must have at most 1024 bytes."),
}


@pytest.mark.parametrize("steps", REFUSED, ids=lambda steps: steps[:6])
def test_other_steps_are_refused(server, steps):
    answer = post(server, f'{{"steps": {steps}}}'.encode())
    assert error(answer) == REFUSED[steps]


@pytest.mark.parametrize(
    ("body", "media_type", "refusal"),
    [
        (b"{}", "application/json", (400, WRONG_STEPS)),
        (b"5", "application/json", (400, NO_OBJECT)),
        (b"", "application/json", (400, NO_OBJECT)),
        (
            b"steps=5",
            "application/x-www-form-urlencoded",
            (415, "The body must have the Content-Type application/json."),
        ),
    ],
)
def test_other_bodies_are_refused(server, body, media_type, refusal):
    assert error(post(server, body, Content_Type=media_type)) == refusal


def test_no_page_of_another_site_starts_stops_or_follows_a_job(site):
    headers = {"Sec_Fetch_Site": "cross-site"}
    refused = (403, FOREIGN)
    assert error(post(site, b'{"steps": 1}', **headers)) == refused
    place = begin(site, 1)
    assert error(delete(site, place, **headers)) == refused
    assert error(site.get(place, **headers)) == refused
    with site.get(place) as client:
        assert client.header("Access-Control-Allow-Origin") is None
        assert said(parse_events(client.chunks()))[-1] == ("finished", 1)


def test_too_many_tasks_are_refused_until_one_has_ended(start):
    server = start("flask run")
    places = [begin(server, 1000) for _ in range(20)]
    with post(server, b'{"steps": 1}') as answer:
        assert answer.header("Retry-After") == "5"
        assert error(answer) == (
            503,
            "Too many jobs are running.",
        )
    delete(server, places[0]).close()

    def is_accepted():
        with post(server, b'{"steps": 1}') as answer:
            return answer.status == 202

    wait_until(is_accepted, 2)


# Processes that die


def kill(server: Server, *, master: bool = True) -> None:
    """Kill a server's processes as a crash would: none can say goodbye."""
    pattern = r"Booting worker with pid: (\d+)"
    pids = [re.search(pattern, one)[1] for one in server.logged(pattern)]
    for pid in [server.process.pid] * master + [int(pid) for pid in pids]:
        os.kill(pid, signal.SIGKILL)


def newest_id(place: str) -> str:
    return broker.newest(place.removeprefix("/").replace("/", ":")).id


def end_of(client: Client, deadline: float) -> Event:
    """Read to the end, which must come in time."""

    def chunks():
        for chunk in client.chunks():
            assert time.monotonic() < deadline, "it waits for ever"
            yield chunk

    *_, end = parse_events(chunks())
    return end


def test_readers_are_told_within_30_s_that_a_server_has_died(
    start, own_redis, monkeypatch
):
    """The one test that waits as long as it really takes."""
    monkeypatch.setattr(broker, "BROKER", RedisBroker(own_redis.url))
    died, other = (start("gunicorn", REDIS_URL=own_redis.url) for _ in "ab")
    first, second = begin(died, 1000), begin(died, 1000)
    with other.get(first) as reader, died.get(second) as leaver:
        until(reader, 2)
        until(leaver, 2)
        kill(died)
        deadline = time.monotonic() + 30
        # This one had all there was, and comes back to the other server.
        last = newest_id(second)
        with other.get(second, Last_Event_ID=last) as back:
            for client in (reader, back):
                assert said([end_of(client, deadline)]) == [("failed", LOST)]
    for place in (first, second):
        with other.get(place, Last_Event_ID=newest_id(place)) as client:
            assert client.status == 204


def test_readers_are_told_that_a_worker_has_died(start, own_redis, monkeypatch):
    monkeypatch.setattr(broker, "BROKER", RedisBroker(own_redis.url))
    options = {"REDIS_URL": own_redis.url, "FLASK_JOB_LOST_SECONDS": "2"}
    server = start("gunicorn", **options)
    place = begin(server, 1000)
    with server.get(place) as client:
        until(client, 2)
        kill(server, master=False)
    with server.get(place, Last_Event_ID=newest_id(place)) as back:
        end = end_of(back, time.monotonic() + 15)
        assert said([end]) == [("failed", LOST)]
    with server.get(place) as late:
        assert said(parse_events(late.chunks())) == [("failed", LOST)]


@pytest.mark.parametrize("command", COMMANDS.values())
def test_without_redis_who_comes_back_is_told_that_the_server_has_died(
    start, command
):
    server = start(command)
    place = begin(server, 1000)
    with server.get(place) as client:
        last = until(client, 2)
        kill(server)
    server = start(command, port=server.port)
    with server.get(place, Last_Event_ID=last.id) as client:
        (end,) = parse_events(client.chunks())
        assert said([end]) == [("failed", LOST)]
    with server.get(place, Last_Event_ID=end.id) as client:
        assert client.status == 204
    with server.get(place) as client:
        assert client.status == 404


def test_without_redis_no_task_starts_and_the_page_is_told(start, own_redis):
    server = start("flask run", REDIS_URL=own_redis.url)
    own_redis.stop()
    sentence = "Redis is not available. Try again in a few seconds."
    assert error(post(server, b'{"steps": 1}')) == (503, sentence)
    assert error(server.get("/jobs/x")) == (503, sentence)
    assert error(delete(server, "/jobs/x")) == (503, sentence)


# The page


def begin_on(page: Page, steps: int) -> None:
    page.get_by_label("Steps", exact=True).fill(str(steps))
    press(page, "Start")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def steps_done(page: Page) -> int:
    return page.locator("#bar").evaluate("bar => bar.value")


def wait_for_steps(page: Page, done: int) -> None:
    wait_until(lambda: steps_done(page) >= done)


def expect_end(page: Page, sentence: str) -> None:
    expect(page.locator("#end")).to_have_text(sentence)
    expect(page.locator("#state")).to_have_text("closed")
    assert page.evaluate("source.readyState") == 2  # CLOSED, for good


def test_page_shows_how_far_it_is_and_the_seconds_left(lesson_page):
    page = lesson_page("progress")
    bar = page.get_by_role("progressbar", name="Steps done")
    begin_on(page, 20)
    wait_for_steps(page, 10)
    bar, done, left, message = page.evaluate(
        """() => [[byId("bar").value, byId("bar").max],
            ...["done", "left", "message"].map((id) => byId(id).textContent)]"""
    )
    number = int(bar[0])
    assert bar == [number, 20]
    assert done == f"{number} of 20"
    assert message == f"Step {number + 1} of 20"
    seconds = (20 - number) * PAUSE_SECONDS
    assert seconds <= int(left) < seconds * 3
    press(page, "Stop")
    expect_end(page, STOPPED["error"])
    assert page.locator("#left").text_content() == "?"


def test_page_is_done_after_the_end_and_asks_no_more(lesson_page):
    page = lesson_page("progress")
    asked = []
    page.on("request", lambda one: asked.append((one.method, one.url)))
    begin_on(page, 2)
    expect_end(page, DONE)
    assert steps_done(page) == 2
    assert page.locator("#done").text_content() == "2 of 2"
    assert page.locator("#left").text_content() == "0"
    jobs = [method for method, url in asked if "/jobs" in url]
    assert jobs == ["POST", "GET"]
    page.reload()
    expect_end(page, DONE)
    assert steps_done(page) == 2


WATCH = """
window.shown = [];
addEventListener("DOMContentLoaded", () => {
  const done = document.querySelector("#done");
  new MutationObserver(() => shown.push(parseInt(done.textContent)))
    .observe(done, { childList: true });
});
"""


@pytest.mark.own_page
def test_page_goes_on_where_the_task_is(lesson_page):
    page = lesson_page("progress")
    page.context.add_init_script(WATCH)
    begin_on(page, 25)
    wait_for_steps(page, 3)
    page.reload()
    wait_until(lambda: page.evaluate("shown.length"))
    second = page.context.new_page()
    second.goto(page.url)
    press(page, "Leave")
    assert page.locator("#state").text_content() == "closed"
    left_at = steps_done(page)
    wait_for_steps(second, left_at + 3)
    assert steps_done(page) == left_at
    press(page, "Come back")
    expect_end(page, DONE)
    expect_end(second, DONE)
    for one in (page, second):
        shown = one.evaluate("shown")
        assert shown[0] >= 3
        assert shown == sorted(shown)
        assert shown[-1] == 25
    # Nothing that came while it was away is told again.
    back = page.evaluate("shown").index(left_at) + 1
    assert page.evaluate("shown")[back] >= left_at + 3


def test_page_says_what_was_refused(lesson_page):
    page = lesson_page("progress")
    with page.expect_event("console"):
        page.evaluate("byId('steps').value = 1001; start()")
    expect(page.locator("#end")).to_have_text(WRONG_STEPS)
    assert page.locator("#state").text_content() == "closed"
    with page.expect_event("console"):
        page.evaluate("location.hash = '/jobs/x'; follow()")
    expect_end(page, "The server knows no such task, or not now.")
    with page.expect_event("console"):
        press(page, "Stop")
    sentence = "There is nothing with the id 'x' in jobs."
    expect(page.locator("#end")).to_have_text(sentence)
    page.problems.clear()


def test_page_shows_that_the_server_has_died(start, page):
    server = start("flask run")
    page.goto(f"{server.url}/demos/progress")
    begin_on(page, 1000)
    wait_for_steps(page, 2)
    kill(server)
    expect(page.locator("#state")).to_have_text("reconnecting")
    server = start("flask run", port=server.port)
    expect_end(page, LOST["error"])
    page.problems.clear()
