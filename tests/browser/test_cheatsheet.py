"""The cheat sheet, printed and run."""

import re


def test_it_prints_on_one_page(page, site):
    page.goto(f"{site.url}/cheatsheet")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for paper in ("A4", "Letter"):
            printed = page.pdf(format=paper)
            pages = re.findall(rb"/Type\s*/Page\b", printed)
            assert len(pages) == 1, (scheme, paper)


def test_its_five_lines_run(page, site):
    page.goto(f"{site.url}/cheatsheet")
    lines = page.locator("#five-lines").text_content().strip()
    assert len(lines.splitlines()) == 5
    logged = []
    page.on("console", lambda message: logged.append(message.text))
    page.evaluate(
        f"""() => {{
          {lines}
          return new Promise((resolve) => {{
            source.addEventListener("answer", resolve);
          }});
        }}"""
    )
    assert len(logged) > 1
    assert "0" not in logged  # no error: the page ended it, not the server
