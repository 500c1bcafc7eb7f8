"""The rule of the house: three files and one entry make a lesson."""

import ast
import re

import pytest
from conftest import NAMES, PROJECT
from markupsafe import escape

from demos import DEMOS
from pages import lesson

MODULES = (
    "sse",
    "broker",
    "background",
    "language_model",
    "growing_markdown",
)

lessons = pytest.mark.parametrize("demo", DEMOS, ids=NAMES)


def source(demo):
    return (PROJECT / "demos" / f"{demo.bp.name}.py").read_text("utf-8")


def names_in(folder, ending):
    paths = (PROJECT / folder).glob(f"*{ending}")
    return {path.name.removesuffix(ending) for path in paths}


def test_every_demo_file_is_a_lesson():
    assert names_in("demos", ".py") - {"__init__"} == set(NAMES)


def test_every_lesson_has_its_live_part_and_its_test():
    assert set(NAMES) <= names_in("templates", ".html")
    assert {f"test_{name}" for name in NAMES} <= names_in("tests", ".py")


def test_every_other_template_belongs_to_the_frame():
    frame = {"base", "catalogue", "cheatsheet", "demo", "error"}
    assert names_in("templates", ".html") == set(NAMES) | frame


@lessons
def test_one_name_everywhere(demo):
    assert demo.__name__ == f"demos.{demo.bp.name}"


@lessons
def test_a_lesson_fits_one_screen(demo):
    code = source(demo).replace(demo.__doc__, "")
    assert len(code.splitlines()) <= 85


@lessons
def test_no_line_is_wider_than_a_projector(demo):
    live = PROJECT / "templates" / f"{demo.bp.name}.html"
    lines = source(demo).splitlines() + live.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 80] == []


@lessons
def test_imports_only_what_stands_below_it(demo):
    ours = names_in(".", ".py") | {"demos"}
    for node in ast.walk(ast.parse(source(demo))):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ours or node.module in MODULES
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            assert names & ours <= set(MODULES)


@lessons
def test_docstring_has_a_title_three_texts_and_a_curl_line(demo):
    told = lesson(demo)
    assert re.fullmatch(r"[A-Z][\w ]+: [^.]+", told.title)
    assert told.shows
    assert told.notice
    assert told.attempt
    assert told.curl.startswith("curl -N ")


@lessons
def test_never_sends_the_type_that_the_browser_keeps_for_itself(demo):
    assert 'event="error"' not in source(demo)
    assert "event: error" not in source(demo)


def test_catalogue_lists_the_lessons_in_order(client):
    page = client.get("/").text
    told = [lesson(demo) for demo in DEMOS]
    places = [page.index(str(escape(lesson.title))) for lesson in told]
    assert places == sorted(places)
    assert re.findall(r'href="/demos/(\w+)"', page) == NAMES


@lessons
def test_page_links_to_its_neighbours(client, demo):
    page = client.get(f"/demos/{demo.bp.name}").text
    place = NAMES.index(demo.bp.name)
    linked = re.findall(r'rel="(prev|next)" href="/demos/(\w+)"', page)
    neighbours = {"prev": NAMES[:place][-1:], "next": NAMES[place + 1 :]}
    assert linked == [
        (rel, names[0]) for rel, names in neighbours.items() if names
    ]
