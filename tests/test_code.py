import ast
import os
import re

import pytest
from conftest import NAMES, PROJECT
from markupsafe import Markup

import website.code
from demos import LESSONS
from website.code import code, definitions, line_of, prose, read
from website.pages import texts


def text(html: Markup) -> str:
    return Markup(re.sub("<[^>]+>", "", html)).unescape()


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_opens_at_its_first_line_of_code(name):
    path = f"demos/{name}.py"
    shown = code(path)
    start, rest = text(shown.start), text(shown.rest)
    assert start + rest == read(path)
    assert len(start.splitlines()) == shown.folded
    assert start.startswith('"""')
    kinds = {type(node) for node in ast.parse(rest).body}
    assert kinds.isdisjoint({ast.Import, ast.ImportFrom})
    assert re.match(r"[A-Z_]+ = |bp = ", rest)


def test_every_other_file_opens_at_its_first_line():
    for path in ("templates/clock.html", "static/event-stream.js"):
        shown = code(path)
        assert shown.folded == 0
        assert text(shown.rest) == read(path)


def test_each_line_has_a_number_and_an_address():
    shown = code("demos/hello.py")
    html = shown.start + shown.rest
    count = len(read("demos/hello.py").splitlines())
    numbers = [str(number) for number in range(1, count + 1)]
    assert re.findall(r'id="demos/hello.py:(\d+)"', html) == numbers
    assert re.findall(r'data-number="(\d+)"', html) == numbers


def test_the_marked_line_is_the_one_to_change():
    rest = code("demos/hello.py", marked=3).start
    (line,) = re.findall('<span class="line marked".*?\n</span>', rest)
    assert 'data-number="3"' in line


def test_a_changed_file_is_shown_in_its_new_version(monkeypatch, tmp_path):
    monkeypatch.setattr(website.code, "FOLDER", tmp_path)
    path = tmp_path / "a.py"
    for moment, source in enumerate(("first = 1\n", "second = 2\n")):
        path.write_text(source, "utf-8")
        os.utime(path, (moment, moment))
        assert text(code("a.py").rest) == source


@pytest.mark.parametrize("name", NAMES)
def test_a_name_imported_from_a_part_links_to_its_definition(name):
    path = f"demos/{name}.py"
    found = {one.name: one for one in definitions(path)}
    links = re.findall('<a href="#(.+?)">', code(path).start)
    assert sorted(links) == sorted(found)
    for full_name, one in found.items():
        short = full_name.partition(".")[2]
        lines = read(one.path).splitlines()
        first = text(one.html).splitlines()[0]
        assert lines[one.line - 1] == first
        assert not lines[one.line - 2].startswith("@")
        pattern = rf"^(def|class) {short}\b|^{short}\b|^@"
        assert re.search(pattern, first), full_name


@pytest.mark.parametrize("name", NAMES)
def test_the_line_to_change_is_code(name):
    attempt = texts(LESSONS[name]).attempt_snippets
    path = PROJECT / "demos" / f"{name}.py"
    if number := line_of(attempt, f"demos/{name}.py"):
        line = path.read_text("utf-8").splitlines()[number - 1]
        assert any(snippet in line for snippet in attempt)
        assert not line.startswith(("from", "import", '"""'))


def test_prose_is_escaped_and_code_between_backticks_is_marked():
    assert prose("`a < b` & c") == "<code>a &lt; b</code> &amp; c"
