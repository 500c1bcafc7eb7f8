import os
import re
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import pytest
from conftest import PROJECT, Server, read_until, wait_until, without_comments
from playwright.sync_api import expect

from checks import FOREIGN
from demos import console
from demos.console import DAY_MS, READ_BYTES, run
from event_source import parse_events
from sse import Event

FLOOD_BYTES = 100_000_000
ENDLESS = ["sleep", "1000"]
STUBBORN = """
trap '' TERM INT HUP
sleep 1000 &
sh -c 'trap "" TERM; echo started; sleep 1000'
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


def test_stderr_has_its_own_event_type():
    *lines, end = shell("echo out; echo err >&2")
    assert sorted(lines) == [("stderr", "err"), ("stdout", "out")]
    assert end == ("exit", 0)


def test_the_exit_code_of_a_killed_program_is_its_signal():
    assert shell("kill -9 $$") == [("exit", -9)]


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


@pytest.mark.parametrize("start", ["sleep 1000 &", "setsid sleep 5 &"])
def test_a_child_that_keeps_the_output_open_does_not_delay_the_end(start):
    assert stdout(f"{start} printf last") == ["last"]


def test_stdin_is_empty():
    usual, (reads, writes) = os.dup(0), os.pipe()
    os.write(writes, b"typed in the terminal\n")
    os.dup2(reads, 0)
    try:
        assert stdout("head -n 1; echo end") == ["end"]
    finally:
        os.dup2(usual, 0)
        for descriptor in (usual, reads, writes):
            os.close(descriptor)


def test_a_line_of_100_mb_does_not_fill_memory():
    flood = run(["head", "-c", str(FLOOD_BYTES), "/dev/zero"])
    next(flood)
    tracemalloc.start()
    try:
        for _ in flood:
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_yields_none_while_the_program_is_silent():
    output = run(ENDLESS)
    assert [next(output) for _ in range(3)] == [None] * 3
    output.close()


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
    assert (
        without_comments(response.data)
        == (
            b"retry: %d\n"
            b"id: 1\nevent: stdout\ndata: Hello\n\n"
            b"id: 2\nevent: exit\ndata: 0\n\n"
        )
        % DAY_MS
    )
    assert started == [["echo", "Hello"]]


@pytest.mark.parametrize("last", ["", "0", "1", "x"])
def test_a_reconnect_gets_204_and_starts_nothing(client, started, last):
    headers = {"Last-Event-ID": last}
    response = client.get("/stream/console", headers=headers)
    assert (response.status_code, response.data) == (204, b"")
    assert started == []


def test_a_page_of_another_site_starts_nothing(client, started):
    headers = {"Sec-Fetch-Site": "cross-site"}
    response = client.get("/stream/console", headers=headers)
    assert (response.status_code, response.json) == (403, {"error": FOREIGN})
    assert started == []


def test_a_head_request_starts_nothing(client, started):
    assert client.head("/stream/console").status_code == 200
    assert started == []


# Servers

APP = """
from flask import Flask
from demos.console import bp, run
from sse import EventStream

PROGRAMS = {programs!r}
app = Flask(__name__)
app.register_blueprint(bp)


@app.get("/")
def index():
    return ""


@app.get("/run/<name>")
def start(name):
    return EventStream(run(["sh", "-c", PROGRAMS[name]]))
"""
LINE = "x" * 999
PROGRAMS = {
    "100mb": f"yes {LINE} | head -c {FLOOD_BYTES}",
    "flood": f"yes {LINE}",
    "silence": "echo started; exec sleep 1000",
    "stubborn": STUBBORN,
}
COPIED = (
    *("sse.py", "checks.py", "gunicorn.conf.py", "streaming_worker.py"),
    "demos/console.py",
)
MARK = "OF_THE_CONSOLE_TEST"


@pytest.fixture(scope="module")
def programs(command, tmp_path_factory) -> Iterator[Server]:
    """A server with a copy of the lesson, which runs other programs, too."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "demos").mkdir()
    for path in COPIED:
        shutil.copy(PROJECT / path, folder / path)
    (folder / "app.py").write_text(APP.format(programs=PROGRAMS))
    running = Server(command, folder=folder, **{MARK: str(folder)})
    running.mark = f"{MARK}={folder}".encode()
    running.own = processes(running)
    yield running
    running.stop()
    assert "Traceback" not in "\n".join(running.log)


