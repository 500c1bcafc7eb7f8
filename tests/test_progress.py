import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import (
    COMMANDS,
    Client,
    Server,
    free_port,
    wait_until,
    without_comments,
)
from playwright.sync_api import Page, expect

import background
import broker
from checks import FOREIGN
from demos.progress import STEP_SECONDS, work
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event

LOST = {"error": background.LOST}
STOPPED = {"error": "The job was stopped."}
DONE = "The job has finished."
WRONG_STEPS = "steps must be an integer, 1 to 1000."
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
UNKNOWN = "There is nothing with the id 'x' in jobs."


def begin(server: Server, steps: int) -> str:
    """Start a job and return its path."""
    headers = {"Content_Type": "application/json"}
    with server.post("/jobs", b'{"steps": %d}' % steps, **headers) as answer:
        assert answer.status == 202
        return answer.header("Location")


def delete(server: Server, path: str) -> tuple[int, bytes]:
    with Client(server.port, "DELETE", path) as answer:
        return answer.status, answer.read()


def without_waiting(body: bytes) -> bytes:
    """Return an event stream without the `waiting` events of slow machines."""
    return re.sub(rb"id: .*\nevent: waiting\ndata: .*\n\n", b"", body)


def summary(events) -> list[tuple[str, int | dict]]:
    """Return each event's type, and the number of steps done or the data."""
    pairs = []
    for event in events:
        data = json.loads(event.data or "{}")
        pairs.append((event.event, data.get("done", data)))
    return pairs


def read_until_done(client: Client, steps: int) -> Event:
    """Read until so many steps are done, and return that event."""
    for event in parse_events(client.chunks()):
        if summary([event]) == [("progress", steps)]:
            return event
    raise AssertionError("the stream ended too early")


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


def test_the_stream_is_exactly_these_bytes(server):
    path = begin(server, 2)
    with server.get(path, Last_Event_ID="0-0") as client:
        assert client.status == 200
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        assert client.header("X-Accel-Buffering") == "no"
        assert client.header("Access-Control-Allow-Origin") is None
        body = without_waiting(without_comments(client.read()))
    *ids, end = re.findall(rb"(?m)^id: (?:(\d+)-(\d+)|end)$", body)
    assert end == (b"", b"")
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


def test_clients_start_at_the_newest_event_and_a_delete_ends_the_job(server):
    path = begin(server, 1000)
    with server.get(path) as follower, server.get(path) as other:
        read_until_done(follower, 3)
        with server.get(path) as late:
            ((event, done),) = summary([next(parse_events(late.chunks()))])
            assert event == "progress"
            assert done >= 3
        for _ in range(2):  # the second changes nothing
            assert delete(server, path) == (204, b"")
        for client in (follower, other):
            *_, end = parse_events(client.chunks())
            assert summary([end]) == [("failed", STOPPED)]


@pytest.fixture
def post(client):
    """Return a function that posts to /jobs. End the jobs after the test."""
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


def test_a_late_client_gets_the_end_and_then_204(client, post):
    path = post(b'{"steps": 1}').headers["Location"]
    client.get(path, headers={"Last-Event-ID": "0-0"}).get_data()
    (end,) = parse_events([client.get(path).data])
    assert summary([end]) == [("finished", 1)]
    again = client.get(path, headers={"Last-Event-ID": end.id})
    assert (again.status_code, again.data) == (204, b"")


def test_an_unknown_id_is_404(client):
    for answer in client.get("/jobs/x"), client.delete("/jobs/x"):
        assert (answer.status_code, answer.json) == (404, {"error": UNKNOWN})


WRONG = (
    *("0", "-1", "1001", "1.5", "1.0", "true", '"5"', "null", "[5]", "1e2"),
    "9" * 900,
)


def test_other_bodies_are_refused(post):
    for body, media_type, status, sentence in [
        *[
            (b'{"steps": %b}' % steps.encode(), "json", 400, WRONG_STEPS)
            for steps in WRONG
        ],
        (b"{}", "json", 400, WRONG_STEPS),
        (b"5", "json", 400, NO_OBJECT),
        (b"", "json", 400, NO_OBJECT),
        (b'{"steps": NaN}', "json", 400, NO_OBJECT),
        (b'{"steps": 5} {', "json", 400, NO_OBJECT),
        (
            b'{"steps": 5' + b" " * 1024 + b"}",
            "json",
            413,
            "The body must have at most 1024 bytes.",
        ),
        (
            b"steps=5",
            "x-www-form-urlencoded",
            415,
            "The body must have the Content-Type application/json.",
        ),
    ]:
        answer = post(body, f"application/{media_type}")
        assert (answer.status_code, answer.json) == (
            status,
            {"error": sentence},
        ), body


