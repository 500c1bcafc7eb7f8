"""Each lesson consists of three files and one entry in the catalogue."""

import re

from conftest import NAMES, PROJECT, VIEWPORT
from markupsafe import escape

from demos import LESSONS, PARTS
from website.pages import texts
from website.pictures import part_picture


def names_in(folder, ending):
    paths = (PROJECT / folder).glob(f"*{ending}")
    return {path.name.removesuffix(ending) for path in paths}


def test_every_lesson_is_three_files_with_the_same_name():
    assert names_in("demos", ".py") - {"__init__"} == set(NAMES)
    assert names_in("templates", ".html") == set(NAMES)
    assert {f"test_{name}" for name in NAMES} <= names_in("tests", ".py")
    for name, lesson in LESSONS.items():
        assert lesson.module.__name__ == f"demos.{name}"


def test_docstring_has_a_title_three_texts_and_a_curl_line():
    for name, lesson in LESSONS.items():
        found = texts(lesson)
        assert re.fullmatch(r"[A-Z][\w ]+: [^.]+", found.title)
        assert all([found.shows, found.notice, found.attempt]), name
        assert found.curl.startswith("curl -N "), name


def test_no_lesson_sends_an_event_of_type_error():
    for name in NAMES:
        code = (PROJECT / f"demos/{name}.py").read_text("utf-8")
        assert 'event="error"' not in code, name
        assert "event: error" not in code, name


def test_catalogue_lists_the_lessons_in_order(client):
    page = client.get("/").text
    titles = [texts(lesson).title for lesson in LESSONS.values()]
    places = [page.index(str(escape(title))) for title in titles]
    assert places == sorted(places)
    assert re.findall(r'href="/demos/(\w+)"', page) == NAMES
    starts = [NAMES.index(part.lessons[0].name) + 1 for part in PARTS]
    assert list(map(int, re.findall('<ol start="(.+?)">', page))) == starts


def test_catalogue_shows_each_part_with_its_sentence_and_picture(client):
    sections = client.get("/").text.split("<section>")[1:]
    for part, section in zip(PARTS, sections, strict=True):
        assert f"<h2>{escape(part.title)}</h2>" in section
        assert f"<p>{escape(part.about)}</p>" in section
        assert part_picture(part) in section


def test_catalogue_describes_itself_in_the_words_people_search_for(client):
    page = client.get("/").text
    (description,) = re.findall(
        '<meta name="description" content="(.*?)"', page, re.S
    )
    heading = "Server-sent events (SSE) in Flask, by example"
    assert f"<h1>{heading}</h1>" in page
    assert f"<title>{heading}</title>" in page
    assert heading in description


def test_catalogue_fits_on_one_slide(page, site):
    page.set_viewport_size(VIEWPORT)
    page.goto(site.url)
    for part in ("h1", ".lead", "figure", "h2 >> nth=0", "h2 >> nth=1"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= VIEWPORT["height"], part


def test_page_links_to_its_neighbours(client):
    links = []
    for name in NAMES:
        page = client.get(f"/demos/{name}").text
        links.append(re.findall(r'rel="(prev|next)" href="/demos/(\w+)"', page))
    assert links == [
        [
            *(("prev", one) for one in NAMES[:place][-1:]),
            *(("next", one) for one in NAMES[place + 1 :][:1]),
        ]
        for place in range(len(NAMES))
    ]
