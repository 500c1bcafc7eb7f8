import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

import pytest
from conftest import read_until, wait_until, without_comments
from playwright.sync_api import expect

from demos import console
from demos.console import READ_BYTES, run
from sse import Event

# It lives for longer than a test waits, but ends even if nothing kills it.
STUBBORN = """
trap '' TERM INT HUP
sleep 100 &
sh -c 'trap "" TERM; echo started; sleep 100'
"""


def events(*command: str) -> list[tuple[str, object]]:
    """Run a program; return the type and the data of each event."""
    found = [event for event in run(command) if event is not None]
    assert [event.id for event in found] == [
        str(number) for number in range(1, len(found) + 1)
    ]
    return [(event.event, event.data) for event in found]


def shell(script: str) -> list[tuple[str, object]]:
    return events("sh", "-c", script)


def stdout(script: str) -> list[str]:
    """Return the lines of a script that succeeds and prints no errors."""
    *lines, end = shell(script)
    assert end == ("exit", 0)
    assert {type for type, _ in lines} <= {"stdout"}
    return [line for _, line in lines]


# The program


def test_sends_exactly_these_bytes():
    found = run(["sh", "-c", "echo one; echo ' two'; exit 3"])
    assert b"".join(event.encode() for event in found if event) == (
        b"id: 1\nevent: stdout\ndata: one\n\n"
        b"id: 2\nevent: stdout\ndata:  two\n\n"
        b"id: 3\nevent: exit\ndata: 3\n\n"
    )


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("true", []),
        ("echo", [""]),
        (r"printf 'a\n\nb'", ["a", "", "b"]),
        (r"printf 'a\r\nb\r\n'", ["a", "b"]),
        (r"printf 'a\r'; sleep 0.1; printf '\nb\n'", ["a", "b"]),
        (r"printf '10%%\r20%%\r\n'", ["10%", "20%"]),
        (r"printf '\342\202'; sleep 0.1; printf '\254\n'", ["€"]),
        (r"printf 'a\377b\n\303'", ["a\ufffdb", "\ufffd"]),
        (r"printf 'a\000b\n'", ["a\0b"]),
        ("sleep 1000 & printf 'a child has no end'", ["a child has no end"]),
    ],
)
def test_output_is_split_into_lines_of_text(script, lines):
    assert stdout(script) == lines


def test_a_long_line_arrives_in_pieces_that_lose_nothing():
    program = "import sys; sys.stdout.buffer.write('€uro'.encode() * 100_000)"
    *lines, end = events(sys.executable, "-c", program)
    assert end == ("exit", 0)
    assert "".join(line for _, line in lines) == "€uro" * 100_000
    assert max(len(line) for _, line in lines) <= 2 * READ_BYTES


def test_a_program_that_closes_its_output_has_not_ended():
    assert shell("exec >&- 2>&-; sleep 0.5; exit 4") == [("exit", 4)]


def test_stdin_is_empty_whatever_the_servers_stdin_is():
    reader, writer = os.pipe()
    os.write(writer, b"typed\n")
    os.close(writer)
    saved = os.dup(0)
    os.dup2(reader, 0)
    try:
        assert stdout("cat; echo end") == ["end"]
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reader)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_closing_the_stream_kills_the_program_and_its_children():
    output = run(["sh", "-c", f"echo $$; {STUBBORN}"])
    lines = [event.data for event in output_until(output, "started")]
    group = int(lines[0])
    pids = [pid for pid in all_pids() if group_of(pid) == group]
    assert len(pids) >= 3
    output.close()
    wait_until(lambda: not any(map(is_running, pids)))
    with pytest.raises(ChildProcessError):
        os.waitpid(group, os.WNOHANG)


def output_until(output, last: str) -> Iterator[Event]:
    for event in filter(None, output):
        yield event
        if event.data == last:
            return


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


# The view


@pytest.fixture
def started(monkeypatch) -> list:
    """The commands that have been started."""
    commands = []

    def record(command, **options):
        commands.append(command)
        return popen(command, **options)

    popen = console.Popen
    monkeypatch.setattr(console, "Popen", record)
    monkeypatch.setattr(console, "COMMAND", ["echo", "Hello"])
    return commands


