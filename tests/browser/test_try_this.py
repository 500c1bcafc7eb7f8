"""Try what each lesson suggests, and check what it promises."""

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from conftest import NAMES, PROJECT, Server, wait_until
from playwright.sync_api import Error, Page, expect

from background import LOST
from demos import LESSONS
from website.pages import texts

TRIED: dict[str, tuple[str, ...]] = {}


def tries(name: str, *words: str) -> Callable:
    """Mark the test of what a lesson suggests, with words from its text."""
    TRIED[name] = words
    return lambda test: test


class ReloadingServer(Server):
    """A server that runs a copy of the project, and restarts on a change."""

    def __init__(self, folder: Path):
        for path in filter(Path.is_file, PROJECT.iterdir()):
            shutil.copy2(path, folder)
        for name in ("demos", "website", "templates", "static"):
            shutil.copytree(PROJECT / name, folder / name)
        self.folder = folder
        # What the programs of `console` print is buffered, as usual.
        super().__init__(
            "flask run --reload", folder=folder, PYTHONUNBUFFERED=""
        )

    def change(self, name: str, old: str, new: str) -> None:
        """Change one place in a lesson's code, and wait for the restart."""
        path = self.folder / "demos" / f"{name}.py"
        docstring, code = path.read_text("utf-8").split('"""\n\n', 1)
        assert code.count(old) == 1
        starts = len(self.logged("Restarting with"))
        code = code.replace(old, new)
        path.write_text(f'{docstring}"""\n\n{code}', "utf-8")
        wait_until(lambda: len(self.logged("Restarting with")) > starts)
        wait_until(self._is_up)


@pytest.fixture(scope="module")
def reloading(tmp_path_factory) -> Iterator[ReloadingServer]:
    """A server for all tests, which each change only their own lesson."""
    server = ReloadingServer(tmp_path_factory.mktemp("project"))
    yield server
    server.stop()
    with socket.create_server(("127.0.0.1", server.port)):
        pass  # because its child process has closed the port, too


@pytest.fixture
def reloading_page(page, reloading):
    """Return a function that opens a lesson whose code can be changed."""

    def open_lesson(name: str) -> Page:
        page.goto(f"{reloading.url}/demos/{name}")
        return page

    return open_lesson


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def state(page: Page):
    return page.locator("#state")


@pytest.fixture
def events_of(page) -> Iterator[Callable[[Page], list[dict]]]:
    """Return a function that returns the growing list of a page's events."""
    sessions = []

    def events_of(page: Page) -> list[dict]:
        events = []
        session = page.context.new_cdp_session(page)
        session.on(
            "Network.eventSourceMessageReceived",
            lambda event: events.append(event),
        )
        session.send("Network.enable")
        sessions.append(session)
        return events

    yield events_of
    for session in sessions:
        with suppress(Error):  # its page has been closed
            session.detach()


def wait_in(page: Page, condition: Callable[[], object]) -> None:
    """Wait for a condition, while the page's events keep arriving."""
    wait_until(lambda: condition() or page.wait_for_timeout(10))


def send_wire(page: Page, path: str, body: str | None = None) -> None:
    wire = page.locator("#wire")
    if wire.get_attribute("open") is None:
        wire.locator("summary").click()
    wire.locator("[name=path]").fill(path)
    if body is not None:
        wire.locator("[name=body]").fill(body)
    wire.get_by_role("button", name="Send").click()


def wire_row(page: Page, text: str):
    row = page.locator("#wire pre > div").filter(has_text=text)
    expect(row).to_have_count(1)
    return row


def wire_seconds(page: Page, text: str) -> float:
    """Return when the bytes with this text arrived, in seconds."""
    return float(wire_row(page, text).inner_text().partition(" s,")[0])


def test_every_suggestion_of_a_lesson_has_a_test():
    assert set(TRIED) == set(NAMES)
    for name, words in TRIED.items():
        attempt = texts(LESSONS[name]).attempt
        assert [one for one in words if one not in attempt] == [], name


