"""Source files as HTML: highlighted, numbered, folded, and linked."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename

FOLDER = Path(__file__).parents[1]


class Code(NamedTuple):
    """A file for a page: its first `folded` lines, and the rest."""

    path: str
    folded: int
    start: Markup
    rest: Markup


class Definition(NamedTuple):
    """A name that a lesson imports, and the lines that define it."""

    name: str
    path: str
    line: int
    html: Markup


def read(path: str) -> str:
    return (FOLDER / path).read_text("utf-8")


def code(path: str, marked: int = 0) -> Code:
    """Return a file. If it is a lesson, fold its docstring and imports.

    marked: the number of the line to change, 0 for none.
    """
    lines = html_lines(path)
    if marked:
        lines[marked - 1] = lines[marked - 1].replace(
            'class="line"', 'class="line marked"', 1
        )
    folded = 0
    if path.startswith("demos/"):
        tree = ast.parse(read(path))
        folded = preamble_lines(tree)
        for node in imports(tree):
            for number in range(node.lineno, node.end_lineno + 1):
                lines[number - 1] = linked(lines[number - 1], node)
    start, rest = "".join(lines[:folded]), "".join(lines[folded:])
    return Code(path, folded, Markup(start), Markup(rest))


def html_lines(path: str) -> list[str]:
    """Return each line of a file in a span that a link can target."""
    return [*highlighted(path, (FOLDER / path).stat().st_mtime_ns)]


@lru_cache(maxsize=100)
def highlighted(path: str, modified: int) -> tuple[str, ...]:
    """Highlight a file once, because streams would wait for it every time.

    modified: when the file last changed, so that changes are highlighted.
    """
    lexer = get_lexer_for_filename(path, stripnl=False)
    html = highlight(read(path), lexer, HtmlFormatter(nowrap=True))
    return tuple(
        f'<span class="line" id="{path}:{number}" '
        f'data-number="{number}">{line}\n</span>'
        for number, line in enumerate(html.splitlines(), start=1)
    )


def preamble_lines(tree: ast.Module) -> int:
    """Return the number of lines before the first line of code.

    Docstrings, imports and blank lines do not count as code.
    """
    for node in tree.body:
        if not isinstance(node, (ast.Expr, ast.Import, ast.ImportFrom)):
            return node.lineno - 1
    return 0


def imports(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    """Yield the imports from modules in the app's folder."""
    for node in tree.body:
        is_from = isinstance(node, ast.ImportFrom)
        if is_from and (FOLDER / f"{node.module}.py").is_file():
            yield node


def linked(line: str, node: ast.ImportFrom) -> str:
    """Link each imported name in a line of HTML to its definition."""
    for alias in node.names:
        name = f'<span class="n">{alias.name}</span>'
        link = f'<a href="#{node.module}.{alias.name}">{name}</a>'
        line = line.replace(name, link)
    return line


def definitions(path: str) -> Iterator[Definition]:
    """Yield the definitions of the names that a lesson imports from parts."""
    for node in imports(ast.parse(read(path))):
        part = f"{node.module}.py"
        lines = html_lines(part)
        places = definition_lines(ast.parse(read(part)))
        for alias in node.names:
            first, last = places[alias.name]
            html = Markup("".join(lines[first - 1 : last]))
            name = f"{node.module}.{alias.name}"
            yield Definition(name, part, first, html)


def definition_lines(tree: ast.Module) -> dict[str, tuple[int, int]]:
    """Return the first and last line of each definition, by name."""
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            first = node.decorator_list[0] if node.decorator_list else node
            found[node.name] = first.lineno, node.end_lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in ast.walk(node):
                if is_stored(target):
                    found[target.id] = node.lineno, node.end_lineno
    return found


def is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def line_of(snippets: Iterable[str], path: str) -> int:
    """Return the line of the first snippet that occurs in a lesson's code.

    0 if none does.
    """
    lines = read(path).splitlines()
    start = preamble_lines(ast.parse(read(path)))
    for snippet in snippets:
        for number, line in enumerate(lines[start:], start=start + 1):
            if snippet in line:
                return number
    return 0


def prose(text: str) -> Markup:
    """Return text as HTML, with `code` between backticks."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))
