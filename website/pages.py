"""The pages: the catalogue, the cheat sheet, and one page for each lesson."""

import re
from pathlib import Path
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
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from selectolax.lexbor import LexborHTMLParser
from werkzeug.exceptions import HTTPException

from demos import LESSONS, PARTS, Lesson
from website.pictures import comparison, part_picture
from website.security import content_security_policy

FOLDER = Path(__file__).parents[1]
BROWSER_FOLDERS = ("templates/", "static/")
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
    def number(self) -> int:
        return list(LESSONS).index(self.name) + 1

    @property
    def stream_path(self) -> str:
        """The path and query that the curl line requests."""
        return re.search(r'http://[^/]+([^\s")]+)', self.curl).group(1)

    @property
    def stream_body(self) -> str | None:
        """The JSON that the curl line posts, None if it only gets."""
        body = re.search("--json '(.+?)'", self.curl)
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


@bp.get("/demos/<name>")
def page(name: str):
    if name not in LESSONS:
        abort(404, f"There is no lesson {name!r}.")
    lesson, place = LESSONS[name], list(LESSONS).index(name)
    neighbours = [None, *map(texts, LESSONS.values()), None]
    live = read(f"templates/{name}.html")
    files = [f"demos/{name}.py", f"templates/{name}.html", *lesson.also_shown]
    in_browser = [path for path in files if path.startswith(BROWSER_FOLDERS)]
    current = texts(lesson)
    html = render_template(
        "demo.html",
        lesson=current,
        part=next(part for part in PARTS if lesson in part.lessons),
        count=len(LESSONS),
        curl=current.curl.replace("http://127.0.0.1:5000/", request.url_root),
        previous=neighbours[place],
        next=neighbours[place + 2],
        live=Markup(live),
        server_files={
            path: highlighted(path) for path in files if path not in in_browser
        },
        browser_files={path: highlighted(path) for path in in_browser},
    )
    scripts = [node.text() for node in LexborHTMLParser(live).css("script")]
    policy = content_security_policy(scripts)
    return html, {"Content-Security-Policy": policy}


def read(path: str) -> str:
    return (FOLDER / path).read_text("utf-8")


@bp.app_template_filter()
def prose(text: str) -> Markup:
    """Return text as HTML, with `code` between backticks."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


def highlighted(path: str) -> Markup:
    """Return a file as HTML: its own text, in spans for the stylesheet."""
    lexer = get_lexer_for_filename(path)
    return Markup(highlight(read(path), lexer, HtmlFormatter(nowrap=True)))


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