@tries("hello", "`PAUSE_SECONDS = 0.7` to 2", "two seconds apart")
def test_events_come_two_seconds_apart(reloading, reloading_page, events_of):
    reloading.change("hello", "PAUSE_SECONDS = 0.7", "PAUSE_SECONDS = 2")
    page = reloading_page("hello")
    events = events_of(page)
    press(page, "Start")
    wait_in(page, lambda: len(events) == 2)
    first, second = (event["timestamp"] for event in events)
    assert 1.5 < second - first < 5


@tries("numbers", "change `choose(100)` to `choose(10)`", "numbers below 10")
def test_ids_continue_with_smaller_numbers(
    reloading, reloading_page, events_of
):
    page = reloading_page("numbers")
    events = events_of(page)
    page.get_by_label("Interval in seconds").fill("0.1")
    press(page, "Start")

    def numbers() -> list[int]:
        return [json.loads(event["data"])["number"] for event in events]

    wait_in(page, lambda: any(number >= 10 for number in numbers()))
    reloading.change("numbers", "choose(100)", "choose(10)")
    wait_in(page, lambda: all(number < 10 for number in numbers()[-15:]))
    ids = [int(event["eventId"]) for event in events]
    assert ids == list(range(1, len(ids) + 1))
    page.problems.clear()


@tries(
    "clock",
    "set the interval to 2",
    "two seconds before",
    "the tick count twice",
)
def test_it_opens_before_the_first_tick_and_cleans_up_at_the_second(
    start, page
):
    server = start("flask run")
    page.goto(f"{server.url}/demos/clock")
    page.get_by_label("Interval in seconds").fill("2")
    press(page, "Start")
    expect(state(page)).to_have_text("open")
    opened = time.monotonic()
    expect(page.locator("#time")).to_contain_text("The time is")
    ticked = time.monotonic()
    assert ticked - opened > 0.5
    press(page, "Stop")
    wait_until(lambda: server.logged("clock: closed after 2 ticks"))


@tries(
    "thinking",
    "save `demos/thinking.py` while the server thinks",
    "no thought is lost or repeated",
    "only the Wire panel shows why",
)
def test_thoughts_resume_and_the_wire_shows_why_a_question_is_refused(
    reloading, reloading_page, events_of
):
    page = reloading_page("thinking")
    events = events_of(page)
    press(page, "Ask")
    wait_in(page, lambda: events)
    (reloading.folder / "demos" / "thinking.py").touch()
    expect(page.locator("#answer")).to_contain_text("is 42.")
    assert [event["eventId"] for event in events] == ["1", "2", "3", "4", "5"]
    page.get_by_label("Question").fill("")
    press(page, "Ask")
    expect(state(page)).to_have_text("failed")
    sentence = "question must be text of 1 to 200 characters."
    assert sentence not in page.locator(".live").text_content()
    expect(page.locator("#wire .wire")).to_contain_text(sentence)
    page.problems.clear()


@tries("batch", "messages a second to 10000", "sends ten events a second")
def test_ten_events_carry_as_many_messages_as_ten_thousand(lesson_page):
    page = lesson_page("batch")
    page.get_by_label("Messages a second").fill("10000")
    press(page, "Start")

    def row(name: str) -> list[int]:
        cells = page.get_by_role("row", name=name).locator("td")
        texts = cells.all_text_contents()
        return [int(text.replace(",", "")) for text in texts]

    def ten_carry_as_much() -> bool:
        batched, each = row("events")
        messages, _ = row("messages")
        return messages > 2000 and 0 < batched <= 10 and each > 200 * batched

    wait_until(ten_carry_as_much)


