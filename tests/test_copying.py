"""Copied files work in another app, as the README promises."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path
from runpy import run_path

import pytest
from conftest import (
    JSON,
    NAMES,
    PROJECT,
    Address,
    media_type,
    wait_until,
)
from parts import PARTS, needed
from upstream import DONE, FINISH, ROLE, Upstream, delta, stream

import broker
from demos import LESSONS
from redis_broker import RedisBroker
from website.needs import imported, lesson_files
from website.pages import texts
from website.take import app_files, packages, requirements

README = (PROJECT / "README.md").read_text("utf-8")
PINS = (PROJECT / "requirements.txt").read_text("utf-8")
LINES = "one\n\n  two"
"""Text whose line breaks and spaces a page must show."""

SHOWN = {
    "document": LINES,
    "markdown": "one\n\ntwo",  # two paragraphs
    "numbers": r"id 2: \d+\nid 1: \d+\n",
    "post": r"\nmessage: .+\n",
}
"""What a page shows, as a pattern, unless its text comes from the upstream."""

SEVERAL = ("batch", "six_connections", "client")
"""Lessons whose page needs more than one EventSource."""

UNKNOWN = f"There is no lesson 'nope'. The lessons are {', '.join(NAMES)}."


class Download(Address):
    """A download that runs in another process and uses this upstream."""

    def __init__(self, runner: subprocess.Popen, folder: Path, upstream: str):
        super().__init__()
        runner.stdin.write(f"{folder} {self.port} {upstream}\n")
        runner.stdin.flush()
        wait_until(self.is_up)


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen]:
    """A process that runs a download in each of its child processes."""
    command = [sys.executable, PROJECT / "tests/downloads.py"]
    runner = subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    yield runner
    os.killpg(runner.pid, signal.SIGKILL)
    runner.wait()
    runner.stdin.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream(stream(ROLE, delta(LINES), FINISH, DONE)) as upstream:
        yield upstream


@pytest.fixture
def run_download(client, tmp_path, runner, upstream) -> Callable:
    """Return a function that unpacks a download in an empty folder."""

    def run_download(name: str) -> Download:
        data = BytesIO(client.get(f"/demos/{name}.zip").data)
        zipfile.ZipFile(data).extractall(tmp_path)
        return Download(runner, tmp_path / name, upstream.url)

    return run_download


def shown(page) -> str:
    return "\n".join(frame.inner_text("body") for frame in page.frames)


def is_stream(name: str):
    return lambda one: one.headers.get("content-type") == media_type(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_download_runs_and_its_page_shows_the_stream(
    run_download, page, name
):
    page.goto(run_download(name).url)
    before, requests = shown(page), []
    page.on("request", lambda one: requests.append(one.resource_type))
    with page.expect_response(is_stream(name)) as streaming:
        page.locator("#start, #form > button").first.click()
    assert streaming.value.status == 200
    for text in page.locator("textarea").all():
        text.fill(LINES)
    for send in page.locator("#compose > button, #edit > button").all():
        send.click()
    wait_until(lambda: shown(page) != before)
    asks_model = "language_model.py" in lesson_files(name)
    expected = SHOWN.get(name, LINES if asks_model else "")
    wait_until(lambda: re.search(expected, shown(page)))
    assert requests.count("eventsource") <= 1 or name in SEVERAL


def test_a_download_explains_what_was_wrong(run_download):
    server = run_download("progress")
    with server.post("/jobs", b"[]", Content_Type=JSON) as client:
        assert client.status == 400
        assert json.loads(client.read()) == {
            "error": 'The body must be a JSON object, such as {"a": 1}.'
        }


def test_a_download_is_the_same_each_time(client):
    first, second = (client.get("/demos/numbers.zip") for _ in range(2))
    assert first.data == second.data
    assert first.mimetype == "application/zip"
    disposition = "attachment; filename=numbers.zip"
    assert first.headers["Content-Disposition"] == disposition


def test_an_unknown_download_is_a_404(client):
    response = client.get("/demos/nope.zip")
    assert response.status_code == 404
    assert response.json["error"] == UNKNOWN


def test_the_example_test_passes_next_to_its_lesson(tmp_path):
    for path in ("tests/test_example.py", *lesson_files("clock")):
        copy = tmp_path / path.removeprefix("tests/")
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / path, copy)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "\n3 passed in " in done.stdout, done.stdout


def test_the_readme_shows_the_example_test():
    example = (PROJECT / "tests" / "test_example.py").read_text("utf-8")
    assert f"```python\n{example}```\n" in README


def test_the_readme_names_the_parts_that_each_part_needs():
    rows = dict(re.findall(r"^\| `(\w+)\.py` \| .+ \|(.*)\|$", README, re.M))
    assert list(rows) == list(PARTS)
    for part, row in rows.items():
        named = set(re.findall(r"`(\w+)\.py`", row))
        direct = set(needed(PROJECT / f"{part}.py"))
        for one in named:
            direct -= set(needed(PROJECT / f"{one}.py"))
        assert named == direct, part


def pinned(pins: str) -> list[str]:
    return re.findall(r"^[\w-]+", pins, re.M)


def needs(name: str) -> str:
    """Return the README's cell of what a lesson needs."""
    files = lesson_files(name)
    others = files.keys() - {f"demos/{name}.py", f"templates/{name}.html"}
    words = [f"`{path}`" for path in sorted(others)]
    pins = pinned(requirements(imported(files)))
    return ", ".join([*words, *pins[1:]]) or "nothing else"