def processes(server: Server) -> set[int]:
    """Return the server's processes, and all that they have started."""
    found = set()
    for pid in all_pids():
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if server.mark in environ.split(b"\0"):
            found.add(pid)
    return found


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not waited for."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(one) for task in tasks for one in task.read_text().split()]


def threads(pids: set[int]) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)


def peak_kb(pids: set[int]) -> int:
    """Return the most memory that any of the processes has used."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return max(int(re.search(r"VmHWM:\s+(\d+)", one)[1]) for one in statuses)


def test_each_line_arrives_while_the_program_runs(server):
    with server.get("/stream/console") as client:
        found = parse_events(client.chunks())
        types = [next(found).event for _ in range(5)]
    assert types == ["stdout", "stdout", "stderr", "stdout", "stdout"]


def test_a_flood_of_100_mb_does_not_fill_the_servers_memory(programs):
    before, received, lines = peak_kb(programs.own), 0, 0
    with programs.get("/run/100mb") as client:
        for chunk in client.chunks():
            received += len(chunk)
            lines += chunk.count(b"\n\n")
            last = chunk
    assert last.endswith(b"event: exit\ndata: 0\n\n")
    assert lines == FLOOD_BYTES // len(f"{LINE}\n") + 1
    assert received > FLOOD_BYTES
    assert peak_kb(programs.own) - before < 20_000


def test_200_clients_leave_no_process_and_no_thread_behind(programs):
    own = programs.own
    before = threads(own)
    for number in range(10):
        name = ("silence", "stubborn", "flood")[number % 3]
        with ExitStack() as stack:
            for _ in range(20):
                client = stack.enter_context(programs.get(f"/run/{name}"))
                read_until(client.chunks(), b"\nevent: stdout\n")
            wait_until(lambda: len(processes(programs) - own) >= 20)
    wait_until(lambda: processes(programs) == own)
    wait_until(lambda: threads(own) <= before)
    # Zombies have no environment, so look for them elsewhere.
    wait_until(lambda: {*chain(*map(children, own))} <= own)


# The page


def test_page_shows_each_line_and_the_exit_code(lesson_page):
    page = lesson_page("console")
    requests = []
    page.on("request", lambda one: requests.append(one.url))
    page.get_by_role("button", name="Start").click()
    lines = page.locator("#output > *")
    expect(lines.nth(1)).to_have_text("stdout: Step 2 of 10")
    expect(lines.nth(2)).to_have_text("stderr: Step 3 of 10")
    expect(lines.nth(10)).to_have_text("exit: 0")
    expect(page.locator("#state")).to_have_text("closed")
    assert len([url for url in requests if "/stream/" in url]) == 1


@pytest.fixture
def output_page(lesson_page, site):
    """A page that shows a stream of our own."""
    page = lesson_page("console")

    def show(body: str, **options):
        headers = {"Content-Type": "text/event-stream"}
        page.route(
            "**/stream/console",
            lambda route: route.fulfill(body=body, headers=headers, **options),
        )
        page.get_by_role("button", name="Start").click()
        return page

    return show


def test_page_shows_markup_as_text_and_keeps_the_last_500_lines(output_page):
    body = "".join(
        f"event: stdout\ndata: <b>{number}</b>\n\n" for number in range(600)
    )
    page = output_page(f"{body}event: exit\ndata: 1\n\n")
    lines = page.locator("#output > *")
    expect(lines.last).to_have_text("exit: 1")
    expect(lines.first).to_have_text("stdout: <b>101</b>")
    assert lines.count() == 500


def test_page_shows_that_the_connection_failed(output_page):
    page = output_page("event: stdout\ndata: half\n\n")
    lines = page.locator("#output > *")
    expect(lines.last).to_have_text("error: The connection failed.")
    expect(page.locator("#state")).to_have_text("closed")
    page.problems.clear()


def test_the_stop_button_kills_the_program(lesson_page, site):
    page = lesson_page("console")
    wait_until(lambda: not children(site.process.pid))
    page.get_by_role("button", name="Start").click()
    page.get_by_text("stdout: Step 1 of 10").wait_for()
    (program,) = children(site.process.pid)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("closed")
    wait_until(lambda: not is_running(program))