@tries("completion", "to `Event(text.upper(), id=id)`", "in capitals")
def test_the_answer_is_in_capitals(reloading, reloading_page):
    reloading.change("completion", "Event(text, id", "Event(text.upper(), id")
    page = reloading_page("completion")
    press(page, "Ask")
    answer = page.locator("#answer")
    expect(answer).to_contain_text("IN **FLASK**, A GENERATOR")
    assert answer.text_content().isupper()


@tries("relay", "`NOTICE_SECONDS = 0.5` to 0.01", "Comments fill every pause")
def test_comments_fill_the_pauses(reloading, reloading_page):
    reloading.change("relay", "NOTICE_SECONDS = 0.5", "NOTICE_SECONDS = 0.01")
    page = reloading_page("relay")
    page.locator("#wire > summary").click()
    rows = page.locator("#wire pre > div")
    wait_until(lambda: "[DONE]" in page.locator("#wire").text_content())
    comments = rows.filter(has_text=": keep-alive")
    words = rows.filter(has_text="chat.completion.chunk")
    assert comments.count() > words.count() > 10


@tries(
    "agent",
    "`return max(numbers)`",
    "The model answers 23",
    '"What time is it in Atlantis?"',
    "The tool fails",
)
def test_the_model_believes_its_tools(reloading, reloading_page):
    reloading.change("agent", "return sum(numbers)", "return max(numbers)")
    page = reloading_page("agent")
    press(page, "Ask")
    expect(page.locator("#log .answer")).to_contain_text("get_sum returned 23.")
    page.get_by_label("Question").fill("What time is it in Atlantis?")
    press(page, "Ask")
    answer = page.locator("#log .answer")
    expect(answer).to_contain_text("No time zone found with key Atlantis')")
    expect(state(page)).to_have_text("closed")


@tries("chat", 'send "Attack this page"', "the selection stays", "vanish")
def test_scripts_are_text_and_a_selection_stays(lesson_page):
    page = lesson_page("chat")
    page.get_by_label("Message").fill("Attack this page")
    press(page, "Send")
    answer = page.locator("#log .answer")
    expect(answer).to_contain_text("Nothing in this answer")
    answer.dblclick(position={"x": 30, "y": 20})
    selected = "() => getSelection().toString().trim()"
    assert page.evaluate(selected) == "Nothing"
    expect(answer).to_contain_text("the answer continues.")
    assert page.evaluate(selected) == "Nothing"
    for text in ("<img src=", "</script>", "onerror="):
        assert text in answer.text_content()
    assert answer.locator("*").count() == 0
    answer.evaluate("answer => { answer.textContent += ' more'; }")
    assert page.evaluate(selected) == ""


@tries("post", "add `?interval=2`", "two seconds after", "a 400")
def test_the_wire_shows_the_pause_and_the_refusal(lesson_page):
    page = lesson_page("post")
    send_wire(page, "/api/sse?interval=2")
    second = wire_seconds(page, '"key":"city"')
    assert 1.5 < second - wire_seconds(page, "event: request") < 5
    send_wire(page, "/api/sse?interval=2", '{"city": "Paris"')
    wire_row(page, "status 400, application/json")
    wire_row(page, "The body must be a JSON object")
    page.problems.clear()


@tries("markdown", "to 1, save", "once a second", "none of its scripts run")
def test_the_answer_grows_once_a_second(reloading, reloading_page, events_of):
    reloading.change("markdown", "DRAW_SECONDS = 0.1", "DRAW_SECONDS = 1")
    page = reloading_page("markdown")
    events = events_of(page)
    press(page, "Ask")

    def pauses() -> list[float]:
        times = [event["timestamp"] for event in events]
        gaps = map(float.__sub__, times[1:], times)
        return [gap for gap in gaps if gap > 0.5]

    wait_in(page, lambda: len(pauses()) == 2)
    assert all(0.7 < pause < 3 for pause in pauses())
    press(page, "Attack")
    expect(page.locator("#blocked")).to_contain_text("<script> in the text")


