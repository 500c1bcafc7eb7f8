"""The running line: comments that name the line that yielded a chunk."""

import re
from types import SimpleNamespace

from flask import Flask, Response
from markupsafe import Markup

from demos import completion, hello, html, numbers, thinking
from sse import EventStream, keep_alive
from website import lines
from website.code import read

ASKED = {"Show-Lines": "true"}
COMMENT = re.compile(rb"^: demos/\w+\.py \d+\n", re.M)


def line(name: str, text: str) -> int:
    """Return the number of the only line of a lesson with this text."""
    found = [
        number
        for number, line in enumerate(
            read(f"demos/{name}.py").splitlines(), start=1
        )
        if line.strip().startswith(text)
    ]
    (number,) = found
    return number


def body(response, headers=ASKED) -> bytes:
    """Return what an app that adds the comments sends for a response."""
    app = Flask(__name__)
    app.after_request(lines.show_lines)
    app.add_url_rule("/", view_func=lambda: response)
    return app.test_client().get("/", headers=headers).data


def no_sleep(seconds):
    pass


def greeting():
    return Response(hello.hello(0, no_sleep), mimetype="text/event-stream")


def test_names_the_line_of_each_chunk():
    first = line("hello", 'yield "data: Hello')
    second = line("hello", 'yield "data: Are')
    third = line("hello", "yield 'event")
    assert body(greeting()).decode() == (
        f": demos/hello.py {first}\ndata: Hello\n\n"
        f": demos/hello.py {second}\ndata: Are you there?\n\n"
        f": demos/hello.py {third}\n"
        'event: status\ndata: {"msg": "hi"}\n\n'
    )


def test_changes_nothing_unless_the_request_asks_for_it():
    assert body(greeting(), {}) == COMMENT.sub(b"", body(greeting()))


def test_adds_html_comments_to_a_page():
    number = line("html", "yield HEAD")
    page = html.page("", {"mail": 0})
    response = Response(page, mimetype="text/html")
    assert (
        body(response)
        .decode()
        .startswith(f"<!-- demos/html.py {number} -->\n<!doctype html>")
    )


def test_leaves_other_media_types_unchanged():
    page = Response((part for part in ("a", "b")), mimetype="text/plain")
    assert body(page) == b"ab"


def test_looks_through_yield_from():
    think = thinking.think("Why", 0, 0, no_sleep)
    number = line("thinking", 'yield Event(text, event="thinking"')

    def outer():
        yield from think

    stream = outer()
    next(stream)
    assert lines.running_line(stream) == f"demos/thinking.py {number}"


def test_names_the_yield_of_a_lesson_that_reads_through_keep_alive():
    texts = keep_alive((text for text in ["Hello"]), 1)
    stream = completion.complete(texts)
    next(stream)
    number = line("completion", "yield Event(text, id=id)")
    assert lines.running_line(stream) == f"demos/completion.py {number}"
    stream.close()


def test_ignores_generators_outside_the_lessons():
    def other():
        yield "data: 1\n\n"

    stream = other()
    next(stream)
    assert lines.running_line(stream) is None
    assert body(EventStream(iter([]))) == b":\n"


def test_adds_no_comment_inside_an_unfinished_line():
    chunks = [b"data: one", b" line\n\n", b"data: 2\n\n"]

    def relayed():
        yield from chunks

    code = relayed.__code__.replace(co_filename=hello.__file__)
    stream = type(relayed)(code, {}, closure=relayed.__closure__)()
    number = code.co_firstlineno + 1
    comment = f": demos/hello.py {number}\n".encode()
    assert b"".join(lines.with_lines(stream, ": {}\n")) == (
        comment + b"data: one line\n\n" + comment + b"data: 2\n\n"
    )


def test_closes_the_generator_when_the_client_disconnects():
    cable = SimpleNamespace(cuts=0)
    stream = numbers.numbers(1, 0, cable, sleep=no_sleep)
    app = Flask(__name__)
    app.after_request(lines.show_lines)
    app.add_url_rule("/", view_func=lambda: EventStream(stream))
    response = app.test_client().get("/", headers=ASKED)
    response.close()
    assert stream.gi_frame is None


def test_the_site_sends_the_comments(client):
    response = client.get("/real-time-updates", headers=ASKED)
    chunks = response.iter_encoded()
    seen = b""
    while b"data:" not in seen:
        seen += next(chunks)
    assert COMMENT.findall(seen)
    response.close()


def test_the_lesson_shows_the_line(client):
    page = Markup(client.get("/demos/hello").text)
    number = line("hello", 'yield "data: Hello')
    assert f'id="demos/hello.py:{number}"' in page
