"""The FAQ: its page, its links, and its code."""

import html
import os
import re
import subprocess
import sys
from functools import partial

import npm
import pytest
from conftest import PROJECT, read_until
from playwright.sync_api import expect

README = (PROJECT / "README.md").read_text("utf-8")
SECTION = README.partition("\n## FAQ\n")[2].partition("\n## ")[0]
ANSWERS = dict(re.findall(r"^### (.+)\n\n((?:(?!###).*\n?)+)", SECTION, re.M))
HTMX = "4.0.1"
HTMX_PAGE = """\
<!doctype html>
<link rel="icon" href="data:,">
<script>
  addEventListener("htmx:sse:close", ({ detail }) => {
    document.title = `closed by a ${detail.reason}`;
  });
</script>
"""
APP = """\
import os

from flask import Flask, request

import broker
from redis_broker import RedisBroker
from sse import EventStream

app = Flask(__name__)
broker.BROKER = RedisBroker(os.environ["REDIS_URL"])


@app.get("/orders/<order>")
def stream(order):
    last_event_id = request.headers.get("Last-Event-ID")
    return EventStream(broker.subscribe(f"orders:{order}", last_event_id))
"""


def code(words: str) -> str:
    """Return the code in the answer to the question with these words."""
    (answer,) = (text for name, text in ANSWERS.items() if words in name)
    return re.search(r"^```\w+\n(.+?)^```$", answer, re.M | re.S)[1]


def words(text: str) -> list[str]:
    """Return the words of Markdown or HTML, without the markup."""
    text = re.sub(r"^```\w*$", "", text, flags=re.M)
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
    return text.replace("`", "").split()


@pytest.fixture
def faq(client):
    return client.get("/faq").text


def test_the_page_shows_each_question_and_answer_of_the_readme(faq):
    found = {}
    for section in faq.split("<section>")[1:]:
        text = re.sub("<[^>]+>", "", section.partition("</section>")[0])
        question, _, answer = html.unescape(text).strip().partition("\n")
        found[question] = words(answer)
    wanted = {
        question.replace("`", ""): words(answer)
        for question, answer in ANSWERS.items()
    }
    assert list(found) == list(wanted)
    assert found == wanted


def test_each_question_is_a_target_that_the_page_links_to(faq):
    targets = re.findall('<h2 id="(.+?)">', faq)
    assert len(set(targets)) == len(ANSWERS)
    contents = faq[faq.index("<ul>") : faq.index("</ul>")]
    assert re.findall('href="#(.+?)"', contents) == targets


def test_its_links_work_on_the_page_and_on_github(client, faq):
    targets = re.findall('<h2 id="(.+?)">', faq)
    for answer in ANSWERS.values():
        links = re.findall(r"\]\((.+?)\)", answer)
        assert links, answer
        for link in links:
            assert link[1:] in targets or (PROJECT / link).is_file(), link
    for path in set(re.findall('<a href="([^#].*?)"', faq)):
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("page", ["/", "/cheatsheet", "/demos/hello"])
def test_every_page_links_to_it(client, page):
    assert 'href="/faq"' in client.get(page).text


def test_its_minimal_example_streams():
    program = {"__name__": "app"}
    exec(code("minimal"), program)
    response = program["app"].test_client().get("/clock")
    assert response.content_type == "text/event-stream"
    event = next(response.response)
    assert re.fullmatch(rb"data: .*:\d\d:\d\d 20\d\d\n\n", event)
    response.close()


def test_its_python_client_reads_a_stream(site):
    program = code("from Python").replace("http://127.0.0.1:5000", site.url)
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program], cwd=PROJECT, stdout=-1, text=True
    ) as client:
        lines = [client.stdout.readline() for _ in range(2)]
        client.kill()
    assert [line.split()[0] for line in lines] == ["1", "2"]


def test_another_process_publishes_to_the_clients_of_the_app(
    tmp_path, start, redis_server
):
    (tmp_path / "app.py").write_text(APP)
    settings = {"PYTHONPATH": str(PROJECT), "REDIS_URL": redis_server.url}
    server = start("flask run", folder=tmp_path, **settings)
    with server.get("/orders/42") as client:
        chunks = client.chunks()
        read_until(chunks, b"event: begin\n")
        subprocess.run(
            [sys.executable, "-c", f"{code('Celery')}\nwork(42)"],
            env=os.environ | settings,
            cwd=tmp_path,
            check=True,
        )
        received = read_until(chunks, b'"done":3,"total":3}\n\n')
    done = re.findall(rb'event: progress\ndata: {"done":(\d)', received)
    assert done == [b"1", b"2", b"3"]


@pytest.fixture(scope="module")
def htmx(tmp_path_factory):
    """The folder with the files of htmx."""
    folder = npm.unpack({"htmx.org": HTMX}, tmp_path_factory.mktemp("npm"))
    return folder / "htmx.org/package/dist"


@pytest.fixture
def open_htmx(page, site, htmx):
    """Return a function that opens the page of the answer about htmx."""
    body = HTMX_PAGE + code("htmx")
    page.route(
        "**/htmx",
        lambda route: route.fulfill(body=body, content_type="text/html"),
    )
    for folder, name in (htmx, "htmx.js"), (htmx / "ext", "hx-sse.js"):
        page.route(f"**/static/{name}", partial(serve, folder / name))
    return lambda: page.goto(f"{site.url}/htmx")


def serve(path, route):
    route.fulfill(path=path)


def test_htmx_shows_the_events_of_a_stream(page, open_htmx):
    open_htmx()
    expect(page.locator("p")).to_contain_text("The time is")


def test_htmx_stops_at_the_event_that_ends_the_stream(page, open_htmx):
    stream = "data: <b>Hello</b>\n\nevent: done\ndata:\n\n"
    page.route(
        "**/sse",
        lambda route: route.fulfill(
            body=stream, content_type="text/event-stream"
        ),
    )
    open_htmx()
    expect(page).to_have_title("closed by a message")
    assert page.locator("p b").text_content() == "Hello"