@tries("html", 'set "What fails" to mail', "After two seconds", "other parts")
def test_one_part_fails_and_stop_stops_the_work(start, page):
    server = start("flask run")
    page.goto(f"{server.url}/demos/html")
    page.get_by_label("What fails").select_option("mail")
    began = time.monotonic()
    press(page, "Start")
    frame = page.frame_locator("#frame")
    expect(frame.locator("#mail-part")).to_have_text("mail: This part failed.")
    assert 1.9 < time.monotonic() - began < 5
    assert server.logged("^OSError: The service is unreachable.$")
    for name in ("weather", "trains"):
        expect(frame.locator(f"#{name}-part")).to_contain_text("Ready after")
    press(page, "Start")
    frame.get_by_text("is on its way").first.wait_for()
    press(page, "Stop")
    wait_until(lambda: server.logged("html: mail stopped: client disconnected"))


@tries(
    "broadcast",
    "both receive it immediately",
    "delete the line `self.published.notify_all()`",
    "A `reset` event reports",
    "up to 15 seconds",
)
def test_a_text_that_wakes_nobody_waits_for_the_heartbeat(
    reloading, reloading_page
):
    page = reloading_page("broadcast")
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open a second window").click()
    popup.value.wait_for_load_state()
    windows = (page, popup.value)
    for window in windows:
        press(window, "Start")
        expect(state(window)).to_have_text("open")
    press(page, "Send")
    for window in windows:
        expect(window.locator("#list > *")).to_have_count(1)
    reloading.change("broadcast", "self.published.notify_all()", "")
    for window in windows:
        expect(window.locator("#list .gap")).to_have_count(1)
    with page.expect_response("**/broadcast"):
        press(page, "Send")
    sent = time.monotonic()
    for window in windows:
        expect(window.locator("#list > *")).to_have_count(3)
    assert time.monotonic() - sent > 1
    page.problems.clear()


@tries(
    "notifications",
    "both receive it",
    'delete "alert" from `LEVELS`',
    "A `reset` event reports",
    "rejects alerts",
)
def test_two_windows_receive_a_text_and_report_what_memory_lost(
    reloading, reloading_page
):
    page = reloading_page("notifications")
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open a second window").click()
    popup.value.wait_for_load_state()
    windows = (page, popup.value)
    for window in windows:
        press(window, "Start")
        expect(state(window)).to_have_text("open")
    press(page, "Send")
    for window in windows:
        expect(window.locator("#list .info")).to_have_count(1)
    reloading.change("notifications", ', "alert")', ")")
    for window in windows:
        expect(window.locator("#list .gap")).to_have_count(1)
    page.get_by_label("Text", exact=True).fill("Fire")
    page.get_by_label("Level").select_option("alert")
    press(page, "Send")
    problem = page.locator("#problem")
    expect(problem).to_have_text("level must be one of info, warning.")
    page.problems.clear()


@tries("prices", "interval to 0.05 there and to 2 here", "every fortieth")
def test_two_windows_show_the_same_prices_at_their_own_pace(
    page, lesson_page, site, events_of
):
    lesson_page("prices")
    received = []
    with closing(page.context.new_page()) as second:
        second.goto(page.url)
        for window, interval in ((second, "0.05"), (page, "2")):
            received.append(events_of(window))
            window.get_by_label("Interval in seconds").fill(interval)
            press(window, "Start")
        all_steps, some = received
        wait_in(page, lambda: len(messages(some)) >= 2)
        wait_in(
            second, lambda: messages(some).keys() <= messages(all_steps).keys()
        )
    every, few = messages(all_steps), messages(some)
    assert few.items() <= every.items()
    before, after = list(few)[-2:]
    ids = list(every)
    assert ids.index(after) - ids.index(before) == 40


def messages(events: list[dict]) -> dict[str, str]:
    """Return the data of each event of the type `message` by its id."""
    return {
        event["eventId"]: event["data"]
        for event in events
        if event["eventName"] == "message"
    }


