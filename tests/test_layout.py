"""House rules: the imports and lengths of files, and the guards."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from itertools import product

import pytest
from conftest import NAMES, PROJECT
from flask import Flask
from parts import PARTS, imports, lines, needed

from app import create_app
from demos import LESSONS

BUDGETS = {
    "app": 60,
    "sse": 180,
    "event_source": 180,
    "checks": 120,
    "broker": 250,
    "redis_broker": 260,
    "background": 210,
    "language_model": 170,
    "growing_markdown": 270,
    "gunicorn.conf": 60,
    "streaming_worker": 130,
}
COPIES = {
    "clock": 355,
    "notifications": 600,
    "completion": 710,
    "chat": 710,
    "progress": 820,
    "resume": 1170,
}
"""The maximum total length of a lesson and the parts that it needs."""

MAY_IMPORT = {
    "sse": set(),
    "event_source": set(),
    "checks": set(),
    "growing_markdown": set(),
    "broker": {"sse"},
    "redis_broker": {"broker", "sse"},
    "background": {"broker", "sse"},
    "language_model": {"event_source"},
    "streaming_worker": set(),
    "gunicorn.conf": {"streaming_worker", "website"},
}
OURS = {"app", "demos", "website", "streaming_worker", *PARTS}
LESSONS_MAY_IMPORT = set(PARTS) - {"redis_broker"}


def ours(path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)} & OURS


def test_no_file_is_over_its_budget():
    found = {name: lines(PROJECT / f"{name}.py") for name in BUDGETS}
    assert {
        name: count for name, count in found.items() if count > BUDGETS[name]
    } == {}


def test_no_copied_lesson_is_over_its_budget():
    weights = {}
    for name in COPIES:
        lesson = PROJECT / "demos" / f"{name}.py"
        parts = [PROJECT / f"{part}.py" for part in needed(lesson)]
        weights[name] = sum(map(lines, [lesson, *parts]))
    assert {
        name: weight
        for name, weight in weights.items()
        if weight > COPIES[name]
    } == {}


def test_parts_import_only_what_is_allowed():
    for name, allowed in MAY_IMPORT.items():
        assert ours(PROJECT / f"{name}.py") <= allowed, name


@pytest.mark.parametrize("name", NAMES)
def test_lessons_import_only_parts(name):
    assert ours(PROJECT / "demos" / f"{name}.py") <= LESSONS_MAY_IMPORT


def test_the_website_imports_neither_broker_nor_language_model():
    for path in (PROJECT / "website").glob("*.py"):
        allowed = {"website", "demos", "checks", "sse"}
        assert ours(path) <= allowed, path.name


@pytest.mark.parametrize(
    ("missing", "module"),
    [(["redis", "gevent"], "app"), (["website"], "demos.completion")],
)
def test_a_module_can_be_imported_without_optional_modules(missing, module):
    hide = f"sys.modules.update(dict.fromkeys({missing}))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {hide}; import {module}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_only_the_serving_files_mention_gevent():
    code = [*PROJECT.glob("*.py"), *PROJECT.glob("demos/*.py")]
    code += PROJECT.glob("website/*.py")
    mentions = {
        path.name for path in code if "gevent" in path.read_text("utf-8")
    }
    assert mentions <= {"gunicorn.conf.py", "streaming_worker.py"}


PINNED = re.compile(r"([\w-]+)(\[\w+\])?==\d[\w.]* +# .+")


def pinned(path: str) -> list[str]:
    """Return the packages of a requirements file: all pinned, with a reason."""
    lines = (PROJECT / path).read_text("utf-8").splitlines()
    lines = [line for line in lines if line and line[0] not in "#-"]
    return [PINNED.fullmatch(line)[1] for line in lines]


def packages(*folders: str) -> set[str]:
    """Return the packages that the Python files in these folders import."""
    files = [path for one in folders for path in PROJECT.glob(f"{one}/*.py")]
    code = "\n".join(path.read_text("utf-8") for path in files)
    names = set(re.findall(r"^ *(?:import|from) (\w+)", code, re.M))
    installed = packages_distributions()
    return {one.lower() for name in names for one in installed.get(name, ())}


def with_their_own(names: list[str]) -> set[str]:
    """Return these packages and those that they always install."""
    found, todo = set(), list(names)
    while todo:
        if (name := todo.pop().lower()) not in found:
            found.add(name)
            always = (one for one in requires(name) or () if ";" not in one)
            todo += (re.match(r"[\w.-]+", one)[0] for one in always)
    return found


def test_requirements_name_what_it_takes_to_run_and_no_more():
    run = pinned("requirements.txt")
    imported = packages(".", "demos", "website")
    assert imported <= with_their_own(run)
    assert set(run) <= imported


def test_requirements_dev_adds_what_tests_and_benchmarks_need():
    dev = (PROJECT / "requirements-dev.txt").read_text("utf-8")
    assert "\n-r requirements.txt\n" in dev
    run, more = pinned("requirements.txt"), pinned("requirements-dev.txt")
    assert not set(run) & set(more)
    tests = ["tests", "tests/browser", "tests/engines"]
    used = packages(*tests, "benchmarks", "benchmarks/peers")
    assert used <= with_their_own(run + more)


def is_costly(name: str) -> bool:
    """Return whether a lesson uses a language model or starts a program."""
    found = imports(PROJECT / "demos" / f"{name}.py")
    return not found.isdisjoint({"language_model", "subprocess"})


def guarded_requests(app: Flask) -> list[tuple[str, str, str]]:
    """Return the lesson, method and path of each request that needs a guard."""
    found = []
    for rule in app.url_map.iter_rules():
        name = rule.endpoint.partition(".")[0]
        path = re.sub("<.+?>", "x", rule.rule)
        for method in rule.methods & {"GET", "POST", "PUT", "PATCH", "DELETE"}:
            if name in LESSONS and (method != "GET" or is_costly(name)):
                found.append((name, method, path))
    return found


FOREIGN_PAGES = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "none", "Sec-Purpose": "prefetch;prerender"},
    {"Origin": "http://elsewhere.example"},
    {"Origin": "null"},
)


def test_guarded_requests_reject_foreign_pages(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    app = create_app()
    guarded = guarded_requests(app)
    for (_, method, path), headers in product(guarded, FOREIGN_PAGES):
        client = app.test_client()
        response = client.open(path, method=method, headers=headers, json={})
        assert response.status_code == 403, (method, path, headers)
    assert {(name, method) for name, method, _ in guarded} >= {
        ("chat", "GET"),
        ("completion", "GET"),
        ("console", "GET"),
        ("markdown", "GET"),
        ("agent", "GET"),
        ("relay", "POST"),
        ("relay", "GET"),
        ("resume", "POST"),
        ("resume", "DELETE"),
        ("progress", "POST"),
        ("progress", "DELETE"),
        ("document", "PUT"),
        ("broadcast", "POST"),
        ("notifications", "POST"),
        ("numbers", "POST"),
        ("post", "POST"),
        ("private", "POST"),
    }


PUBLIC = {"hello", "numbers", "clock", "thinking", "batch"}
FREE_OFFLINE = {"completion", "chat", "markdown", "relay", "agent"}


def readable_by_all(app: Flask) -> set[str]:
    """Return the lessons that send Access-Control-Allow-Origin."""
    client, found = app.test_client(), set()
    for rule in app.url_map.iter_rules():
        path = re.sub("<.+?>", "x", rule.rule)
        name = rule.endpoint.partition(".")[0]
        method = "GET" if "GET" in rule.methods else "POST"
        response = client.open(f"{path}?question=Why&prompt=Hi", method=method)
        if "Access-Control-Allow-Origin" in response.headers:
            found.add(name)
        response.close()
    return found


def test_other_sites_may_read_public_and_free_streams(monkeypatch):
    assert readable_by_all(create_app()) == PUBLIC | FREE_OFFLINE
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert readable_by_all(create_app()) == PUBLIC


def test_a_page_of_another_site_may_use_the_offline_model(client):
    for path in ("/completion?prompt=Hi", "/stream?prompt=Hi", "/v1/models"):
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "http://a.example"}
        response = client.get(path, headers=headers)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        allowed = response.headers["Access-Control-Allow-Headers"]
        assert allowed == "Authorization, Content-Type"
        response.close()


@pytest.mark.parametrize("name", NAMES)
def test_no_lesson_is_wider_than_a_projector(name):
    text = (PROJECT / "demos" / f"{name}.py").read_text("utf-8")
    assert [line for line in text.splitlines() if len(line) > 68] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_live_part_fits_a_projector_and_its_script_fits_a_screen(name):
    text = (PROJECT / "templates" / f"{name}.html").read_text("utf-8")
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 68] == []
    script = text[text.index("<script") : text.index("</script>")]
    code = [line.strip() for line in script.splitlines()[1:]]
    code = [line for line in code if line and not line.startswith("//")]
    assert len(code) <= 60
