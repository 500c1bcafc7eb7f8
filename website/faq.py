"""The FAQ: a section of the README, as HTML."""

import re
from functools import cache
from typing import NamedTuple

from markdown_it import MarkdownIt
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from website.code import read


class Answer(NamedTuple):
    """A question and its answer. `id` is GitHub's anchor for the heading."""

    id: str
    question: Markup
    html: Markup


@cache
def answers() -> list[Answer]:
    section = read("README.md").partition("\n## FAQ\n")[2].partition("\n## ")[0]
    section = re.sub(r"\(demos/(\w+)\.py\)", r"(/demos/\1)", section)
    found = []
    for part in section.split("\n### ")[1:]:
        question, _, text = part.partition("\n")
        id = re.sub(r"[^\w -]", "", question.lower()).replace(" ", "-")
        html = MARKDOWN.renderInline(question), MARKDOWN.render(text)
        found.append(Answer(id, *map(Markup, html)))
    return found


def _highlight(code: str, language: str, attributes: str) -> str:
    lexer = get_lexer_by_name(language)
    return highlight(code, lexer, HtmlFormatter(nowrap=True))


MARKDOWN = MarkdownIt("commonmark", {"highlight": _highlight})
