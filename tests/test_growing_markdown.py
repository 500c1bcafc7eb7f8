import re
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growing_markdown import LANGUAGES, GrowingMarkdown
from sse import LINE_END

CODE = "```python\ndef f():\n\n    return 1\n```\n"
HIGHLIGHTED = (
    '<pre><code><span class="k">def</span><span class="w"> </span>'
    '<span class="nf">f</span><span class="p">():</span>\n\n'
    '    <span class="k">return</span> <span class="mi">1</span>\n'
    "</code></pre>\n"
)
PLAIN = "<pre><code>def f():\n\n    return 1\n</code></pre>\n"

# Markdown: the HTML of its blocks
RENDERED = {
    "": [],
    "\n\n": [],
    "a": ["<p>a</p>\n"],
    "# a\nb": ["<h1>a</h1>\n", "<p>b</p>\n"],
    "a\nb\n\nc": ["<p>a\nb</p>\n", "<p>c</p>\n"],
    "a\r\n\r\nb\rc": ["<p>a</p>\n", "<p>b\nc</p>\n"],
    "a\n===\n": ["<h1>a</h1>\n"],
    "- a\n\n- b\n": [
        "<ul>\n<li>\n<p>a</p>\n</li>\n<li>\n<p>b</p>\n</li>\n</ul>\n"
    ],
    "9. a\n\n10. b\n": [
        '<ol start="9">\n<li>\n<p>a</p>\n</li>\n<li>\n<p>b</p>\n</li>\n</ol>\n'
    ],
    "- a\n\nb": ["<ul>\n<li>a</li>\n</ul>\n", "<p>b</p>\n"],
    "> a\n\n> b": [
        "<blockquote>\n<p>a</p>\n</blockquote>\n",
        "<blockquote>\n<p>b</p>\n</blockquote>\n",
    ],
    "| a | b |\n|:-:|---|\n| 1 | 2 |\n": [
        '<table>\n<thead>\n<tr>\n<th align="center">a</th>\n<th>b</th>\n</tr>\n'
        '</thead>\n<tbody>\n<tr>\n<td align="center">1</td>\n<td>2</td>\n</tr>'
        "\n</tbody>\n</table>\n"
    ],
    "    a\n\n    b\n": ["<pre><code>a\n\nb\n</code></pre>\n"],
    CODE: [HIGHLIGHTED + "\n"],
    "```zeek\n<b>\n```\n": ["<pre><code>&lt;b&gt;\n</code></pre>\n\n"],
    "```\na": ["<pre><code>a</code></pre>\n\n"],
    "**a** *b* ~~c~~ `d`": [
        "<p><strong>a</strong> <em>b</em> <s>c</s> <code>d</code></p>\n"
    ],
    "[a](https://b.example 'c') [d](/e)": [
        '<p><a href="https://b.example" title="c" rel="noopener noreferrer">a'
        '</a> <a href="/e" rel="noopener noreferrer">d</a></p>\n'
    ],
    "[a]: /b\n\n[a]\n\n[a]": [
        '<p><a href="/b" rel="noopener noreferrer">a</a></p>\n'
    ]
    * 2,
    "a\n\n[b]: /c": ["<p>a</p>\n", ""],
    "---\na": ["<hr>\n", "<p>a</p>\n"],
    "\ud83d": ["<p>?</p>\n"],
}

# Markdown: the HTML of its only block, and the reported removals
BLOCKED = {
    '<img src="x" onerror="alert(1)">a': (
        "<p>a</p>\n",
        [
            ("<img>", "the text"),
            ('src="x"', "<img>"),
            ('onerror="alert(1)"', "<img>"),
        ],
    ),
    "![a](https://b.example/c)": (
        "<p></p>\n",
        [
            ("<img>", "the text"),
            ('src="https://b.example/c"', "<img>"),
            ('alt="a"', "<img>"),
        ],
    ),
    "[a](javascript:b)": (
        '<p><a rel="noopener noreferrer">a</a></p>\n',
        [('href="javascript:b"', "<a>")],
    ),
    '<a href="data:,b" style="position: fixed">a</a>': (
        '<p><a rel="noopener noreferrer">a</a></p>\n',
        [('href="data:,b"', "<a>"), ('style="position: fixed"', "<a>")],
    ),
    "a <svg onload=b>c</svg>": (
        "<p>a c</p>\n",
        [("<svg>", "the text"), ('onload="b"', "<svg>")],
    ),
    "a <b hidden>c</b>": (
        "<p>a c</p>\n",
        [("<b>", "the text"), ("hidden", "<b>")],
    ),
    'a <span class="k big">b</span>': (
        '<p>a <span class="k">b</span></p>\n',
        [('class="k big"', "<span>")],
    ),
    '<p id="state" style="position: fixed">a</p>': (
        "<p>a</p>",
        [('id="state"', "<p>"), ('style="position: fixed"', "<p>")],
    ),
    "a <!-- b -->": ("<p>a </p>\n", [("a comment", "the text")]),
    "<b>a</b> <b>c</b>": ("<p>a c</p>\n", [("<b>", "the text")] * 2),
    "```yaml\na: b\n```": (
        '<pre><code><span class="nt">a</span><span class="p">:</span>'
        '<span class="w"> </span><span class="l">b</span>\n</code></pre>\n\n',
        [],
    ),
    "<script>a</script>": ("", [("<script>", "the text")]),
    "<b>a</b>" * 151: (
        f"<p>{'&lt;b&gt;a&lt;/b&gt;' * 151}</p>\n",
        [],
    ),
    f"a <i title={'x' * 300}>b</i>": (
        "<p>a b</p>\n",
        [("<i>", "the text"), (f'title="{"x" * 193}', "<i>")],
    ),
}