@tries("progress", "`STEP_SECONDS = 0.2` to 0.02", "ten times as fast")
def test_a_job_dies_with_its_process_and_the_next_is_faster(
    reloading, reloading_page, events_of
):
    page = reloading_page("progress")
    page.get_by_label("Steps", exact=True).fill("500")
    press(page, "Start")
    page.get_by_text(re.compile(r"^Step \d+ of 500$")).wait_for()
    reloading.change("progress", "STEP_SECONDS = 0.2", "STEP_SECONDS = 0.02")
    message = page.locator("#message")
    expect(message).to_have_text(LOST)
    events = events_of(page)
    press(page, "Start")
    wait_in(page, lambda: len(events) > 40)
    assert events[40]["timestamp"] - events[0]["timestamp"] < 6
    page.problems.clear()


@tries(
    "console",
    'change `"-u", "-c"` to `"-c"`',
    "Steps 3, 6 and 9 go to stderr",
    "All the others arrive together, at the end",
)
def test_without_u_stdout_arrives_at_the_end(
    reloading, reloading_page, events_of
):
    page = reloading_page("console")
    press(page, "Start")
    output = page.locator("#output")
    page.get_by_text("exit: 0").wait_for()
    live = [f"Step {step} of 10" for step in range(1, 11)]
    assert re.findall("Step .+", output.inner_text()) == live
    reloading.change("console", '"-u", "-c"', '"-c"')
    events = events_of(page)
    press(page, "Start")
    page.get_by_text("exit: 0").wait_for()
    wait_in(page, lambda: len(events) == 11)
    types = [event["eventName"] for event in events]
    assert types == ["stderr"] * 3 + ["stdout"] * 7 + ["exit"]
    first, *_, last = [event["timestamp"] for event in events[3:10]]
    assert last - first < events[1]["timestamp"] - events[0]["timestamp"]


@tries(
    "document",
    "The second save fails: you see the text of the first",
    "change `return stale(current)` to `pass`",
    "overwrites the first without a warning",
)
def test_without_the_check_a_text_is_overwritten(reloading, page):
    page.expected = "412"
    with closing(page.context.new_page()) as second:
        windows = {"First": page, "Second": second}

        def save_both() -> None:
            for text, window in windows.items():
                window.goto(f"{reloading.url}/demos/document")
                press(window, "Start")
                expect(state(window)).to_have_text("open")
                window.get_by_label("The document").fill(text)
            for window in windows.values():
                press(window, "Save")

        save_both()
        expect(second.locator("#theirs")).to_have_text("First")
        reloading.change("document", "return stale(current)", "pass")
        save_both()
        expect(second.locator("#problem")).to_have_text("Saved.")
        expect(page.get_by_label("The document")).to_have_value("Second")
    page.problems.clear()


@tries("resume", "reload mid-answer", "from_newest=True", "are missing")
def test_a_reload_shows_all_or_only_the_newest(
    reloading, reloading_page, lesson_page
):
    old, new = (
        'follow("answers", id)',
        'follow("answers", id, from_newest=True)',
    )
    reloading.change("resume", old, new)
    for open_page, is_complete in (
        (lesson_page, True),
        (reloading_page, False),
    ):
        page = open_page("resume")
        press(page, "Ask")
        answer = page.locator("#answer")
        expect(answer).to_contain_text("by itself")
        page.reload()
        expect(answer).to_contain_text("remembers the last one")
        assert answer.text_content().startswith("A browser") == is_complete


