"""The commands and examples in the README and the lessons work."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import NAMES, PROJECT, Client, need

from demos import LESSONS, PARTS
from website.pages import texts

README = (PROJECT / "README.md").read_text("utf-8")


FENCED = re.findall(r"^```(\w*)\n(.*?)^```\n", README, re.M | re.S)


def blocks(language):
    return [text for name, text in FENCED if name == language]


def test_the_first_example_streams(tmp_path, start):
    (tmp_path / "app.py").write_text(blocks("python")[0])
    shutil.copy(PROJECT / "sse.py", tmp_path)
    server = start("flask run", folder=tmp_path)
    with server.get("/clock") as client:
        chunks = client.chunks()
        assert next(chunks) == b":\n"
        assert re.fullmatch(rb"data: .*:\d\d:\d\d 20\d\d\n\n", next(chunks))


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


def test_the_commands_in_contributing_work(start):
    contributing = (PROJECT / "CONTRIBUTING.md").read_text("utf-8")
    test, run = re.findall(r"^```\n\.venv/bin/(.*)\n```\n", contributing, re.M)
    command = [sys.executable, "-m", *test.split()]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert " 1 passed, " in done.stdout, done.stdout
    path = re.search(r"<http://127.0.0.1:5000(.*?)>", contributing)[1]
    with start(run).get(path) as page:
        assert page.status == 200


@pytest.mark.parametrize(
    "command", [block for block in blocks("") if block.endswith("/gunicorn\n")]
)
def test_the_production_commands_work(command, start, redis_server):
    *settings, program = command.split()
    environ = dict(setting.split("=") for setting in settings)
    if "REDIS_URL" in environ:
        environ["REDIS_URL"] = redis_server.url
    server = start(program.removeprefix(".venv/bin/"), **environ)
    with server.get("/stream/hello") as client:
        assert next(client.chunks()) == b"data: Hello\n\n"


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
        ["sh", "-c", f"exec {line} --silent --show-error --max-time 10"],
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