# The text so far: its number of finished blocks
FINISHED = {
    "a": 0,
    "a\n": 0,
    "a\n\n": 1,
    "a\n\nb": 1,
    "a\n\n-": 1,
    "# a\n": 0,
    "# a\nb": 1,
    "- a\n\n": 0,
    "- a\n\nb": 1,
    "- a\n\n*": 0,
    "1. a\n\n2": 0,
    "    a\n\n": 0,
    CODE[:-4]: 0,
    CODE: 0,
    CODE + "\n": 1,
    CODE + "b": 1,
    "| a |\n|---|\n| 1 |\n": 0,
    "| a |\n|---|\n| 1 |\n\n": 1,
    "> a\n\n": 1,
    "<!-- a\n\n": 0,
    "[a]: /b\n\n": 0,
}

ATOMS = [
    *("\n", "\n\n", "\r\n", "\r", "\t", " ", "    ", "\0", "\u2028"),
    *("- ", "* ", "+ ", "1. ", "12", ")", "> ", "# ", "===", "--", "---"),
    *("```", "```python", "~~~", "`", "**", "_", "~~", "\\", "&amp;"),
    *("| a | b |", "|---|--:|", "| 1 | 2 |", "[b](/y)", "![i](/z)", "]"),
    *("<div>", "</div>", "<script>", "</script>", "<!--", "-->", "<p", "<br>"),
    *("text", "word ", "中文", "é", "=", "|", "<?x", "?>", "<![CDATA[", "]]>"),
]


def in_pieces(text):
    """Cut a text into single characters, or a long one into 60 pieces."""
    size = max(1, len(text) // 60)
    return [text[at : at + size] for at in range(0, len(text), size)]


def blocks(*pieces):
    """Return the blocks of a text that arrives in these pieces."""
    markdown, found = GrowingMarkdown(), []
    for piece in pieces:
        markdown.add(piece)
        found += markdown.take_finished()
        markdown.draw()
    return found + markdown.take_rest()


@pytest.mark.parametrize("text", RENDERED)
def test_renders_each_block_however_the_text_arrives(text):
    for pieces in ([text], in_pieces(text)):
        assert [block.html for block in blocks(*pieces)] == RENDERED[text]


@pytest.mark.parametrize("text", BLOCKED)
def test_reports_what_was_removed_and_where(text):
    for pieces in ([text], in_pieces(text)):
        assert blocks(*pieces) == [BLOCKED[text]]


@pytest.mark.parametrize("text", FINISHED)
def test_a_block_is_finished_once_later_text_cannot_change_it(text):
    markdown = GrowingMarkdown()
    markdown.add(text)
    assert len(list(markdown.take_finished())) == FINISHED[text]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.lists(st.sampled_from(ATOMS), max_size=40).map("".join),
    st.randoms(use_true_random=False),
)
def test_pieces_never_change_what_is_rendered(text, chance):
    pieces = []
    while text[sum(map(len, pieces)) :]:
        start = sum(map(len, pieces))
        pieces.append(text[start : start + chance.randint(1, 9)])
    # Line ends inside a block may differ from those at the end of the text.
    complete, *cut = (
        [LINE_END.sub("", block.html) for block in blocks(*parts)]
        for parts in ([text + "\n"], [*pieces, "\n"])
    )
    assert cut == [complete]


def test_the_open_block_is_drawn_safely_and_without_colors():
    markdown = GrowingMarkdown()
    markdown.add("a <img src=x onerror=alert(1)>\n\n" + CODE)
    assert len(list(markdown.take_finished())) == 1
    assert markdown.draw() == PLAIN + "\n"
    markdown.add("\n<svg onload=alert(1)> **b")
    assert [block.html for block in markdown.take_finished()] == [
        HIGHLIGHTED + "\n"
    ]
    assert markdown.draw() == "<p> **b</p>\n"


