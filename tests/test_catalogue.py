"""Each lesson consists of three files and one entry in the catalogue."""

import re

import pytest
from conftest import NAMES, PROJECT
from markupsafe import escape

from demos import LESSONS
from website.pages import texts

lessons = pytest.mark.parametrize("name", NAMES)


def source(name):
    return (PROJECT / "demos" / f"{name}.py").read_text("utf-8")


def names_in(folder, ending):
    paths = (PROJECT / folder).glob(f"*{ending}")
    return {path.name.removesuffix(ending) for path in paths}


def test_every_lesson_is_three_files_with_the_same_name():
    assert names_in("demos", ".py") - {"__init__"} == set(NAMES)
    assert names_in("templates", ".html") == set(NAMES)
    assert {f"test_{name}" for name in NAMES} <= names_in("tests", ".py")
    for name, lesson in LESSONS.items():
        assert lesson.module.__name__ == f"demos.{name}"


@lessons
def test_docstring_has_a_title_three_texts_and_a_curl_line(name):
    found = texts(LESSONS[name])
    assert re.fullmatch(r"[A-Z][\w ]+: [^.]+", found.title)
    assert found.shows
    assert found.notice
    assert found.attempt
    assert found.curl.startswith("curl -N ")


@lessons
def test_no_lesson_sends_an_event_of_type_error(name):
    assert 'event="error"' not in source(name)
    assert "event: error" not in source(name)


def test_catalogue_lists_the_lessons_in_order(client):
    page = client.get("/").text
    titles = [texts(lesson).title for lesson in LESSONS.values()]
    places = [page.index(str(escape(title))) for title in titles]
    assert places == sorted(places)
    assert re.findall(r'href="/demos/(\w+)"', page) == NAMES


@lessons
def test_page_links_to_its_neighbours(client, name):
    page = client.get(f"/demos/{name}").text
    place = NAMES.index(name)
    linked = re.findall(r'rel="(prev|next)" href="/demos/(\w+)"', page)
    neighbours = {"prev": NAMES[:place][-1:], "next": NAMES[place + 1 :]}
    assert linked == [
        (rel, names[0]) for rel, names in neighbours.items() if names
    ]
