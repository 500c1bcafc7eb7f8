import re
import subprocess
import sys

import pytest
from conftest import PROJECT, lack, need

from benchmarks.markdown_growth import KINDS, table

README = (PROJECT / "README.md").read_text("utf-8")


def test_the_markdown_table_has_a_row_for_each_kind():
    head, line, *rows = table({"tiny": 200, "small": 400})
    assert head.count("|") == line.count("|") == 4
    for kind, row in zip(KINDS, rows, strict=True):
        cell = r" \d+\.\d µs, \d+\.\d B \|"
        assert re.fullmatch(rf"\| {kind} \|{cell * 2}", row)


def cells(markdown: str) -> dict[tuple[str, str], list[str]]:
    """Return the table's cells by work and figure, with N for every number."""
    found, work = {}, ""
    _, _, below = markdown.partition("| | | this app |")
    for line in below.splitlines()[2:]:
        if not line.startswith("|"):
            break
        shown, figure, *values = [
            cell.strip() for cell in line.split("|")[1:-1]
        ]
        work = re.sub(r"[\d,]*\d", "N", shown) or work
        found[work, figure] = values
    return found


@pytest.fixture
def _linux():
    if sys.platform != "linux":
        lack("needs Linux")


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("_linux")
def test_every_benchmark_runs_and_is_in_the_readme():
    need("npm")
    need("node")
    command = (sys.executable, "-m", "benchmarks", "--tiny", "--repeat", "1")
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Skipped" not in done.stdout
    measured, published = cells(done.stdout), cells(README)
    assert list(measured) == list(published)
    for row, values in measured.items():
        has_value = [value != "" for value in values]
        assert has_value == [value != "" for value in published[row]], row


@pytest.mark.usefixtures("_linux")
def test_a_server_without_its_runtime_is_skipped(monkeypatch, tmp_path):
    from benchmarks.servers import missing

    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing() == {"Express": "node or npm is not installed"}
