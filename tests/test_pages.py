import html
import re

import pytest
from conftest import NAMES, PROJECT

from demos import DEMOS
from pages import lesson, prose


def code_panel(page, name):
    panel = re.search(
        rf'<code id="{name}">(.*?)</code>', page, re.DOTALL
    ).group(1)
    return html.unescape(re.sub("<[^>]+>", "", panel))


@pytest.mark.parametrize("name", NAMES)
def test_code_panels_show_the_files_that_run(client, name):
    page = client.get(f"/demos/{name}").text
    for panel, path in {
        "server": f"demos/{name}.py",
        "browser": f"templates/{name}.html",
    }.items():
        text = (PROJECT / path).read_text("utf-8")
        assert code_panel(page, panel).strip() == text.strip()
        assert path in page


@pytest.mark.parametrize("name", NAMES)
def test_the_live_part_is_its_file_to_the_letter(client, name):
    live = (PROJECT / "templates" / f"{name}.html").read_text("utf-8")
    assert live in client.get(f"/demos/{name}").text


def test_curl_line_names_the_host_that_was_asked(client):
    page = client.get("/demos/hello", base_url="http://pi.local:8080").text
    curl = code_panel(page, "curl")
    assert curl == "curl -N http://pi.local:8080/stream/hello"


def test_nothing_is_loaded_from_elsewhere(client):
    for path in ["/", *(f"/demos/{name}" for name in NAMES)]:
        loaded = re.findall(
            r'<\w[^<>]* (?:src|href)="([^"]*)"', client.get(path).text
        )
        assert loaded
        assert [url for url in loaded if not url.startswith("/")] == []


def test_summary_is_the_first_sentence():
    told = lesson(DEMOS[0])
    assert told.summary.endswith(".")
    assert told.shows.startswith(told.summary)


def test_prose_is_escaped_and_knows_code():
    assert prose("`a < b` & c") == "<code>a &lt; b</code> &amp; c"
