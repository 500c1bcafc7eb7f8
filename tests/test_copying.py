"""Copied files work in another app, as the README promises."""

import re
import subprocess
import sys
import zipfile
from contextlib import closing
from importlib.metadata import distribution
from io import BytesIO

import pytest
from conftest import NAMES, PROJECT, Server, media_type, open_stream, wait_until
from parts import PARTS, needed
from upstream import DONE, FINISH, ROLE, Upstream, delta, stream

from demos import LESSONS
from website.take import app_files, imported, lesson_files

README = (PROJECT / "README.md").read_text("utf-8")
LINES = "one\n\n  two"
"""Text whose line breaks and spaces a page must show."""

SHOWN = {
    "document": LINES,
    "markdown": "one\n\ntwo",  # two paragraphs
    "numbers": r"id 2: \d+\nid 1: \d+\n",
    "post": r"\nmember: .+\n",
}
"""What a page shows, as a pattern, unless its text comes from the upstream."""
UNKNOWN = f"There is no lesson 'nope'. There are {', '.join(NAMES)}."


@pytest.fixture
def copied(request, client, tmp_path):
    """The download of a lesson, unpacked in an empty folder and started."""
    name = request.param
    data = BytesIO(client.get(f"/demos/{name}.zip").data)
    zipfile.ZipFile(data).extractall(tmp_path)
    with Upstream(stream(ROLE, delta(LINES), FINISH, DONE)) as upstream:
        server = Server(
            "flask run", folder=tmp_path / name, OPENAI_BASE_URL=upstream.url
        )
        yield name, server
        server.stop()


def shown(page) -> str:
    return "\n".join(frame.inner_text("body") for frame in page.frames)


def is_stream(name: str):
    return lambda one: one.headers.get("content-type") == media_type(name)


@pytest.mark.parametrize("copied", NAMES, indirect=True)
def test_a_download_runs_and_its_page_shows_the_stream(copied, page):
    name, server = copied
    with closing(open_stream(server, name)) as client:
        assert client.header("Content-Type") == media_type(name)
        assert next(client.chunks())
    page.goto(f"{server.url}/")
    before = shown(page)
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
