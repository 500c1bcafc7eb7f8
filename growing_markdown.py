"""Turn Markdown into safe HTML, block by block, while it streams in.

The author of the Markdown is not trusted. markdown-it-py turns it into HTML.
nh3 sanitizes that: it removes everything except the markup of text. selectolax
parses both, so each removal can be reported. Pygments highlights code.

Copy this file into any app; it needs those four and nothing of this project.
The Markdown is CommonMark (https://spec.commonmark.org) with tables and
strikethrough. One thing is impossible while text streams in: a reference link
stays text if its definition comes later.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import nh3
import pygments
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, paragraph, table
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
    attributes={"a": {"href", "title"}, "ol": {"start"}}
    | dict.fromkeys(("th", "td"), {"align"}),
    allowed_classes={"span": set(filter(None, STANDARD_TYPES.values()))},
    url_schemes={"http", "https", "mailto"},
)
"""No images: the URL of one can leak what the page knows."""

LANGUAGES = """bash c console cpp css diff go html http java javascript js json
    jsx php py python ruby rust sh sql toml ts tsx typescript xml yaml yml"""

BLANK_LINES = re.compile(r"(?<=\n)(\s{20,}\n)")  # slow in some lexers
CODE_PIECE = re.compile(r"(.{0,1999}\n)|(.{1,2000})", re.DOTALL)
"""Complete lines of code, for one call of a lexer, or part of a line that is
too long to highlight. Many lexers take time quadratic in the length."""

MAX_RAW_TAGS = 300
"""If a block has more tags than this, its raw HTML is shown as text: unclosed
tags multiply, and 20 kB of them can become 20 MB of HTML."""

MAX_SWELLING = 10
MAX_ADDRESS_CHARACTERS = 2000
"""Links become text once their URLs exceed ten times the text by this many
characters, because references can repeat a long URL any number of times."""

STEPS = 2
FREE_STEPS = 300
MAX_STEPS = 2000
"""The parser may look ahead twice per character, and 300 times more. After
that, brackets are text, and nested lines are paragraphs: each unclosed one
makes it read all that follows. A list of 500 items becomes two lists."""

MAX_NESTING = 100  # deeper content is not shown
CELL_CHARACTERS = 2  # end a table with fewer per cell: short rows are padded
MAX_SHOWN_CHARACTERS = 200
SMALL_CHARACTERS = 1000
GROWTH = 5
STEP_WORK = 6  # as much work as six characters
TOKEN_WORK = 2


class Block(NamedTuple):
    """A block as safe HTML, and what was removed from where."""

    html: str
    blocked: list[tuple[str, str]]


class GrowingMarkdown:
    """Markdown that grows at its end.

    `add` text. From time to time, if it `has_grown`, `take_finished` blocks and
    `draw` the open one. At the end, `take_rest`. The total time is linear in
    the length of the text, even if all of it is one block.
    """

    def __init__(self) -> None:
        self._text = ""
        self._drawn_size = self._weight = 0
        self._env = defaultdict(int, references={})

    def add(self, text: str) -> None:
        # A lone surrogate, which UTF-8 cannot encode, becomes `?`.
        self._text += text.encode(errors="replace").decode()

    @property
    def has_grown(self) -> bool:
        """Return whether to draw again. A large block must grow by a fifth."""
        grown = len(self._text) - self._drawn_size
        large = max(len(self._text), self._weight) - SMALL_CHARACTERS
        return grown > 0 and grown * GROWTH >= large

    def take_finished(self) -> Iterator[Block]:
        """Remove and return the blocks that later text cannot change."""
        finished, self._text = _split(self._text)
        return map(_clean, _render(finished, self._env))

    def draw(self) -> str:
        """Return safe HTML for the open block as it is now."""
        env = self._env | {"references": dict(self._env["references"])}
        html = CLEANER.clean("".join(_render(self._text, env, is_open=True)))
        self._drawn_size = len(self._text)
        self._weight = env["work"] + len(html) // 3
        return html

    def take_rest(self) -> list[Block]:
        """Remove and return all remaining blocks, once the text has ended."""
        text, self._text = self._text, ""
        blocks = list(map(_clean, _render(text, self._env)))
        if not blocks and text.strip():
            # The text that was drawn so far was the URL of a reference.
            blocks.append(Block("", []))
        return blocks


def _split(text: str) -> tuple[str, str]:
    """Return the finished blocks of the text, and the open one."""
    lines = re.sub(r"\r\n|\r(?!\Z)", "\n", text).split("\n")
    # A growing line can still change its kind, unless it begins with a letter.
    known = lines if lines[-1][:1].isalpha() else lines[:-1]
    source, env = "\n".join(known) + "\n", defaultdict(int)
    tokens = MARKDOWN.block.parse(source, MARKDOWN, env, [])
    blocks = [token for token in tokens if token.level == 0 and token.map]
    if not blocks:
        return "", text
    start, end = blocks[-1].map
    # Only lists and indented code can continue after a blank line.
    may_continue = blocks[-1].type.endswith(("list_open", "code_block"))
    cut = start if may_continue or end == len(known) else end
    return "\n".join([*lines[:cut], ""]), "\n".join(lines[cut:])


def _render(text: str, env: dict, is_open: bool = False) -> Iterator[str]:
    """Yield each block as unsafe HTML, and add reference links to `env`."""
    block = []
    env.update(work=0, seen=0, steps_left=STEPS * len(text) + FREE_STEPS)
    for token in MARKDOWN.parse(text, env):
        if is_open and token.type == "fence":
            token.info = ""  # highlight code only when it is complete
        if "style" in token.attrs:
            token.attrs["align"] = token.attrs.pop("style").split(":")[1]
        block.append(token)
        env["work"] += TOKEN_WORK * (1 + len(token.children or ()))
        if token.level == 0 and token.nesting <= 0:
            _limit(block, env)
            yield MARKDOWN.renderer.render(block, MARKDOWN.options, env)
            block = []


def _limit(block: list[Token], env: dict) -> None:
    """Turn raw HTML and links into text if there would be too much HTML."""
    tokens = block + [one for token in block for one in token.children or ()]
    raw = [token for token in tokens if token.type.startswith("html_")]
    if sum(token.content.count("<") for token in raw) > MAX_RAW_TAGS:
        for token in raw:
            token.type = "text"
    env["room"] += MAX_SWELLING * sum(len(token.content) for token in block)
    for token in tokens:
        if token.type in ("link_open", "image"):
            env["room"] -= len(escape("".join(map(str, token.attrs.values()))))
            if env["room"] < -MAX_ADDRESS_CHARACTERS:
                token.attrs.clear()


def _highlight(code: str, language: str, attributes: str) -> str:
    html = escape(code)
    if language.lower() in LANGUAGES.split():
        lexer = get_lexer_by_name(language, stripnl=False)
        lexer.add_filter(_standard())
        html = "".join(
            pygments.highlight(lines, lexer, HtmlFormatter(nowrap=True))
            if lines.strip()
            else escape(lines + rest)
            for part in BLANK_LINES.split(code)
            for lines, rest in CODE_PIECE.findall(part)
        )
    return f"<pre><code>{html}</code></pre>\n"


@simplefilter
def _standard(self, lexer, stream, options) -> Iterator[tuple]:
    """Replace each type by the nearest one that has a class in every style."""
    for kind, text in stream:
        while kind not in STANDARD_TYPES:
            kind = kind.parent
        yield kind, text


def _look_ahead(state) -> None:
    """Skip a token, or the rest of the text after too many skips."""
    state.env["work"] += 1
    state.env["steps_left"] -= 1
    if state.env["steps_left"] < 0:
        state.pos = state.posMax
    else:
        skip_token(state)


def _limit_steps(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Make each line a paragraph once the lines have been read too often."""
    env, here = state.env, state.bMarks[start]
    if state.level == 0 and not silent and here >= env["seen"]:
        env.update(block=here, seen=here, steps=0)
    env["steps"] += 1
    env["work"] += STEP_WORK
    env["seen"] = max(env["seen"], here)
    allowed = STEPS * (env["seen"] - env["block"]) + FREE_STEPS
    if env["steps"] <= min(allowed, MAX_STEPS):
        return False
    return silent or paragraph(state, start, end, silent)


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if not table(state, start, end, True):
        return False
    head = state.bMarks[start], state.eMarks[start]
    row = room = CELL_CHARACTERS * state.src.count("|", *head)
    for last in range(start + 2, end):
        room += state.eMarks[last] + 1 - state.bMarks[last] - row
        if room < 0 or state.isEmpty(last):
            end = last
            break
    return silent or table(state, start, end, False)


