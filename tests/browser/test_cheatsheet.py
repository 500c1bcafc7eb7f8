"""The cheat sheet, printed and run."""

import re

import pytest


@pytest.mark.parametrize("paper", ["A4", "Letter"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_on_one_page(page, site, paper, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{site.url}/cheatsheet")
    printed = page.pdf(format=paper)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1


def test_its_five_lines_run(page, site):
    page.goto(f"{site.url}/cheatsheet")
    lines = page.locator("#five-lines").text_content().strip()
    assert len(lines.splitlines()) == 5
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.evaluate(
        f"""() => {{
          {lines}
          return new Promise((resolve) => {{
            source.addEventListener("answer", resolve);
          }});
        }}"""
    )
    assert len(said) > 1
    assert "0" not in said  # no error: the page ended it, not the server
