"""The promise of the README: what is copied works where it is put."""

import shutil
from contextlib import closing

import pytest
from conftest import NAMES, PROJECT, Server, media_type, open_stream

from demos import DEMOS

NEEDS = {
    "completion": ["language_model.py"],
    "chat": ["language_model.py"],
    "post": ["static/event-stream.js"],
    "markdown": ["language_model.py", "growing_markdown.py"],
    "notifications": ["broker.py"],
    "prices": ["broker.py", "static/chart.js"],
    "progress": ["broker.py", "background.py"],
    "document": ["broker.py"],
    "resume": ["broker.py", "background.py", "language_model.py"],
    "six_connections": ["demos/clock.py"],
}
APP = """\
from flask import Flask, send_from_directory
from demos.{name} import bp
app = Flask(__name__)
app.register_blueprint(bp)
app.add_url_rule("/", view_func=lambda: send_from_directory(".", "page.html"))
"""
CLOCK = """\
from demos import clock
app.register_blueprint(clock.bp)
"""
PAGE = """\
<!doctype html>
<link rel="icon" href="data:,">
"""


@pytest.fixture
def copied(request, tmp_path):
    """A lesson in an empty folder, and an app of a few lines."""
    name = request.param
    (tmp_path / "demos").mkdir()
    (tmp_path / "static").mkdir()
    for path in ["sse.py", f"demos/{name}.py", *NEEDS.get(name, [])]:
        shutil.copy(PROJECT / path, tmp_path / path)
    other = CLOCK if name == "six_connections" else ""
    (tmp_path / "app.py").write_text(APP.format(name=name) + other)
    live = (PROJECT / "templates" / f"{name}.html").read_text("utf-8")
    (tmp_path / "page.html").write_text(PAGE + live, "utf-8")
    server = Server("flask run", folder=tmp_path)
    yield name, server
    server.stop()


@pytest.mark.parametrize("copied", NAMES, indirect=True)
def test_a_copied_lesson_streams_and_its_page_runs(copied, page):
    name, server = copied
    demo = DEMOS[NAMES.index(name)]
    with closing(open_stream(server, demo)) as client:
        assert client.header("Content-Type") == media_type(demo)
        assert next(client.chunks())
    page.goto(f"{server.url}/")
    page.locator("#start, #form > button").first.click()
    page.get_by_text("open", exact=True).first.wait_for()
