"""Find the files that a lesson or a part needs, from its imports."""

from pathlib import Path

from website.needs import imported, with_imports

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


def source(path: Path) -> dict[str, str]:
    return {path.as_posix(): path.read_text("utf-8")}


def imports(path: Path) -> set[str]:
    """Return the modules and names that a file imports, anywhere in it."""
    return imported(source(path))


def needed(path: Path) -> list[str]:
    """Return the parts that a file needs, directly or indirectly."""
    own = source(path)
    found = with_imports(own).keys() - own.keys()
    return sorted(name.removesuffix(".py") for name in found)


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())
