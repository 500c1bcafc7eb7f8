"""The files that a lesson needs: those that its code and its page import."""

import ast
import re
from functools import lru_cache

from demos import LESSONS
from website.code import FOLDER, read


def lesson_files(name: str) -> dict[str, str]:
    """Return a lesson's own files, and the project's files that they need."""
    own = [f"demos/{one}.py" for one in (name, *LESSONS[name].uses)]
    own.append(f"templates/{name}.html")
    return with_imports({path: read(path) for path in own})


def with_imports(files: dict[str, str]) -> dict[str, str]:
    """Add the project's files that these files import, even indirectly."""
    found, todo = dict(files), [*files]
    while todo:
        path = todo.pop()
        if path.endswith(".py"):
            modules = imported({path: found[path]})
            imports = {f"{module}.py" for module in modules}
        else:
            imports = set(re.findall('from "/(static/.+?)"', found[path]))
        for other in sorted(imports - found.keys()):
            if (FOLDER / other).is_file():
                found[other] = read(other)
                todo.append(other)
    return found


def imported(files: dict[str, str]) -> set[str]:
    """Return what Python files import: {"flask", "flask.session", ...}."""
    code = [source for path, source in files.items() if path.endswith(".py")]
    return set().union(*map(imports_of, code))


@lru_cache(maxsize=100)
def imports_of(source: str) -> frozenset[str]:
    """Return what Python code imports. Cached: parsing blocks all streams."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module} | names
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)
