import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import cache

import pytest
from conftest import PROJECT, lack, need

from benchmarks.markdown_growth import KINDS, table

PUBLISHED = (PROJECT / "benchmarks" / "README.md").read_text("utf-8")


def test_the_markdown_table_has_a_row_for_each_kind():
    head, line, *rows = table({"tiny": 200, "small": 400})
    assert head.count("|") == line.count("|") == 4
    for kind, row in zip(KINDS, rows, strict=True):
        cell = r" \d+\.\d µs, \d+\.\d B \|"
        assert re.fullmatch(rf"\| {kind} \|{cell * 2}", row)


def rows(markdown: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the work, the figure and the other cells of the table's rows."""
    work = ""
    _, _, below = markdown.partition("| | | this app |")
    for line in below.splitlines()[2:]:
        if not line.startswith("|"):
            break
        shown, figure, *values = [
            cell.strip() for cell in line.split("|")[1:-1]
        ]
        work = shown or work
        yield work, figure, values


def cells(markdown: str) -> dict[tuple[str, str], list[str]]:
    """Return the table's cells by work and figure, with N for every number."""
    return {
        (re.sub(r"[\d,.]*\d", "N", work), figure): values
        for work, figure, values in rows(markdown)
    }


def test_the_readme_shows_three_of_the_published_medians():
    published = {
        (work, figure): [re.sub(r" \(.*?\)|, ×.*", "", one) for one in values]
        for work, figure, values in rows(PUBLISHED)
    }
    shown = [*rows((PROJECT / "README.md").read_text("utf-8"))]
    assert len(shown) == 3
    for work, figure, values in shown:
        assert values == published[work, figure][:4]


@pytest.fixture
def _linux():
    if sys.platform != "linux":
        lack("needs Linux")


@pytest.mark.usefixtures("_linux")
def test_every_benchmark_runs_and_is_published(monkeypatch, capsys):
    need("npm")
    need("node")
    from benchmarks import __main__ as benchmarks
    from benchmarks.servers import Running

    with ExitStack() as opened:

        @cache
        def running(*arguments, **options):
            return opened.enter_context(Running(*arguments, **options))

        def share(*arguments, **options):
            return nullcontext(running(*arguments, **options))

        # Start each server only once, and let it use every core.
        monkeypatch.setattr(benchmarks, "Running", share)
        monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
        monkeypatch.setattr(benchmarks, "allow_open_files", lambda _: None)
        monkeypatch.setattr(sys, "argv", ["", "--tiny", "--repeat", "1"])
        benchmarks.main()
    printed = capsys.readouterr().out
    assert "Skipped" not in printed
    measured, published = cells(printed), cells(PUBLISHED)
    assert list(measured) == list(published)
    for row, values in measured.items():
        has_value = [value != "" for value in values]
        assert has_value == [value != "" for value in published[row]], row


@pytest.mark.usefixtures("_linux")
def test_a_server_without_its_runtime_is_skipped(monkeypatch, tmp_path):
    from benchmarks.servers import missing

    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing() == {"Express": "node or npm is not installed"}
