"""Markdown: safe HTML, block by block

The model writes Markdown. The server turns it into HTML with one library,
cleans that with another, and sends it block by block. Only the open block is
sent again while it grows, a long one less often; a finished one never is.

Notice: it is the HTML that is cleaned, not the Markdown, and what was taken out
is told, by events of the type `blocked`. Images go too: the address of one can
carry away what the page knows. The page cleans once more, with `setHTML` where
the browser has it.

Try: with `flask run --reload`, set DRAW_SECONDS to 1, save, and press Example:
the answer grows once a second. Then press Attack, and see what is taken out.
Compare draws a hundred such blocks one by one, and beside them, more slowly, by
rendering all the answer again for each.

    curl -N "http://127.0.0.1:5000/stream/markdown?prompt=Show+me+Markdown"
"""

import time
from contextlib import closing

from flask import Blueprint, request

from growing_markdown import GrowingMarkdown
from language_model import (
    RECONNECT_MS,
    ModelError,
    chat,
    deltas,
    new_call,
    query_prompt,
    refuse_other_sites,
)
from sse import KEEP_ALIVE, Event, EventStream, keep_alive

DRAW_SECONDS = 0.1

bp = Blueprint("markdown", __name__)
bp.before_request(refuse_other_sites)


@bp.get("/stream/markdown")
def stream():
    prompt = query_prompt()
    if "Last-Event-ID" in request.headers:
        return "", 204  # no prompt is paid for twice
    call = new_call("/chat/completions", chat(prompt))
    pieces = keep_alive(deltas(call), DRAW_SECONDS, interrupt=call.cut)
    return EventStream(answer(pieces), retry=RECONNECT_MS)


def answer(pieces, clock=time.monotonic):
    markdown, index, due = GrowingMarkdown(), 0, 0
    end = Event("[DONE]", event="done")
    try:
        with closing(pieces):
            for piece in pieces:
                if piece is KEEP_ALIVE:  # the model pauses: draw all it wrote
                    yield piece
                else:
                    markdown.add(piece)
                if clock() < due or not markdown.has_grown:
                    continue
                due = clock() + DRAW_SECONDS
                for block in markdown.take_finished():
                    yield from whole(index, block)
                    index += 1
                if html := markdown.draw():
                    yield drawn(index, html)
    except ModelError as error:
        end = Event({"error": str(error)}, event="failed")
    for block in markdown.take_rest():
        yield from whole(index, block)
        index += 1
    yield end


def whole(index, block):
    yield drawn(index, block.html)
    for what, where in block.blocked:
        told = {"index": index, "what": what, "where": where}
        yield Event(told, event="blocked")


def drawn(index, html):
    return Event({"index": index, "html": html}, event="block", id=index)
