"""Judge pages with axe-core, which knows the accessibility guidelines."""

import npm
from playwright.sync_api import Page

AXE_CORE = "4.14.1"
RUN = """
async (rules) => {
  const kinds = ["violations", "incomplete"];
  const options = { resultTypes: kinds };
  options.rules = { "target-size": { enabled: true } }; // WCAG 2.2, else off
  if (rules.length > 0) options.runOnly = rules;
  // axe cannot judge the contrast of words in a picture. test_pictures.py can.
  const results = await axe.run({ exclude: "svg text" }, options);
  return kinds.flatMap((kind) => results[kind]).flatMap(
    ({ id, nodes }) => nodes.map(({ target }) => [id, target.join(" ")]),
  );
}
"""
# Tokens of the same kind look alike, so keep one of each. Otherwise, axe would
# judge a thousand tokens.
KEEP_ONE_TOKEN_OF_EACH_KIND = """
() => {
  const seen = new Set();
  for (const token of document.querySelectorAll("details pre span")) {
    if (seen.has(token.className)) token.replaceWith(token.textContent);
    seen.add(token.className);
  }
}
"""
# axe cannot judge elements that are hidden, moving or scrolled out of sight.
# It also assumes that the canvas of a frame is white.
SHOW_ALL = """
() => {
  for (const box of document.querySelectorAll("pre, .log, .big")) {
    const still = box.cloneNode(true);
    still.style.height = "auto";
    box.replaceWith(still);
  }
  for (const panel of document.querySelectorAll(".source > .panel")) {
    panel.style.maxHeight = "none";
    panel.parentElement.style.position = "static";
  }
  for (const line of document.querySelectorAll(".line")) {
    line.style.cssText = "padding: 0; text-indent: 0; white-space: pre";
  }
  for (const part of document.querySelectorAll("[hidden]")) {
    part.hidden = false;
  }
  for (const { contentDocument } of document.querySelectorAll("iframe")) {
    contentDocument.documentElement.style.background = "Canvas";
  }
}
"""


def script(folder) -> str:
    """Return the source of axe, which is kept in this folder."""
    npm.unpack({"axe-core": AXE_CORE}, folder)
    return (folder / "axe-core/package/axe.min.js").read_text("utf-8")


def problems(page: Page, source: str, *left_out: str) -> list[list[str]]:
    """List what axe finds, or cannot judge, in light and in dark mode.

    This removes what `left_out` matches, shows what is hidden, and stops all
    scrolling.
    """
    for selector in left_out:
        page.locator(selector).evaluate("(element) => element.remove()")
    for frame in page.frames:
        frame.evaluate(source)

    def run(*rules: str) -> list[list[str]]:
        return page.evaluate(RUN, rules)

    page.emulate_media(color_scheme="light")
    found = run("scrollable-region-focusable")
    page.evaluate(KEEP_ONE_TOKEN_OF_EACH_KIND)
    page.evaluate(SHOW_ALL)
    found += run()
    page.emulate_media(color_scheme="dark")
    return found + run("color-contrast")
