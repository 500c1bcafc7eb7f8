"""Measure what an answer in Markdown costs as it gets longer.

    python -m benchmarks.markdown_growth

Runs the generator of the lesson `markdown` on answers that arrive in tokens of
four characters, 200 a second by a simulated clock. For each size, prints the
CPU time and the bytes sent, both per byte of Markdown. The generator renders
the open block repeatedly, at most ten times a second.
"""

import time
from collections.abc import Iterator

from demos.markdown import blocks

SIZES = {"1 KB": 1000, "10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000}
TOKEN_CHARACTERS = 4
TOKENS_PER_SECOND = 200
SENTENCE = "Some *text* with `code`, **bold** and [a](/link)."
KINDS = {
    "paragraphs": ("", f"{SENTENCE}\n\n"),
    "one paragraph": ("", f"{SENTENCE}\n"),
    "one code block": ("```python\n", "    total += f(x) * 2  # and so on\n"),
    "one list": ("", "- an item with **bold** text in it\n"),
    "one table": ("| a | b |\n|---|---|\n", "| one cell | another one |\n"),
}


def markdown(kind: str, size: int) -> str:
    """Return `size` characters of Markdown of this kind."""
    beginning, repeated = KINDS[kind]
    return (beginning + repeated * (size // len(repeated) + 1))[:size]


def measure(kind: str, size: int) -> tuple[float, int]:
    """Return the CPU seconds and the bytes sent for such an answer."""
    seconds = 0.0

    def tokens() -> Iterator[str]:
        nonlocal seconds
        for start in range(0, size, TOKEN_CHARACTERS):
            seconds += 1 / TOKENS_PER_SECOND
            yield text[start : start + TOKEN_CHARACTERS]

    text, begin = markdown(kind, size), time.process_time()
    sent = sum(len(e.encode()) for e in blocks(tokens(), lambda: seconds))
    return time.process_time() - begin, sent


def table(sizes: dict[str, int]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| per byte of Markdown | {' | '.join(sizes)} |"
    yield "|---|" + "---:|" * len(sizes)
    for kind in KINDS:
        cells = []
        for size in sizes.values():
            seconds, sent = measure(kind, size)
            cells.append(f"{seconds / size * 1e6:.1f} µs, {sent / size:.1f} B")
        yield f"| {kind} | {' | '.join(cells)} |"


if __name__ == "__main__":
    for line in table(SIZES):
        print(line, flush=True)