def test_streams_the_output_of_the_fixed_command(client, started):
    response = client.get("/stream/console")
    assert response.headers["Content-Type"] == "text/event-stream"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert without_comments(response.data) == (
        b"retry: 86400000\n"
        b"id: 1\nevent: stdout\ndata: Hello\n\n"
        b"id: 2\nevent: exit\ndata: 0\n\n"
    )
    assert started == [["echo", "Hello"]]


def test_starts_nothing_unless_a_page_asks_for_the_first_time(client, started):
    for last in ("1", ""):
        headers = {"Last-Event-ID": last}
        response = client.get("/stream/console", headers=headers)
        assert (response.status_code, response.data) == (204, b"")
    assert client.head("/stream/console").status_code == 200
    assert started == []


# Servers

APP = """
from app import app
from demos.console import run
from sse import EventStream

PROGRAMS = {programs!r}


@app.get("/run/<name>")
def run_program(name):
    return EventStream(run(["sh", "-c", PROGRAMS[name]]))
"""
PROGRAMS = {
    "flood": "yes " + "x" * 999,
    "silence": "echo started; exec sleep 1000",
    "stubborn": STUBBORN,
}


def processes(mark: str) -> set[int]:
    """Return the processes that have this in their environment."""
    found = set()
    for pid in all_pids():
        with suppress(OSError):
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            if mark.encode() in environ.split(b"\0"):
                found.add(pid)
    return found


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not waited for."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(one) for task in tasks for one in task.read_text().split()]


def threads(pids: set[int]) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)


def test_disconnects_leave_no_process_and_no_thread_behind(start, tmp_path):
    (tmp_path / "programs.py").write_text(APP.format(programs=PROGRAMS))
    server = start("gunicorn programs:app", PYTHONPATH=str(tmp_path))
    mark = f"PYTHONPATH={tmp_path}"
    own = processes(mark)
    before = threads(own)
    for name in PROGRAMS:
        with ExitStack() as stack:
            for _ in range(5):
                client = stack.enter_context(server.get(f"/run/{name}"))
                read_until(client.chunks(), b"\nevent: stdout\n")
            wait_until(lambda: len(processes(mark) - own) >= 5)
    wait_until(lambda: processes(mark) == own)
    wait_until(lambda: threads(own) <= before)
    # Zombies have no environment, so look for them elsewhere.
    wait_until(lambda: {*chain(*map(children, own))} <= own)
    assert server.logged("Traceback") == []


# The page


def test_page_shows_each_line_and_stop_kills_the_program(
    live, page, monkeypatch
):
    output, lines = page.locator("#output"), page.locator("#output > *")
    state = page.locator("#state")
    page.goto(f"{live.url}/demos/console")
    requests = []
    page.on("request", lambda one: requests.append(one.url))

    def start(script: str) -> None:
        monkeypatch.setattr(console, "COMMAND", ["sh", "-c", script])
        page.get_by_role("button", name="Start").click()

    start("echo one; echo two; sleep 0.1; echo three >&2; exit 4")
    expect(lines).to_have_text(
        ["stdout: one", "stdout: two", "stderr: three", "exit: 4"]
    )
    expect(state).to_have_text("closed")
    assert len([url for url in requests if "/stream/" in url]) == 1
    start("echo $$; exec sleep 1000")
    expect(output).to_have_text(re.compile(r"^stdout: \d+$"))
    program = int(output.text_content().removeprefix("stdout: "))
    assert is_running(program)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(state).to_have_text("closed")
    wait_until(lambda: not is_running(program))


def test_page_keeps_the_last_500_lines_and_shows_that_it_failed(lesson_page):
    page = lesson_page("console")
    lines = page.locator("#output > *")

    def show(body: str) -> None:
        headers = {"Content-Type": "text/event-stream"}
        page.unroute_all()
        page.route(
            "**/stream/console",
            lambda route: route.fulfill(body=body, headers=headers),
        )
        page.get_by_role("button", name="Start").click()

    body = "".join(
        f"event: stdout\ndata: <b>{number}</b>\n\n" for number in range(600)
    )
    show(f"{body}event: exit\ndata: 1\n\n")
    expect(lines.last).to_have_text("exit: 1")
    expect(lines.first).to_have_text("stdout: <b>101</b>")
    assert lines.count() == 500
    show("event: stdout\ndata: half\n\n")
    expect(lines.last).to_have_text("error: The connection failed.")
    expect(page.locator("#state")).to_have_text("closed")
    page.expected = "Failed to load resource"
