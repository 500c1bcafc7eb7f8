"""Markdown: render a streaming answer as safe HTML

Render an answer block by block, as sanitized HTML, and never redraw
a finished block. The server renders the model's Markdown with one
library and sanitizes the HTML with another. It resends only the
block that is still growing, and a long one less often.

Notice: the server sanitizes the HTML, not the Markdown. A `blocked`
event reports each removal. Images are removed too, because the URL
of an image can leak what the page knows. The page sanitizes the
HTML once more before it shows it.

Try: with `flask run --reload`, change `DRAW_SECONDS = 0.1` to 1,
save, and press Ask. The answer grows once a second. Then press
Attack: none of its scripts run, and the second box lists what was
removed.

    curl -N "http://127.0.0.1:5000/stream/markdown?prompt=Markdown"
"""

import time

from flask import Blueprint, request

from checks import query_text, same_origin_only
from growing_markdown import GrowingMarkdown
from language_model import ModelError, ask, deltas
from sse import Event, EventStream, keep_alive

MAX_PROMPT_CHARACTERS = 4000
DRAW_SECONDS = 0.1
DAY_MS = 24 * 60 * 60 * 1000  # retry delay: never ask twice

bp = Blueprint("markdown", __name__)
bp.before_request(same_origin_only)  # an answer costs money


@bp.get("/stream/markdown")
def stream():
    prompt = query_text("prompt", 1, MAX_PROMPT_CHARACTERS)
    if "Last-Event-ID" in request.headers:
        return "", 204  # never pay twice for a prompt
    answer = ask([{"role": "user", "content": prompt}])
    pieces = keep_alive(deltas(answer), DRAW_SECONDS, answer.close)
    return EventStream(blocks(pieces), retry=DAY_MS)


def blocks(pieces, clock=time.monotonic):
    markdown, index, due = GrowingMarkdown(), 0, 0
    end = Event("[DONE]", event="done")
    try:
        for piece in pieces:
            if piece is None:  # the model pauses: draw now
                yield None
            else:
                markdown.add(piece)
            if clock() < due or not markdown.has_grown:
                continue
            due = clock() + DRAW_SECONDS
            for block in markdown.take_finished():
                yield from finished(index, block)
                index += 1
            if html := markdown.draw():
                yield drawn(index, html)
    except ModelError as error:
        end = Event({"error": str(error)}, event="failed")
    finally:
        pieces.close()
    for block in markdown.take_rest():
        yield from finished(index, block)
        index += 1
    yield end


def finished(index, block):
    yield drawn(index, block.html)
    for what, where in block.blocked:
        removed = {"index": index, "what": what, "where": where}
        yield Event(removed, event="blocked")


def drawn(index, html):
    block = {"index": index, "html": html}
    return Event(block, event="block", id=index)