def test_a_table_ends_where_too_many_cells_would_be_padded():
    head = "|a|b|c|d|\n|-|-|-|-|\n"
    (table,) = blocks(head + "|1|2|3|4|\n" * 20 + "|1|\n")
    assert table.html.count("<tr>") == 22
    table, rest = blocks(head + "|\n" * 20)
    assert table.html.count("<tr>") == 2
    assert rest.html.startswith("<p>|\n|\n")


def test_a_long_list_is_rendered_as_several():
    parts = blocks("".join(f"{n}. a\n" for n in range(1, 1001)))
    assert len(parts) <= 4
    assert all(part.html.startswith("<ol") for part in parts)
    assert sum(part.html.count("<li>a</li>") for part in parts) == 1000


def test_code_in_each_language_is_highlighted():
    for language in LANGUAGES.split():
        (block,) = blocks(f"```{language}\n<?php 'a' # b\n+c\n```\n")
        assert "<span class=" in block.html, language
        assert block.blocked == [], language


def test_long_code_is_highlighted_to_its_end():
    code = "".join(f"def f{n}(): pass\n" for n in range(500)) + "x" * 5000
    (block,) = blocks(f"```python\n{code}\n```\n")
    assert block.html.count('<span class="k">def</span>') == 500
    assert re.sub("<.*?>", "", block.html).strip() == code


def test_no_lexer_gets_blank_lines(monkeypatch):
    given = []
    monkeypatch.setattr(
        "pygments.highlight", lambda code, *_: given.append(code) or code
    )
    (block,) = blocks("```c\na\n" + "\n \n" * 2000 + "b\n```\n")
    assert given == ["a\n", "b\n"]
    assert block.html.count("\n") == 4004


def test_an_incomplete_reference_is_not_remembered():
    markdown = GrowingMarkdown()
    for piece in ("[a]: /b", "c\n\n[a]\n\n"):
        markdown.add(piece)
        finished = [block.html for block in markdown.take_finished()]
        markdown.draw()
    assert finished == [
        '<p><a href="/bc" rel="noopener noreferrer">a</a></p>\n'
    ]


# The beginning of each text, and the part that it repeats
TEXTS = {
    "one paragraph": ("", "word *word* and `code` and more\n"),
    "one code block": ("```python\n", "    def f(x): return x + 1  # <b>\n"),
    "short paragraphs": ("", "a\n\n"),
    "raw HTML": ("", "<b onclick=1>a</b> <img src=x>\n\n"),
    "unclosed formats": ("x ", "".join(f"<em a{n}>x<p>" for n in range(500))),
    "rows of a wide table": (f"|{'a|' * 28}\n|{'-|' * 28}\n", "|a\n"),
    "a long URL": (f"[a]: /{'b' * 1000}\n\n", "[a]\n"),
    "open brackets": ("", "["),
    "open comments": ("", "<!--"),
    "open tags": ("", "<b "),
    "a deep quotation that continues": (">" * 50 + "a\n", "b\n"),
    "quotations read again": ("&&&", "> |a|\n> |-|\na\n"),
    "references": ("", "[a]: b\n"),
}
PROSE = ("", "The model writes a sentence of plain words, and another.\n\n")


@cache
def cost(beginning, repeated, size, piece):
    """Return the number of calls, drawn characters and draws for a text."""
    text = (beginning + repeated * (size // len(repeated) + 1))[:size]
    markdown, calls, drawn, draws = GrowingMarkdown(), 0, 0, 0

    def count(*_):
        nonlocal calls
        calls += 1

    profile = sys.getprofile()
    sys.setprofile(count)
    try:
        for start in range(0, size, piece):
            markdown.add(text[start : start + piece])
            if markdown.has_grown:
                drawn += sum(len(html) for html, _ in markdown.take_finished())
                drawn += len(markdown.draw())
                draws += 1
        drawn += sum(len(html) for html, _ in markdown.take_rest())
    finally:
        sys.setprofile(profile)
    return calls, drawn, draws


@pytest.mark.parametrize(
    ("kind", "piece"),
    [
        *((kind, 3000) for kind in TEXTS),
        ("a deep quotation that continues", 60),
    ],
)
def test_any_text_costs_at_most_40_times_as_much_as_plain_prose(kind, piece):
    calls, drawn, _ = cost(*TEXTS[kind], 3000, piece)
    prose_calls, prose_drawn, _ = cost(*PROSE, 3000, piece)
    assert calls <= 35 * prose_calls
    assert drawn <= 40 * prose_drawn


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("one paragraph", 30, 50),
        ("rows of a wide table", 5, 25),
        ("unclosed formats", 5, 25),
        ("open brackets", 5, 25),
    ],
)
def test_a_block_is_drawn_less_often_if_it_costs_more(kind, least, most):
    assert least <= cost(*TEXTS[kind], 3000, 30)[2] <= most
