"""Find the files that a lesson or a part needs, from its imports."""

import ast
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PARTS = (
    "sse",
    "event_source",
    "checks",
    "broker",
    "redis_broker",
    "background",
    "language_model",
    "growing_markdown",
)
"""The parts, which users copy along with a lesson."""


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def needed(path: Path) -> list[str]:
    """Return the parts that a file needs, directly or indirectly."""
    found, todo = set(), [path]
    while todo:
        for name in imports(todo.pop()) & set(PARTS) - found:
            found.add(name)
            todo.append(PROJECT / f"{name}.py")
    return sorted(found)


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())
