"""Markdown that is still being written, as blocks of safe HTML.

Whoever writes the Markdown is not trusted. markdown-it-py turns it into HTML,
nh3 takes out whatever is more than the markup of text, and selectolax reads
both, so that what was taken out can be told. Pygments colours the code.

Copy this file into any app; it needs those four and nothing of this project.
The Markdown is CommonMark (https://spec.commonmark.org) with tables and
strikethrough. One thing cannot be had while a text grows: a link by reference
whose reference is defined later stays text.
"""

import re
from collections import Counter
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import nh3
import pygments
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.token import Token
from pygments.filter import simplefilter
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from selectolax.lexbor import LexborHTMLParser

TAGS = """a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre s span
    strong table tbody td th thead tr ul"""

CLEANER = nh3.Cleaner(
    tags=set(TAGS.split()),
    attributes={
        "a": {"href", "title"},
        "ol": {"start"},
        "th": {"align"},
        "td": {"align"},
    },
    allowed_classes={"span": set(filter(None, STANDARD_TYPES.values()))},
    url_schemes={"http", "https", "mailto"},
)
"""Without images: the address of one can carry away what the page knows."""

LANGUAGES = """bash c console cpp css diff go html http java javascript js json
    jsx php py python ruby rust sh sql toml ts tsx typescript xml yaml yml"""

CODE_PIECE = re.compile(r"(.{0,1999}\n)|(.{1,2000})", re.DOTALL)
"""As many whole lines of code as a lexer gets at once, because many lexers take
time quadratic in that, or a part of a line that is too long for any."""

MAX_RAW_TAGS = 300
"""The raw HTML of a block with more tags than this is shown as text, because
tags that are left open multiply: 20 kB of them can become 20 MB of HTML."""

MAX_SWELLING = 10
MAX_ADDRESS_CHARACTERS = 200
"""Text whose links lead to more than ten times its length, and this, is shown
without links, because a reference can repeat a long address for ever."""

MAX_NESTING = 100
"""Beyond this depth of lists and quotations there is nothing to be read."""

MAX_COLUMNS = 30
"""A table of more stays text: each of its rows, however short, is filled up."""

SMALL_CHARACTERS = 1000
GROWTH = 5
MAX_TOLD_CHARACTERS = 200


class Block(NamedTuple):
    """A block of the answer, such as a paragraph, a list or a table.

    html: safe to put into a page.
    blocked: each tag, attribute and comment that was taken out, and where it
        stood.
    """

    html: str
    blocked: list[tuple[str, str]]


