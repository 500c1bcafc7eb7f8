import html
import re

import pytest
from conftest import NAMES, PROJECT

from website.pages import prose


def code_panel(page, name):
    panel = re.search(
        rf'<code id="{re.escape(name)}">(.*?)</code>', page, re.DOTALL
    ).group(1)
    return html.unescape(re.sub("<[^>]+>", "", panel))


@pytest.mark.parametrize("name", NAMES)
def test_code_panels_show_the_running_code(client, name):
    page = client.get(f"/demos/{name}").text
    paths = re.findall('data-copies="(.*?)"', page)
    assert {f"demos/{name}.py", f"templates/{name}.html"} < set(paths)
    for path in paths[1:]:  # after the curl line
        text = (PROJECT / path).read_text("utf-8")
        assert code_panel(page, path).strip() == text.strip()


@pytest.mark.parametrize("name", NAMES)
def test_the_live_part_is_its_file_unchanged(client, name):
    live = (PROJECT / "templates" / f"{name}.html").read_text("utf-8")
    assert live in client.get(f"/demos/{name}").text


def test_curl_line_contains_the_requested_host(client):
    page = client.get("/demos/hello", base_url="http://pi.localhost:8080").text
    curl = code_panel(page, "curl")
    assert curl == "curl -N http://pi.localhost:8080/stream/hello"


def test_nothing_is_loaded_from_elsewhere(client):
    for path in ["/", *(f"/demos/{name}" for name in NAMES)]:
        loaded = re.findall(
            r'<\w[^<>]* (?:src|href)="([^"]*)"', client.get(path).text
        )
        assert loaded
        assert [url for url in loaded if not url.startswith("/")] == []


def test_prose_is_escaped_and_may_contain_code():
    assert prose("`a < b` & c") == "<code>a &lt; b</code> &amp; c"


def test_the_cheat_sheet_links_to_every_lesson(client):
    page = client.get("/cheatsheet").text
    pitfalls = page[page.index("Pitfalls") :]
    assert set(re.findall('href="/demos/(.*?)"', pitfalls)) == set(NAMES)
    for pitfall in re.findall("<li>(.*?)</li>", pitfalls, re.DOTALL):
        assert len(re.findall("<b>.+:</b>", pitfall)) == 1
        assert len(re.findall("<a href", pitfall)) == 1


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/html,*/*;q=0.8", "text/html"),
        ("*/*", "application/json"),
        ("text/event-stream", "application/json"),
    ],
)
def test_an_error_is_html_for_pages_and_json_for_others(
    client, accept, media_type
):
    response = client.get("/nowhere", headers={"Accept": accept})
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
