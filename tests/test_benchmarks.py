import re

from benchmarks.markdown_growth import KINDS, table


def test_table_of_the_growth_of_markdown_has_a_row_for_each_kind():
    head, line, *rows = table({"tiny": 200, "small": 400})
    assert head.count("|") == line.count("|") == 4
    for kind, row in zip(KINDS, rows, strict=True):
        cell = r" \d+\.\d µs, \d+\.\d B \|"
        assert re.fullmatch(rf"\| {kind} \|{cell * 2}", row)