def _clean(html: str) -> Block:
    safe = CLEANER.clean(html)
    blocked = Counter() if safe == html else _contents(html) - _contents(safe)
    return Block(safe, list(blocked.elements()))


def _contents(html: str) -> Counter:
    """Count the tags, attributes and comments, as (what, where)."""
    found: Counter = Counter()
    for node in LexborHTMLParser(f"<body>{html}").root.traverse():
        what = f"<{node.tag}>" if node.is_element_node else "a comment"
        found[what, "the text"] += 1
        for name, value in node.attributes.items():
            what = name if value is None else f'{name}="{value}"'
            found[what[:MAX_SHOWN_CHARACTERS], f"<{node.tag}>"] += 1
    return found


OPTIONS = {"highlight": _highlight, "maxNesting": MAX_NESTING}
MARKDOWN = MarkdownIt("commonmark", OPTIONS)
MARKDOWN.enable(["table", "strikethrough"])
rules, ended = MARKDOWN.block.ruler, ["paragraph", "reference"]
rules.at("table", _table, {"alt": ended})
everywhere = {"alt": [*ended, "blockquote", "list"]}
rules.before("table", "steps", _limit_steps, everywhere)
skip_token = MARKDOWN.inline.skipToken
MARKDOWN.inline.skipToken = _look_ahead
# Only the cleaner checks URLs, so that each removal is reported.
MARKDOWN.validateLink = lambda url: True