def test_no_page_of_another_site_starts_stops_or_follows_a_job(client, post):
    foreign = {"Sec-Fetch-Site": "cross-site"}
    path = post(b'{"steps": 1}').headers["Location"]
    for answer in (
        post(b'{"steps": 1}', **foreign),
        client.delete(path, headers=foreign),
        client.get(path, headers=foreign),
    ):
        assert (answer.status_code, answer.json) == (403, {"error": FOREIGN})
    *_, end = parse_events([client.get(path).data])
    assert summary([end]) == [("finished", 1)]


def test_too_many_jobs_are_refused_until_one_has_ended(
    client, post, monkeypatch
):
    monkeypatch.setattr(background, "MAX_AT_ONCE", 2)
    paths = [post(b'{"steps": 1000}').headers["Location"] for _ in range(2)]
    refused = post(b'{"steps": 1}')
    assert refused.status_code == 503
    assert 2 <= int(refused.headers["Retry-After"]) <= 10
    assert refused.json == {"error": "Too many jobs are running."}
    client.delete(paths[0])
    wait_until(lambda: post(b'{"steps": 1}').status_code == 202)


def test_while_redis_is_down_no_job_starts_and_clients_get_503(
    client, post, monkeypatch
):
    url = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setattr(broker, "BROKER", RedisBroker(url))
    sentence = "Redis is not available. Try again in a few seconds."
    for answer in post(b'{"steps": 1}'), client.delete("/jobs/x"):
        assert (answer.status_code, answer.json) == (503, {"error": sentence})
    assert client.get("/jobs/x").data.startswith(b"retry: ")  # so it reconnects


# Processes that die


def kill(server: Server, *, master: bool = True) -> None:
    """Kill a server's processes like a crash, so that none can clean up."""
    pattern = r"Booting worker with pid: (\d+)"
    pids = [re.search(pattern, one)[1] for one in server.logged(pattern)]
    for pid in [server.process.pid] * master + [int(pid) for pid in pids]:
        os.kill(pid, signal.SIGKILL)


def newest_id(path: str) -> str:
    return broker.newest(path.removeprefix("/").replace("/", ":")).id


def end_of(client: Client) -> tuple[str, int | dict]:
    *_, end = parse_events(client.chunks())
    return summary([end])[0]


def test_clients_get_an_end_after_a_server_or_a_worker_has_died(
    start, own_redis, monkeypatch
):
    monkeypatch.setattr(broker, "BROKER", RedisBroker(own_redis.url))
    shared = {"REDIS_URL": own_redis.url, "FLASK_JOB_LOST_SECONDS": "2"}
    dying, other = (start(command, **shared) for command in COMMANDS.values())
    first, second = begin(dying, 1000), begin(dying, 1000)
    with other.get(first) as follower, dying.get(second) as disconnected:
        read_until_done(follower, 2)
        read_until_done(disconnected, 2)
        kill(dying)
        killed_at = time.monotonic()
        # This client had every event, and reconnects to the other server.
        last = newest_id(second)
        with other.get(second, Last_Event_ID=last) as back:
            assert end_of(back) == end_of(follower) == ("failed", LOST)
    assert time.monotonic() - killed_at > 2
    for path in (first, second):
        with other.get(path, Last_Event_ID="end") as client:
            assert client.status == 204

    path = begin(other, 1000)
    with other.get(path) as client:
        read_until_done(client, 2)
        kill(other, master=False)
    with other.get(path, Last_Event_ID=newest_id(path)) as back:
        assert end_of(back) == ("failed", LOST)
    with other.get(path) as late:
        assert summary(parse_events(late.chunks())) == [("failed", LOST)]


def test_without_redis_a_client_gets_an_end_when_the_server_is_back(start):
    server = start("flask run")
    path = begin(server, 1000)
    with server.get(path) as client:
        last = read_until_done(client, 2)
        kill(server)
    server = start("flask run", port=server.port)
    with server.get(path, Last_Event_ID=last.id) as client:
        (end,) = parse_events(client.chunks())
        assert summary([end]) == [("failed", LOST)]
    with server.get(path, Last_Event_ID=end.id) as client:
        assert client.status == 204
    with server.get(path) as client:
        assert client.status == 404


