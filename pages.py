"""The pages: the catalogue, and one per lesson, made from its own files."""

import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from flask import Blueprint, abort, g, render_template, request
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename

from demos import DEMOS, PARTS

FOLDER = Path(__file__).parent

bp = Blueprint("pages", __name__)


class Lesson(NamedTuple):
    """What a page tells about a lesson: every part is read from its module."""

    name: str
    number: int
    title: str
    shows: str
    notice: str
    attempt: str
    curl: str

    @property
    def stream_path(self) -> str:
        """Path and query of the stream that the curl line asks for."""
        return re.search(r'http://[^/]+([^\s")]+)', self.curl).group(1)

    @property
    def stream_body(self) -> str | None:
        """The JSON that the curl line posts, None if it only gets."""
        body = re.search("--json '(.+?)'", self.curl)
        return body and body.group(1)


def lesson(demo: ModuleType) -> Lesson:
    """Read a lesson's docstring: title, what it shows, Notice, Try, curl."""
    title, *blocks = re.split(r"\n\n+", demo.__doc__.strip())
    shows, notice, attempt, curl = (" ".join(block.split()) for block in blocks)
    return Lesson(
        demo.bp.name,
        DEMOS.index(demo) + 1,
        title,
        shows,
        notice.removeprefix("Notice: "),
        attempt.removeprefix("Try: "),
        curl,
    )


@bp.get("/")
def catalogue():
    parts = [(part, [*map(lesson, part.demos)]) for part in PARTS]
    return render_template("catalogue.html", parts=parts)


@bp.get("/cheatsheet")
def cheatsheet():
    return render_template("cheatsheet.html")


@bp.get("/demos/<name>")
def page(name: str):
    names = [demo.bp.name for demo in DEMOS]
    if name not in names:
        abort(404, f"There is no lesson {name!r}.")
    place = names.index(name)
    demo = DEMOS[place]
    browser = (FOLDER / "templates" / f"{name}.html").read_text("utf-8")
    g.inline_scripts = scripts(browser)
    current = lesson(demo)
    server_files = [f"demos/{name}.py", *getattr(demo, "SHOWN", ())]
    browser_files = [f"templates/{name}.html", *imported(browser)]
    return render_template(
        "demo.html",
        lesson=current,
        part=next(part for part in PARTS if demo in part.demos),
        count=len(DEMOS),
        curl=current.curl.replace("http://127.0.0.1:5000/", request.url_root),
        previous=lesson(DEMOS[place - 1]) if place else None,
        next=lesson(DEMOS[place + 1]) if place + 1 < len(DEMOS) else None,
        live=Markup(browser),
        server_files={path: highlighted(path) for path in server_files},
        browser_files={path: highlighted(path) for path in browser_files},
    )


@bp.app_template_filter()
def prose(text: str) -> Markup:
    """Return text as HTML, with `code` between backticks."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


def highlighted(path: str) -> Markup:
    """Return a file as HTML: its own text, in spans for the stylesheet."""
    code = (FOLDER / path).read_text("utf-8")
    lexer = get_lexer_for_filename(path)
    return Markup(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def scripts(html: str) -> list[str]:
    """Return the text of every inline script."""
    return re.findall(
        r'<script(?: type="module")?>(.*?)</script>', html, re.DOTALL
    )


def imported(html: str) -> list[str]:
    """Return the path of every module of ours that the scripts import."""
    return re.findall('from "/(static/.+?)"', html)