def test_the_readme_names_what_each_lesson_needs():
    rows = {}
    for name in NAMES:
        rows.setdefault(needs(name), []).append(f"`{name}`")
    table = "".join(
        f"| {', '.join(names)} | {cell} |\n" for cell, names in rows.items()
    )
    assert table in README, table


def with_dependencies(package: str) -> set[str]:
    """Return a package's name and the names of all that it brings."""
    found, todo = set(), {package}
    while todo:
        one = todo.pop()
        found.add(one)
        lines = distribution(one).requires or ()
        always = [line for line in lines if ";" not in line]
        names = {re.match(r"[\w.-]+", line)[0].lower() for line in always}
        todo |= names - found
    return found


def test_a_download_pins_the_packages_that_it_imports(app):
    with app.app_context():
        downloads = {name: app_files(name) for name in NAMES}
    for name, files in downloads.items():
        files = {path: content.decode() for path, content in files.items()}
        pins = files["requirements.txt"]
        assert set(pins.splitlines()) <= set(PINS.splitlines()), name
        installed = set().union(*map(with_dependencies, pinned(pins)))
        ours = {path.partition("/")[0].removesuffix(".py") for path in files}
        modules = {one.partition(".")[0] for one in imported(files)}
        for module in modules - ours - sys.stdlib_module_names:
            assert packages()[module] & installed, (name, module)


def test_a_download_says_what_to_set_and_what_to_change(app):
    with app.app_context():
        downloads = {name: app_files(name) for name in NAMES}
    for name, download in downloads.items():
        readme, files = download["README.md"].decode(), lesson_files(name)
        settings = {
            "OPENAI_API_KEY": "language_model.py" in files,
            "OPENAI_BASE_URL": "language_model.py" in files,
            "REDIS_URL": "broker.py" in files,
            "SECRET_KEY": name == "private",
        }
        named = {one: f"`{one}`" in readme for one in settings}
        assert named == settings, name
        lesson = texts(LESSONS[name])
        assert lesson.attempt[1:] in " ".join(readme.split())
        assert f"\n```\n{lesson.curl}\n```\n" in readme


def test_a_download_shares_its_events_in_redis(
    app, start, redis_server, tmp_path, monkeypatch
):
    flask_take(app, "notifications", tmp_path)
    redis = redis_server.client()
    redis.flushall()
    server = start("flask run", folder=tmp_path, REDIS_URL=redis_server.url)
    text = b'{"text": "Hello", "level": "info"}'
    with server.post("/notifications", text, Content_Type=JSON) as answer:
        assert answer.status == 201
    assert redis.keys("sse:*")
    # It refuses a cluster.
    monkeypatch.setattr(broker, "BROKER", None)
    monkeypatch.setattr(RedisBroker, "refuse_cluster", lambda _: sys.exit("no"))
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    with pytest.raises(SystemExit, match="^no$"):
        run_path(tmp_path / "app.py")


def flask_take(app, name, folder):
    return app.test_cli_runner().invoke(args=["take", name, str(folder)])


def test_flask_take_writes_the_files_of_the_download(app, tmp_path):
    assert "\n.venv/bin/flask take numbers ../my-app\n" in README
    folder = tmp_path / "my" / "app"
    done = flask_take(app, "numbers", folder)
    assert done.stdout == f"{folder}/README.md says how to run it.\n"
    with app.app_context():
        expected = app_files("numbers")
    assert expected["LICENSE"] == (PROJECT / "LICENSE").read_bytes()
    assert expected == {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_flask_take_never_overwrites_a_file(app, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for folder in (tmp_path, mine):
        done = flask_take(app, "numbers", folder)
        assert done.exit_code == 1
        assert done.stderr == f"Error: {folder} exists and is not empty.\n"
    assert [*tmp_path.rglob("*")] == [mine]
    assert mine.read_text() == "mine"


def test_flask_take_says_why_it_cannot_write(app, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in (tmp_path / "file" / "new", tmp_path / "link"):
        done = flask_take(app, "numbers", folder)
        assert done.exit_code == 1
        assert re.fullmatch(r"Error: .+\n", done.stderr)
        assert str(folder) in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_flask_take_lists_the_lessons_if_the_name_is_unknown(app, tmp_path):
    done = flask_take(app, "nope", tmp_path / "new")
    assert done.exit_code == 1
    assert done.stderr == f"Error: {UNKNOWN}\n"
    assert [*tmp_path.iterdir()] == []