STOPS = {
    "gunicorn -w 2": (signal.SIGHUP, signal.SIGTERM),
    "flask run": (signal.SIGINT,),
}


@pytest.mark.parametrize("command", STOPS)
def test_a_server_that_stops_ends_its_jobs(
    start, client, redis_server, monkeypatch, command
):
    shared = {"REDIS_URL": redis_server.url, "FLASK_JOB_LOST_SECONDS": "600"}
    stopping = start(command, **shared)
    monkeypatch.setattr(broker, "BROKER", RedisBroker(redis_server.url))
    for number in STOPS[command]:
        path = begin(stopping, 1000)
        with client.get(path) as follower:
            stopping.process.send_signal(number)
            *_, end = parse_events(follower.response)
        assert summary([end]) == [("failed", LOST)]


def test_ctrl_c_in_gunicorn_ends_every_job(
    start, client, redis_server, monkeypatch
):
    shared = {"REDIS_URL": redis_server.url, "FLASK_JOB_LOST_SECONDS": "600"}
    stopping = start("gunicorn -w 2", **shared)
    monkeypatch.setattr(broker, "BROKER", RedisBroker(redis_server.url))
    paths = [begin(stopping, 1000) for _ in range(20)]
    master = stopping.process.pid
    children = Path(f"/proc/{master}/task/{master}/children").read_text()
    for pid in (master, *children.split()):  # as a terminal does
        os.kill(int(pid), signal.SIGINT)
    for path in paths:
        with client.get(path) as follower:
            *_, end = parse_events(follower.response)
        assert summary([end]) == [("failed", LOST)]
    stopping.process.wait(20)
    assert stopping.logged("Traceback") == []


# The page


def start_job(page: Page, steps: int) -> None:
    page.get_by_label("Steps", exact=True).fill(str(steps))
    press(page, "Start")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def steps_done(page: Page) -> int:
    return page.locator("#bar").evaluate("bar => bar.value")


def wait_for_steps(page: Page, done: int) -> None:
    wait_until(lambda: steps_done(page) >= done)


def expect_end(page: Page, sentence: str) -> None:
    expect(page.locator("#message")).to_have_text(sentence)
    expect(page.locator("#state")).to_have_text("closed")


def test_page_shows_the_steps_done_and_a_job_that_was_stopped(lesson_page):
    page = lesson_page("progress")
    start_job(page, 20)
    wait_for_steps(page, 3)
    value, most = page.evaluate("[bar.value, bar.max]")
    assert value >= 3
    assert most == 20
    message = page.locator("#message").text_content()
    assert re.fullmatch(r"Step \d+ of 20", message)
    press(page, "Stop")
    expect_end(page, STOPPED["error"])


def test_page_shows_the_end_and_does_not_reconnect(lesson_page):
    page = lesson_page("progress")
    requests = []
    page.on("request", lambda one: requests.append((one.method, one.url)))
    start_job(page, 2)
    expect_end(page, "All done.")
    assert steps_done(page) == 2
    jobs = [method for method, url in requests if "/jobs" in url]
    assert jobs == ["POST", "GET"]
    page.reload()
    expect_end(page, "All done.")
    assert steps_done(page) == 2


def test_a_reload_and_a_second_window_continue_at_the_newest_event(lesson_page):
    page = lesson_page("progress")
    start_job(page, 25)
    wait_for_steps(page, 3)
    page.reload()
    wait_for_steps(page, 3)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open a second window").click()
    second = opened.value
    wait_for_steps(second, 4)
    for window in (page, second):
        expect_end(window, "All done.")
    second.close()


def test_page_shows_why_a_request_was_refused(lesson_page):
    page = lesson_page("progress")
    message = page.locator("#message")
    page.evaluate("steps.value = 1001; form.noValidate = true")
    press(page, "Start")
    expect(message).to_have_text(WRONG_STEPS)
    page.evaluate("location.hash = '/jobs/x'")
    press(page, "Stop")
    expect(message).to_have_text(UNKNOWN)
    page.reload()
    expect(message).to_have_text("There is no such job here.")
    page.problems.clear()


def test_page_shows_that_the_server_has_died(start, page):
    server = start("flask run")
    page.goto(f"{server.url}/demos/progress")
    start_job(page, 1000)
    wait_for_steps(page, 2)
    kill(server)
    expect(page.locator("#state")).to_have_text("reconnecting")
    server = start("flask run", port=server.port)
    expect_end(page, LOST["error"])
    page.problems.clear()
