import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS, Server, wait_until
from playwright.sync_api import Page, expect

import background
import broker
from demos import progress
from demos.progress import STEP_SECONDS, work
from event_source import parse_events
from sse import Event

LOST = {"error": background.LOST}
STOPPED = {"error": "The job was stopped."}
WRONG_STEPS = "steps must be an integer, 1 to 1000."
UNKNOWN = "There is nothing with the id 'x' in jobs."


def summary(events) -> list[tuple[str, int | dict]]:
    """Return each event's type, and the number of steps done or the data."""
    pairs = []
    for event in events:
        data = json.loads(event.data or "{}")
        pairs.append((event.event, data.get("done", data)))
    return pairs


def read_until_done(events, steps: int) -> Event:
    """Read until so many steps are done, and return that event."""
    for event in events:
        if summary([event]) == [("progress", steps)]:
            return event
    raise AssertionError("the stream ended too early")


def end_of(events) -> tuple[str, int | dict]:
    *_, end = events
    return summary([end])[0]


# The job


def test_work_yields_every_step_and_a_final_event():
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
    assert naps == [STEP_SECONDS] * 2


@pytest.fixture
def post(client, monkeypatch):
    """Return a function that posts to /jobs. End the jobs after the test."""
    monkeypatch.setattr(progress, "STEP_SECONDS", 0.05)
    monkeypatch.setattr(background, "PULSE_SECONDS", 60)  # no `waiting`
    paths = []

    def post(body: bytes, media_type="application/json", **headers):
        answer = client.post(
            "/jobs", data=body, content_type=media_type, headers=headers
        )
        paths.extend(filter(None, [answer.headers.get("Location")]))
        return answer

    yield post
    for path in paths:
        client.delete(path)
    wait_until(lambda: not background._interrupts)


def test_post_immediately_returns_the_url_of_the_job(post):
    answer = post(b'{"steps": 1000}')
    path = answer.headers["Location"]
    assert answer.status_code == 202
    assert re.fullmatch(r"/jobs/[\w-]{16}", path)
    assert answer.headers["Content-Type"] == "text/plain"
    assert answer.text == f"http://localhost{path}\n"


def test_clients_start_at_the_newest_event_and_a_delete_ends_the_job(
    client, post
):
    path = post(b'{"steps": 1000}').headers["Location"]
    with client.get(path) as first, client.get(path) as second:
        followers = [parse_events(one.response) for one in (first, second)]
        read_until_done(followers[0], 3)
        with client.get(path) as late:
            ((event, done),) = summary([next(parse_events(late.response))])
            assert event == "progress"
            assert done >= 3
        for _ in range(2):  # the second changes nothing
            answer = client.delete(path)
            assert (answer.status_code, answer.data) == (204, b"")
        for follower in followers:
            assert end_of(follower) == ("failed", STOPPED)
    (end,) = parse_events([client.get(path).data])
    again = client.get(path, headers={"Last-Event-ID": end.id})
    assert again.status_code == 204


def test_an_unknown_id_is_404(client):
    for answer in client.get("/jobs/x"), client.delete("/jobs/x"):
        assert (answer.status_code, answer.json) == (404, {"error": UNKNOWN})


def test_other_bodies_are_refused(post):
    wrong = (b"0", b"1001", b"1.0", b"true", b'"5"', b"null", b"1" * 900)
    for body, media_type, status, sentence in [
        *((b'{"steps": %b}' % one, "json", 400, WRONG_STEPS) for one in wrong),
        (b"{}", "json", 400, WRONG_STEPS),
        (
            b'{"steps": 5' + b" " * 1024 + b"}",
            "json",
            413,
            "The body must have at most 1024 bytes.",
        ),
    ]:
        answer = post(body, f"application/{media_type}")
        assert (answer.status_code, answer.json) == (
            status,
            {"error": sentence},
        ), body


# Processes that end


def begin(server: Server) -> str:
    """Start a long job and return its path."""
    headers = {"Content_Type": "application/json"}
    with server.post("/jobs", b'{"steps": 1000}', **headers) as answer:
        assert answer.status == 202
        return answer.header("Location")


def newest(path: str) -> Event:
    return broker.newest(path.removeprefix("/").replace("/", ":"))


def wait_until_lost(path: str) -> None:
    wait_until(lambda: newest(path).event == "failed")
    assert json.loads(newest(path).data) == LOST