@tries(
    "private",
    "log out: both streams end",
    "change `time.time() + LIFETIME_SECONDS` to `time.time() + 5`",
    "Within 20 seconds, the login expires",
)
def test_a_logout_and_an_expired_login_end_the_streams(
    reloading, reloading_page
):
    page = reloading_page("private")
    press(page, "Log in")
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open a second window").click()
    popup.value.wait_for_load_state()
    press(popup.value, "Start")
    windows = (page, popup.value)
    for window in windows:
        expect(state(window)).to_have_text("open")
    press(page, "Log out")
    for window in windows:
        expect(state(window)).to_have_text("closed")
    reloading.change(
        "private", "time.time() + LIFETIME_SECONDS", "time.time() + 5"
    )
    press(page, "Log in")
    expect(state(page)).to_have_text("open")
    expect(page.locator("#list > *")).to_have_text(["You are logged out."])
    expect(state(page)).to_have_text("closed")


@tries("before_sse", "events to every 0.1 s", "A poll returns twenty of them")
def test_rare_polls_are_late_and_frequent_polls_are_empty(lesson_page):
    page = lesson_page("before_sse")

    def row(way: str) -> list[float]:
        cells = page.locator(f"#{way} td").all_text_contents()
        return [float(text) if text != "–" else 0 for text in cells]

    page.get_by_label("An event every").fill("0.1")
    press(page, "Start")
    wait_in(page, lambda: row("poll")[0] == 3)
    requests, events, delay = row("poll")
    assert 30 <= events <= 80
    assert 500 < delay < 3000
    assert row("long")[0] > 3 * requests
    page.get_by_label("An event every").fill("2")
    page.get_by_label("A poll every").fill("0.1")
    press(page, "Start")
    wait_in(page, lambda: row("poll")[1] == 1)
    before = row("poll")[0]
    wait_in(page, lambda: row("poll")[1] == 2)
    assert 3 <= row("poll")[0] - before <= 25


@tries("reconnect", "status 503 and tick both boxes", "choose 200")
def test_the_page_retries_until_the_server_has_recovered(lesson_page):
    page = lesson_page("reconnect")
    page.locator("[name=drop_after]").fill("1")
    page.locator("[name=status]").select_option("503")
    page.get_by_label("Retry failures").check()
    page.get_by_label("Watch silence").check()
    press(page, "Start")
    log = page.locator("#log")
    wait_in(page, lambda: log.text_content().count("new EventSource in ") == 2)
    page.locator("[name=status]").select_option("200")
    expect(log).to_contain_text("event 2")
    waits = re.findall(r"new EventSource in (\d+) ms", log.text_content())
    waits.reverse()
    for place, wait in enumerate(map(int, waits)):
        assert 500 <= wait / 2**place <= 1000
    page.problems.clear()


@tries(
    "client",
    "change `SILENCE_SECONDS = 15` to 0.5",
    "It reconnects for every event",
    "gets every id",
)
def test_python_takes_each_pause_for_a_dead_connection(
    reloading, reloading_page
):
    reloading.change("client", "SILENCE_SECONDS = 15", "SILENCE_SECONDS = 0.5")
    page = reloading_page("client")
    press(page, "Start")
    python = page.locator("tbody td:nth-child(3)")
    for id in (1, 2):
        python.get_by_text(f"Last-Event-ID: {id}").wait_for()
    press(page, "Stop")
    first, second, third, *_ = reversed(python.all_text_contents())
    times = r"\d+\.\d s(, Last-Event-ID: \d)? "
    assert all(re.fullmatch(times, text) for text in (first, second, third))
    resumed = re.findall(r"ID: (\d)", first + second + third)
    assert resumed == ["1", "2"]


# test_nginx.py tests the other suggestion.
@tries("six_connections", "STREAMS to 20", "fourteen of them hang")
def test_of_twenty_streams_fourteen_hang(reloading, reloading_page):
    path = reloading.folder / "templates" / "six_connections.html"
    live = path.read_text("utf-8")
    assert live.count("STREAMS = 8") == 1
    path.write_text(live.replace("STREAMS = 8", "STREAMS = 20"), "utf-8")
    page = reloading_page("six_connections")
    press(page, "Start")
    expect(state(page)).to_have_text("6 open, 14 connecting")
