"""The commands and examples in the README and the lessons work."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from conftest import NAMES, PROJECT, Client, need, wait_until
from parts import needed
from playwright.sync_api import expect
from upstream import FINISH, KEY, PAUSE, ROLE, Upstream, delta, stream
from upstream import page as page_of

import broker
from demos import LESSONS, PARTS
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event
from website.pages import texts

README = (PROJECT / "README.md").read_text("utf-8")


FENCED = re.findall(r"^```(\w*)\n(.*?)^```\n", README, re.M | re.S)


def blocks(language):
    return [text for name, text in FENCED if name == language]


def section(heading):
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


class Program:
    """A complete program of the README, and the parts that it names."""

    def __init__(self, heading):
        self.text = section(heading)
        found = re.findall(r"^```(\w*)\n(.*?)^```\n", self.text, re.M | re.S)
        self.blocks = [block for _, block in found]

    def save(self, folder, *more):
        app = folder / "app.py"
        app.write_text("\n".join([self.blocks[0], *more]), "utf-8")
        parts = needed(app)
        for part in parts:
            shutil.copy(PROJECT / f"{part}.py", folder)
        assert set(parts) <= set(re.findall(r"`(\w+)\.py`", self.text))


ANSWER = Program("Stream an OpenAI answer to the browser")
CLOCK = Program("A clock that cleans up on disconnect")
BROADCAST = Program("Broadcast to all clients, with replay")
FORM = "application/x-www-form-urlencoded"
RECORD = """
() => {
  window.EventSource = class extends EventSource {
    constructor(url) { super(url); window.source = this; }
  };
}
"""


def test_the_programs_fit_a_screen():
    for program in (ANSWER, CLOCK, BROADCAST):
        assert len(program.blocks[0].splitlines()) <= 25
    assert len(ANSWER.blocks[1].splitlines()) <= 12


@pytest.fixture
def answering(tmp_path, start):
    """The first program, and its upstream, which pauses in mid-answer."""
    ANSWER.save(tmp_path)
    (tmp_path / "page.html").write_text(ANSWER.blocks[1], "utf-8")
    pieces = (ROLE, delta("  One\n\n two"), PAUSE, delta(" \n3"), FINISH)
    with Upstream(stream(*pieces)) as upstream:
        environ = {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": KEY}
        yield start("flask run", folder=tmp_path, **environ), upstream


def ask(page, server):
    """Ask a question in the page, and wait for the answer's beginning."""
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    page.goto(f"{server.url}/")
    page.evaluate(RECORD)
    page.locator("#q").fill("Why & how?")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_function("document.querySelector('pre')?.textContent")
    assert page.locator("pre").inner_text() == "  One\n\n two"


def test_the_first_program_streams_an_answer_and_never_repeats_a_prompt(
    answering, page
):
    server, upstream = answering
    page.expected = "net::ERR_"
    ask(page, server)
    upstream.resume()
    page.wait_for_function("source.readyState == 2")
    assert page.locator("pre").inner_text() == "  One\n\n two \n3"
    (request,) = upstream.requests
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.json["messages"] == [
        {"role": "user", "content": "Why & how?"}
    ]
    with server.get("/answer?q=Why", Last_Event_ID="1") as reconnect:
        assert reconnect.status == 204
    ask(page, server)
    server.stop(signal.SIGKILL)
    page.wait_for_function("source.readyState == 2")
    assert page.locator("pre").inner_text() == "  One\n\n two\nBroken off"
    assert len(upstream.requests) == 2


def test_the_first_program_reports_a_failure_and_refuses_other_sites(answering):
    server, upstream = answering
    path, headers = "/answer?q=Why", {"Sec_Fetch_Site": "cross-site"}
    with server.get(path, **headers) as refused:
        assert refused.status == 403
    upstream.answer = page_of(b"", "429 Too Many Requests")
    with server.get(path) as answer:
        assert [event[:2] for event in parse_events(answer.chunks())] == [
            (
                "\nThe language model refused (429, too many requests).",
                "message",
            ),
            ("", "done"),
        ]


def test_the_clock_ticks_and_cleans_up(tmp_path, start, page):
    CLOCK.save(tmp_path)
    server = start("flask run", folder=tmp_path)
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    page.goto(f"{server.url}/")
    clock = page.locator("#clock")
    expect(clock).to_have_text(re.compile(r"^\w+ \w+ .*:\d\d:\d\d 20\d\d$"))
    page.goto("about:blank")
    wait_until(lambda: server.logged("^The client has disconnected[.]$"))


def test_the_broadcast_reaches_every_page_and_replays(tmp_path, start, page):
    BROADCAST.save(tmp_path)
    server = start("flask run", folder=tmp_path)
    with server.get("/news") as client:
        begin = next(parse_events(client.chunks()))
    other = page.context.new_page()
    for one in (page, other):
        one.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        with one.expect_response("**/news"):
            one.goto(f"{server.url}/")
    page.locator("input").fill("Hello")
    page.locator("input").press("Enter")
    for one in (page, other):
        expect(one.locator("#log")).to_have_text("Hello\n")
    with server.get("/news", Last_Event_ID=begin.id) as client:
        missed = next(parse_events(client.chunks()))
        assert missed[:2] == ("Hello", "message")


def test_the_broadcast_program_uses_redis(
    tmp_path, start, redis_server, monkeypatch
):
    BROADCAST.save(tmp_path, BROADCAST.blocks[1])
    url = redis_server.url
    server = start("flask run", folder=tmp_path, REDIS_URL=url)
    with server.get("/news") as client:
        events = parse_events(client.chunks())
        assert next(events).event == "begin"
        monkeypatch.setattr(broker, "BROKER", RedisBroker(url))
        broker.publish("news", Event("Hello"))
        assert next(events)[:2] == ("Hello", "message")