def test_clients_get_an_end_after_a_server_was_killed(
    start, client, in_redis, monkeypatch
):
    monkeypatch.setattr(background, "LOST_SECONDS", 1)
    dying = start("flask run", REDIS_URL=in_redis)
    first, second = begin(dying), begin(dying)
    with client.get(first) as follower, dying.get(second) as disconnected:
        events = parse_events(follower.response)
        read_until_done(events, 2)
        read_until_done(parse_events(disconnected.chunks()), 2)
        dying.process.kill()
        dying.process.wait()
        # This client has received every event, and reconnects to this process.
        last = {"Last-Event-ID": newest(second).id}
        with client.get(second, headers=last) as back:
            wait_until_lost(second)
            assert end_of(parse_events(back.response)) == ("failed", LOST)
        assert end_of(events) == ("failed", LOST)


STOPS = {
    "gunicorn -w 1": ("reload", "Ctrl-C"),
    "flask run": ("Ctrl-C",),
}


def children(pid: int) -> set[str]:
    try:
        path = Path(f"/proc/{pid}/task/{pid}/children")
        return set(path.read_text().split())
    except OSError:  # it has ended
        return set()


def signal_server(server: Server, stop: str) -> None:
    """Send the signal of `stop`. Ctrl-C reaches all processes, as usual."""
    pid = server.process.pid
    if stop == "reload":
        os.kill(pid, signal.SIGHUP)
        return
    for one in (pid, *children(pid)):
        os.kill(int(one), signal.SIGINT)


@pytest.mark.parametrize("command", STOPS)
def test_a_server_that_stops_ends_every_job(start, in_redis, command):
    shared = {"REDIS_URL": in_redis, "FLASK_JOB_LOST_SECONDS": "600"}
    stopping = start(command, **shared)
    pid = stopping.process.pid
    for stop in STOPS[command]:
        paths = [begin(stopping) for _ in range(6)]
        old = children(pid)
        signal_server(stopping, stop)
        for path in paths:
            wait_until_lost(path)
        # Ctrl-C makes a worker that is already exiting log a traceback.
        wait_until(lambda old=old: not old & children(pid))
    stopping.process.wait(PATIENCE_SECONDS)
    assert not stopping.logged("Traceback"), "\n".join(stopping.log)


# The page


@pytest.fixture
def lesson(live, page, post) -> Page:
    page.goto(f"{live.url}/demos/progress")
    return page


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def start_job(page: Page, steps: int) -> None:
    page.get_by_label("Steps", exact=True).fill(str(steps))
    press(page, "Start")


def expect_end(page: Page, sentence: str) -> None:
    expect(page.locator("#message")).to_have_text(sentence)
    expect(page.locator("#state")).to_have_text("closed")


def test_all_windows_follow_a_job_from_its_newest_event_until_it_is_stopped(
    lesson, monkeypatch
):
    due = threading.Semaphore(0)

    def held(steps):
        due.acquire(timeout=PATIENCE_SECONDS)
        yield from work(steps, lambda _: due.acquire(timeout=PATIENCE_SECONDS))

    def wait_for_silence():
        path = lesson.evaluate("location.hash.slice(1)")
        seen = newest(path).id
        wait_until(lambda: newest(path).id != seen)

    monkeypatch.setattr(progress, "work", held)
    monkeypatch.setattr(background, "PULSE_SECONDS", 0.05)
    message = lesson.locator("#message")
    start_job(lesson, 1000)
    expect(lesson.locator("#state")).to_have_text("open")
    wait_for_silence()
    due.release(3)
    expect(message).to_have_text("Step 3 of 1000")
    assert lesson.evaluate("[bar.value, bar.max]") == [2, 1000]
    wait_for_silence()
    lesson.reload()
    expect(message).to_have_text("Step 3 of 1000")
    with lesson.expect_popup() as opened:
        lesson.get_by_role("link", name="Open a second window").click()
    second = opened.value
    due.release()
    expect(second.locator("#message")).to_have_text("Step 4 of 1000")
    press(lesson, "Stop")
    for window in (lesson, second):
        expect_end(window, STOPPED["error"])
    due.release(1000)


def test_page_shows_the_end_or_why_a_request_was_refused(lesson):
    requests = []
    lesson.on("request", lambda one: requests.append((one.method, one.url)))
    start_job(lesson, 2)
    expect_end(lesson, "All done.")
    assert lesson.evaluate("bar.value") == 2
    jobs = [method for method, url in requests if "/jobs" in url]
    assert jobs == ["POST", "GET"]  # it did not reconnect
    lesson.reload()
    expect_end(lesson, "All done.")
    assert lesson.evaluate("bar.value") == 2

    message = lesson.locator("#message")
    lesson.evaluate("form.noValidate = true")
    start_job(lesson, 1001)
    expect(message).to_have_text(WRONG_STEPS)
    lesson.evaluate("location.hash = '/jobs/x'")
    press(lesson, "Stop")
    expect(message).to_have_text(UNKNOWN)
    lesson.reload()
    expect(message).to_have_text("There is no such job here.")
    lesson.expected = "Failed to load resource"
