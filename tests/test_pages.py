import html
import re

import pytest
from conftest import NAMES, PROJECT
from event_streams import DIFFERENCES, LEAST_WAITS_MS
from selectolax.lexbor import LexborHTMLParser

from demos import LESSONS
from website.code import prose
from website.needs import lesson_files


def code_panel(page, name):
    panel = re.search(
        rf'<code id="{re.escape(name)}">(.*?)</code>', page, re.DOTALL
    ).group(1)
    return html.unescape(re.sub("<[^>]+>", "", panel))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_and_copies_the_files_that_run(client, name):
    page = client.get(f"/demos/{name}").text
    assert (PROJECT / "templates" / f"{name}.html").read_text("utf-8") in page
    copied = re.findall('data-copies="(.*?)"', page)
    needed = {path for path in lesson_files(name) if "/" in path}
    assert set(copied) == {*needed, *LESSONS[name].also_shown, "curl"}
    assert f'<a href="/demos/{name}.zip" download>' in page
    for path in copied:
        assert page.count(f'id="{path}"') == 1
    assert foreign(page) == []


def foreign(page):
    """Return the URLs of other sites from which a page loads something."""
    loaded = re.findall(r'<\w[^<>]* (?:src|href)="([^"]*)"', page)
    assert loaded
    return [url for url in loaded if url and url[0] not in "/#"]


def test_the_catalogue_loads_nothing_from_other_sites(client):
    assert foreign(client.get("/").text) == []


def test_curl_line_contains_the_requested_host(client):
    page = client.get("/demos/hello", base_url="http://pi.localhost:8080").text
    curl = code_panel(page, "curl")
    assert curl == "curl -N http://pi.localhost:8080/stream/hello"


def test_the_cheat_sheet_links_to_every_lesson(client):
    page = client.get("/cheatsheet").text
    start, end = page.index("Common problems"), page.index("Browser diff")
    pitfalls = page[start:end]
    assert set(re.findall('href="/demos/(.*?)"', pitfalls)) == set(NAMES)
    for pitfall in re.findall("<li>(.*?)</li>", pitfalls, re.DOTALL):
        assert len(re.findall("<b>.+:</b>", pitfall)) == 1
        assert len(re.findall("<a href", pitfall)) == 1


def test_the_cheat_sheet_lists_the_known_differences_of_each_engine(client):
    table = LexborHTMLParser(client.get("/cheatsheet").text).css_first("table")
    rows = {}
    for row in table.css("tbody tr"):
        what, *cells = [cell.inner_html for cell in row.css("th, td")]
        rows[what] = dict(zip(DIFFERENCES, cells, strict=True))
    known = {str(prose(one)) for all in DIFFERENCES.values() for one in all}
    others = ("default reconnection time", "first paint of a page")
    assert rows.keys() == known | {*others, str(prose("`retry` under 500 ms"))}
    for engine, differences in DIFFERENCES.items():
        has = {what for what in known if rows[what][engine] != "–"}
        assert has == {str(prose(what)) for what in differences}, engine
    for engine, (default_ms, _) in LEAST_WAITS_MS.items():
        shown = rows["default reconnection time"][engine]
        assert shown == f"{default_ms // 1000} s"


@pytest.mark.parametrize(
    ("path", "accept", "media_type"),
    [
        ("/nowhere", "text/html,*/*;q=0.8", "text/html"),
        ("/nowhere", "*/*", "application/json"),
        ("/nowhere", "text/event-stream", "application/json"),
        ("/jobs/nowhere", "text/html,*/*;q=0.8", "application/json"),
    ],
)
def test_an_error_is_html_for_pages_and_json_for_others(
    client, path, accept, media_type
):
    response = client.get(path, headers={"Accept": accept})
    assert response.status_code == 404
    assert response.mimetype == media_type


def test_an_error_keeps_the_headers_of_its_status(client):
    response = client.post("/sse")
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]
    assert response.mimetype == "application/json"


def test_an_unknown_lesson_is_a_404_that_names_it(client):
    response = client.get("/demos/nope", headers={"Accept": "text/html"})
    assert response.status_code == 404
    assert "There is no lesson &#39;nope&#39;." in response.text
    assert "<h1>Not Found</h1>" in response.text
