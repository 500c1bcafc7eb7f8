"""Copied files work in another app, as the README promises."""

import re
import shutil
from contextlib import closing

import pytest
from conftest import NAMES, PROJECT, Server, media_type, open_stream
from parts import PARTS, needed
from upstream import ROLE, Upstream, delta, stream

from demos import LESSONS

README = (PROJECT / "README.md").read_text("utf-8")
APP = """\
from flask import Flask, send_from_directory
from demos.{name} import bp
app = Flask(__name__)
app.register_blueprint(bp)
app.add_url_rule("/", view_func=lambda: send_from_directory(".", "page.html"))
"""
BESIDE = {"six_connections": "clock", "client": "numbers"}
"""Lessons whose page reads the stream of another one."""

MORE = """\
from demos import {beside}
app.register_blueprint({beside}.bp)
"""
PAGE = """\
<!doctype html>
<link rel="icon" href="data:,">
"""


def parts_of(name: str) -> list[str]:
    return needed(PROJECT / "demos" / f"{name}.py")


@pytest.fixture
def copied(request, tmp_path):
    """A lesson and its parts in an empty folder, with a minimal app."""
    name = request.param
    (tmp_path / "demos").mkdir()
    (tmp_path / "static").mkdir()
    beside = BESIDE.get(name)
    lessons = [name, beside] if beside else [name]
    parts = {part for lesson in lessons for part in parts_of(lesson)}
    paths = [f"{part}.py" for part in parts]
    paths += [f"demos/{lesson}.py" for lesson in lessons]
    also = LESSONS[name].also_shown
    paths += [path for path in also if path.startswith("static/")]
    for path in paths:
        shutil.copy(PROJECT / path, tmp_path / path)
    more = MORE.format(beside=beside) if beside else ""
    (tmp_path / "app.py").write_text(APP.format(name=name) + more)
    live = (PROJECT / "templates" / f"{name}.html").read_text("utf-8")
    (tmp_path / "page.html").write_text(PAGE + live, "utf-8")
    with Upstream(stream(ROLE, delta("Hello"), end="silent")) as upstream:
        server = Server(
            "flask run", folder=tmp_path, OPENAI_BASE_URL=upstream.url
        )
        yield name, server
        server.stop()


@pytest.mark.parametrize("copied", NAMES, indirect=True)
def test_a_copied_lesson_streams_and_its_page_runs(copied, page):
    name, server = copied
    with closing(open_stream(server, name)) as client:
        assert client.header("Content-Type") == media_type(name)
        assert next(client.chunks())
    page.goto(f"{server.url}/")
    with page.expect_response(
        lambda one: one.headers.get("content-type") == media_type(name)
    ) as streaming:
        page.locator("#start, #form > button").first.click()
    assert streaming.value.status == 200


def test_the_readme_names_the_parts_that_each_part_needs():
    rows = dict(re.findall(r"^\| `(\w+)\.py` \| .+ \|(.*)\|$", README, re.M))
    assert list(rows) == list(PARTS)
    for part, row in rows.items():
        named = set(re.findall(r"`(\w+)\.py`", row))
        direct = set(needed(PROJECT / f"{part}.py"))
        for one in named:
            direct -= set(needed(PROJECT / f"{one}.py"))
        assert named == direct, part


def test_the_readme_names_the_parts_that_each_lesson_needs():
    listed, same = {}, set()
    for row in re.findall(r"^\| (`\w+`.*?) \| (.*) \|$", README, re.M):
        names = re.findall(r"`(\w+)`", row[0])
        if not set(names) <= set(NAMES):
            continue
        parts = set(re.findall(r"`(\w+)\.py`", row[1]))
        same = parts | (same if row[1].startswith("the same") else set())
        listed |= dict.fromkeys(names, same)
    assert listed == {name: set(parts_of(name)) for name in NAMES}