def test_the_classroom_command_serves_the_whole_network(start):
    command = re.search("flask run --host .+", section("In a classroom"))[0]
    server = start(command)
    line = r"Running on all addresses \(0\.0\.0\.0\)"
    wait_until(lambda: server.logged(line))


def test_each_wish_names_a_lesson_and_its_command():
    command = r"`\.venv/bin/flask take (\w+) \.\./my-app`"
    row = rf"\[(\w+)\]\(demos/\1\.py\) \| {command} \|$"
    rows = re.findall(row, section("I want to…"), re.M)
    assert rows
    for lesson, taken in rows:
        assert lesson == taken in NAMES
    (files,) = re.findall(r"`cp (.+) \.\./my-app`", README)
    assert all((PROJECT / file).is_file() for file in files.split())


def test_two_commands_set_everything_up():
    venv = "python3 -m venv .venv"
    install = ".venv/bin/pip install -q -r"
    run, test = [
        f"{venv} && {install} requirements.txt && .venv/bin/flask run\n",
        f"{venv} && {install} requirements-dev.txt && .venv/bin/pytest\n",
    ]
    assert blocks("")[:2] == [run, test]
    ci = (PROJECT / ".ci" / "run").read_text("utf-8")
    assert "\"$(grep -m 1 '/flask run$' README.md)\"" in ci
    assert "\"$(grep -m 1 '/pytest$' README.md)\"" in ci


def test_the_commands_in_contributing_work(site):
    contributing = (PROJECT / "CONTRIBUTING.md").read_text("utf-8")
    commands = re.findall(r"^```\n\.venv/bin/(.*)\n```\n", contributing, re.M)
    test, engines, run = commands
    file, word = re.fullmatch(r"pytest -n0 (\S+) -k (\w+)", test).groups()
    text = (PROJECT / file).read_text("utf-8")
    assert len(re.findall(rf"^def test_\w*{word}", text, re.M)) == 1
    folder = engines.removeprefix("pytest -n0 ")
    assert list((PROJECT / folder).glob("test_*.py"))
    assert run == "flask run --reload"
    path = re.search(r"<http://127.0.0.1:5000(.*?)>", contributing)[1]
    with site.get(path) as page:
        assert page.status == 200


def test_the_production_commands_work(start, redis_server):
    found = [block for block in blocks("") if block.endswith("/gunicorn\n")]
    alone, shared = found
    assert alone == ".venv/bin/gunicorn\n"  # as in the fixture `gunicorn`
    setting, command = shared.split()
    name, url = setting.split("=")
    assert url == "redis://localhost:6379/0"
    environ = {name: redis_server.url}
    server = start(command.removeprefix(".venv/bin/"), **environ)
    with server.get("/stream/hello") as client:
        assert next(client.chunks()) == b"data: Hello\n\n"
    assert server.logged(r"Workers: \d+ \(they share a Redis\)")


def test_the_lessons_are_listed_in_their_order():
    rows = re.findall(
        r"^\| \[(\w+)\]\(demos/\1\.py\) \| .* \| (.*) \|$", README, re.M
    )
    assert [name for name, _ in rows] == NAMES
    for name, shows in rows:
        title = texts(LESSONS[name]).title.split(": ")[1]
        assert shows.startswith(title)


def test_the_sections_are_those_of_the_course():
    lessons = README[README.index("## The lessons") :]
    found = re.findall(r"^### (.*)\n\n(.*)\n\n\| lesson", lessons, re.M)
    assert found == [(part.title, part.about) for part in PARTS]


def write_to_the_document(server):
    body = json.dumps({"text": "Hello", "author": "Ada"}).encode()
    headers = {"Content-Type": "application/json", "If-Match": "*"}
    with Client(server.port, "PUT", "/document", body, headers) as client:
        assert client.status == 200


def broadcast(server):
    headers = {"Content_Type": "application/json"}
    with server.post("/broadcast", b'{"text": "Hello"}', **headers) as client:
        assert client.status == 201


@pytest.mark.parametrize("name", NAMES)
def test_the_curl_line_of_a_lesson_works_as_written(site, name):
    need("curl")
    if name == "document":
        write_to_the_document(site)
    if name == "broadcast":
        broadcast(site)
    line = texts(LESSONS[name]).curl.replace("http://127.0.0.1:5000", site.url)
    with subprocess.Popen(
        ["sh", "-c", f"exec {line} --silent --show-error --max-time 100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as curl:
        received = ""
        while not re.search(r"^data: .+\n\n|</script>\n", received, re.M):
            line = curl.stdout.readline()
            assert line, received + curl.stderr.read()
            received += line
        curl.terminate()
        assert curl.stderr.read() == ""


def test_every_link_leads_somewhere():
    slugs = {
        re.sub("[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall("^#+ (.*)$", README, re.M)
    }
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if link.startswith("#"):
            assert link[1:] in slugs
        elif "://" not in link:
            assert (PROJECT / link).exists()


LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "gunicorn"])
"""


@contextmanager
def activated(listener):
    """Start gunicorn as systemd does, with a socket that systemd holds."""
    number = str(listener.fileno())
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH, number],
        cwd=PROJECT,
        pass_fds=[listener.fileno()],
        stderr=subprocess.DEVNULL,
    ) as process:
        yield
        process.terminate()


def test_a_request_waits_until_gunicorn_starts_with_a_socket_of_systemd():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            Client(port, "GET", "/stream/hello") as client,
            activated(listener),
        ):
            assert next(client.chunks()) == b"data: Hello\n\n"
