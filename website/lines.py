"""The running line: the line of a lesson that yielded each chunk.

A paused generator keeps its frame: between two chunks, `gi_frame.f_lineno` is
the number of the line with the `yield`. For a `yield from`, the inner generator
(`gi_yieldfrom`) has the number. So a server can report the line in a comment,
which EventSource ignores:

    : demos/numbers.py 53

The Wire panel of a lesson requests these comments with a header.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import GeneratorType

from flask import Response, request

FOLDER = Path(__file__).parents[1]
HEADER = "Show-Lines"
COMMENTS = {"text/event-stream": ": {}\n", "text/html": "<!-- {} -->\n"}


def show_lines(response: Response) -> Response:
    """Add the comments to a stream if its request has the HEADER."""
    chunks, comment = response.response, COMMENTS.get(response.mimetype)
    is_asked = comment and HEADER in request.headers
    if is_asked and isinstance(chunks, GeneratorType):
        response.response = with_lines(chunks, comment)
        response.call_on_close(chunks.close)
    return response


def with_lines(chunks: Generator, comment: str) -> Iterator:
    """Yield the chunks, each one after a comment with its line."""
    is_new_line = True
    with closing(chunks):
        for chunk in chunks:
            if chunk and is_new_line and (line := running_line(chunks)):
                yield comment.format(line).encode()
            yield chunk
            if isinstance(chunk, str):
                is_new_line = chunk.endswith("\n")
            elif isinstance(chunk, bytes):
                is_new_line = chunk.endswith(b"\n")


def running_line(generator: Generator) -> str | None:
    """Return the lesson's file and the line at which a generator is paused.

    Return None if none of the generators comes from a lesson.
    """
    found = None
    while isinstance(generator, GeneratorType) and generator.gi_frame:
        frame = generator.gi_frame
        path = Path(frame.f_code.co_filename)
        if path.parent == FOLDER / "demos":
            found = f"demos/{path.name} {frame.f_lineno}"
        generator = generator.gi_yieldfrom
    return found