class GrowingMarkdown:
    """A Markdown text that grows at its end.

    `add` text, and now and then, when `has_grown`, `take_finished` blocks and
    `draw` the open one; at the end `take_rest`. All of it together takes time
    linear in the text, even where one block goes on to the end.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = self._drawn_size = self._weight = 0
        self._references: dict = {}

    def add(self, text: str) -> None:
        # A lone surrogate, which UTF-8 cannot hold, becomes `?`.
        text = text.encode(errors="replace").decode()
        self._pieces.append(text)
        self._size += len(text)

    @property
    def has_grown(self) -> bool:
        """Tell whether the open block is worth drawing again.

        A small one always is, a large one after a fifth more: so what is drawn
        of it adds up to a few times its size.
        """
        grown = self._size - self._drawn_size
        large = max(self._size, self._weight) - SMALL_CHARACTERS
        return grown > 0 and grown * GROWTH >= large

    def take_finished(self) -> Iterator[Block]:
        """Take the blocks off that nothing can change any more."""
        finished, rest = _split("".join(self._pieces))
        self._pieces, self._size = [rest], len(rest)
        return map(_clean, _render(finished, self._references))

    def draw(self) -> str:
        """Return safe HTML for the open block as it is now."""
        text, references = "".join(self._pieces), dict(self._references)
        html = "".join(_render(text, references, is_open=True))
        self._drawn_size, self._weight = self._size, len(html) // MAX_SWELLING
        return CLEANER.clean(html)

    def take_rest(self) -> list[Block]:
        """Take all blocks that are left, now that the text has ended."""
        text, self._pieces, self._size = "".join(self._pieces), [], 0
        blocks = list(map(_clean, _render(text, self._references)))
        if not blocks and text.strip():
            # What was drawn as text so far was the address of a reference.
            blocks.append(Block("", []))
        return blocks


def _split(text: str) -> tuple[str, str]:
    """Return the finished blocks of the text, and the open one."""
    lines = re.sub(r"\r\n|\r(?!\Z)", "\n", text).split("\n")
    # What a line is can change while it grows, unless it begins with a letter.
    known = lines if lines[-1][:1].isalpha() else lines[:-1]
    tokens = STRUCTURE.parse("\n".join(known) + "\n")
    blocks = [token for token in tokens if token.level == 0 and token.map]
    if not blocks:
        return "", text
    start, end = blocks[-1].map
    # Of all blocks, lists and indented code alone go on after a blank line.
    goes_on = blocks[-1].type.endswith(("list_open", "code_block"))
    cut = start if goes_on or end == len(known) else end
    return "\n".join([*lines[:cut], ""]), "\n".join(lines[cut:])


def _render(
    text: str, references: dict, is_open: bool = False
) -> Iterator[str]:
    """Yield the HTML of each block, not yet clean.

    `references` holds what the links of the text refer to, and is added to.
    """
    block, env = [], {"references": references}
    for token in MARKDOWN.parse(text, env):
        if is_open and token.type == "fence":
            token.info = ""  # no colours before the code is whole
        if "style" in token.attrs:
            token.attrs["align"] = token.attrs.pop("style").split(":")[1]
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            _limit_links(block)
            _limit_raw_html(block)
            yield MARKDOWN.renderer.render(block, MARKDOWN.options, env)
            block = []


def _limit_links(block: list[Token]) -> None:
    """Turn links into their text where their addresses take too much room."""
    for token in block:
        links = [one for one in token.children or () if one.attrs]
        size = sum(
            len(str(value)) for one in links for value in one.attrs.values()
        )
        if size > MAX_SWELLING * len(token.content) + MAX_ADDRESS_CHARACTERS:
            for link in links:
                link.attrs.clear()


def _limit_raw_html(block: list[Token]) -> None:
    """Turn the raw HTML of a block into text where there is too much of it."""
    tokens = block + [one for token in block for one in token.children or ()]
    raw = [token for token in tokens if token.type.startswith("html_")]
    if sum(token.content.count("<") for token in raw) > MAX_RAW_TAGS:
        for token in raw:
            token.type = "text"


def _highlight(code: str, language: str, attributes: str) -> str:
    html = escape(code)
    if language.lower() in LANGUAGES.split():
        lexer = get_lexer_by_name(language, stripnl=False)
        lexer.add_filter(_standard())
        formatter = HtmlFormatter(nowrap=True)
        html = "".join(
            pygments.highlight(lines, lexer, formatter)
            if lines
            else escape(rest)
            for lines, rest in CODE_PIECE.findall(code)
        )
    return f"<pre><code>{html}</code></pre>\n"


@simplefilter
def _standard(self, lexer, stream, options) -> Iterator[tuple]:
    """Give each token the nearest type that has a class in every style."""
    for kind, text in stream:
        while kind not in STANDARD_TYPES:
            kind = kind.parent
        yield kind, text


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    head = state.src[state.bMarks[start] : state.eMarks[start]]
    return head.count("|") <= MAX_COLUMNS and table(state, start, end, silent)


def _clean(html: str) -> Block:
    safe = CLEANER.clean(html)
    blocked = _contents(html) - _contents(safe)
    return Block(safe, list(blocked.elements()))


def _contents(html: str) -> Counter:
    """Count the tags, attributes and comments, as (what, where)."""
    found: Counter = Counter()
    for node in LexborHTMLParser(f"<body>{html}").root.traverse():
        what = f"<{node.tag}>" if node.is_element_node else "a comment"
        found[what, "the text"] += 1
        for name, value in node.attributes.items():
            what = name if value is None else f'{name}="{value}"'
            found[what[:MAX_TOLD_CHARACTERS], f"<{node.tag}>"] += 1
    return found


STRUCTURE = MarkdownIt("commonmark").enable("table").disable("inline")
MARKDOWN = MarkdownIt("commonmark", {"highlight": _highlight})
MARKDOWN.enable(["table", "strikethrough"])
for parser in (STRUCTURE, MARKDOWN):
    parser.options["maxNesting"] = MAX_NESTING
    alternatives = {"alt": ["paragraph", "reference"]}
    parser.block.ruler.at("table", _table, alternatives)
# The cleaner alone judges addresses, so that what it takes out is told.
MARKDOWN.validateLink = lambda url: True
