"""No published payload gets through the sanitizers in Firefox and WebKit."""

from xss_payloads import ALL, CHECK, CONTROLS, OURS, PUT, UNGUARDED

from growing_markdown import GrowingMarkdown

# The page's Content-Security-Policy reports whatever would run or load.
WATCH = f"""
() => {{
  {CHECK}
  window.violations = [];
  addEventListener("securitypolicyviolation", (event) => {{
    violations.push([event.effectiveDirective, event.blockedURI]);
  }});
}}
"""
FOUND = "() => [...found, ...violations]"
REPORTS = """
(all) => all.every((one) => violations.some(([what]) => what === one))
"""


def blocks(markdown: str) -> list[str]:
    """Return the HTML that the server sends for a text."""
    growing = GrowingMarkdown()
    growing.add(markdown)
    return [block.html for block in growing.take_rest()]


def test_no_payload_gets_through_the_page_or_the_server(engine, live):
    engine.open(f"{live.url}/demos/markdown")
    engine.run(WATCH)
    engine.run(PUT, ALL + OURS)
    sent = [html for payload in ALL + OURS for html in blocks(payload)]
    assert len(sent) > len(ALL)
    engine.run(UNGUARDED)
    engine.run(PUT, sent)
    assert engine.run(FOUND) == []

    engine.run(PUT, list(CONTROLS.values()))
    engine.wait_for(REPORTS, ["script-src-attr", "img-src", "media-src"])
    engine.open("about:blank")
    engine.problems.clear()
