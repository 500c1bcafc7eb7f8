"""The pages: the catalogue, the cheat sheet, the FAQ, and the lessons."""

import re
from typing import NamedTuple

from flask import (
    Blueprint,
    Response,
    abort,
    jsonify,
    make_response,
    render_template,
    request,
)
from markupsafe import Markup
from selectolax.lexbor import LexborHTMLParser
from werkzeug.exceptions import HTTPException

from demos import LESSONS, PARTS, Lesson
from website.code import code, definitions, line_of, prose, read
from website.faq import answers
from website.lines import show_lines
from website.needs import with_imports
from website.pictures import comparison, part_picture
from website.security import content_security_policy

MEDIA_TYPES = ("application/json", "text/html")

bp = Blueprint("pages", __name__, template_folder="templates")


class Texts(NamedTuple):
    """What a page says about a lesson: all of it is in the lesson's docstring,
    in this order.
    """

    name: str
    title: str
    shows: str
    notice: str
    attempt: str
    curl: str

    @property
    def short(self) -> str:
        """The title's first words, which name the lesson."""
        return self.title.partition(":")[0]

    @property
    def summary(self) -> str:
        """The first sentence."""
        return self.shows.partition(". ")[0].removesuffix(".") + "."

    @property
    def details(self) -> str:
        """The sentences after the first, "" for none."""
        return self.shows.partition(". ")[2]

    @property
    def number(self) -> int:
        return list(LESSONS).index(self.name) + 1

    @property
    def stream_path(self) -> str:
        """The path and query that the curl line requests last."""
        return re.findall(r'http://[^/]+([^\s")]+)', self.curl)[-1]

    @property
    def attempt_snippets(self) -> list[str]:
        """The pieces of code in the Try, of which one may be in the lesson."""
        return re.findall("`(.+?)`", self.attempt)

    @property
    def stream_body(self) -> str | None:
        """The JSON that this request posts, None if it is a GET."""
        last = self.curl.rpartition("--next")[2]
        body = re.search("--json '(.+?)'", last)
        return body and body.group(1)


def texts(lesson: Lesson) -> Texts:
    """Read a lesson's docstring."""
    title, *blocks = re.split(r"\n\n+", lesson.module.__doc__.strip())
    shows, notice, attempt, curl = (" ".join(block.split()) for block in blocks)
    return Texts(
        lesson.name,
        title,
        shows,
        notice.removeprefix("Notice: "),
        attempt.removeprefix("Try: "),
        curl,
    )


@bp.get("/")
def catalogue():
    parts = [
        (part, [*map(texts, part.lessons)], part_picture(part))
        for part in PARTS
    ]
    return render_template(
        "catalogue.html",
        wide=comparison("wide"),
        narrow=comparison("narrow"),
        parts=parts,
    )


@bp.get("/cheatsheet")
def cheatsheet():
    return render_template("cheatsheet.html")


@bp.get("/faq")
def faq():
    return render_template("faq.html", answers=answers())


@bp.get("/demos/<name>")
def page(name: str):
    if name not in LESSONS:
        abort(404, f"There is no lesson {name!r}.")
    lesson, place = LESSONS[name], list(LESSONS).index(name)
    neighbours = [None, *map(texts, LESSONS.values()), None]
    live = read(f"templates/{name}.html")
    current = texts(lesson)
    path = f"demos/{name}.py"
    marked = line_of(current.attempt_snippets, path)
    used = [f"demos/{one}.py" for one in lesson.uses]
    browser_files = with_imports({f"templates/{name}.html": live})
    html = render_template(
        "demo.html",
        lesson=current,
        part=next(part for part in PARTS if lesson in part.lessons),
        count=len(LESSONS),
        curl=current.curl.replace("http://127.0.0.1:5000/", request.url_root),
        previous=neighbours[place],
        next=neighbours[place + 2],
        live=Markup(live),
        wire_beside=lesson.wire_beside,
        marked=marked,
        server_files=[
            code(path, marked),
            *map(code, (*used, *lesson.also_shown)),
        ],
        browser_files=[*map(code, browser_files)],
        definitions=[*definitions(path)],
    )
    scripts = [node.text() for node in LexborHTMLParser(live).css("script")]
    policy = content_security_policy(scripts)
    return html, {"Content-Security-Policy": policy}


bp.add_app_template_filter(prose)
bp.after_app_request(show_lines)


@bp.app_errorhandler(HTTPException)
def explain(error: HTTPException) -> Response:
    """Report an error: in JSON from streams and APIs, on a page from pages."""
    wants_page = request.accept_mimetypes.best_match(MEDIA_TYPES) == "text/html"
    if wants_page and request.blueprint not in LESSONS:
        response = make_response(render_template("error.html", error=error))
    else:
        response = jsonify(error=error.description)
    response.status_code = error.code
    for name, value in error.get_headers():
        response.headers.setdefault(name, value)
    return response
