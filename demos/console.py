"""Console: a program's output, line by line

Show what a program prints while it runs, and then its exit code.
Each line becomes an event of type `stdout` or `stderr`, with an id.
The final event, `exit`, contains the exit code. If a signal killed
the program, the code is the negative signal number. When the client
disconnects, the server kills the program and its children. gunicorn
also kills them when it stops, but `flask run` doesn't. This works
on Linux and macOS.

Notice: most programs buffer their output when it isn't a terminal,
so nothing appears until they end. Start Python with `-u`, and other
programs with `stdbuf -oL`. The server reads no faster than the
client receives. If output floods the pipe, the program waits
(backpressure). A browser that reconnects gets 204, so the program
runs only once.

Try: with `flask run --reload`, change `"-u", "-c"` to `"-c"`, save,
and press Start. Steps 3, 6 and 9 go to stderr, and still arrive as
they happen. All the others arrive together, at the end.

    curl -N http://127.0.0.1:5000/stream/console
"""

import os
import signal
import sys
from codecs import getincrementaldecoder
from contextlib import suppress
from io import IncrementalNewlineDecoder
from itertools import count
from selectors import EVENT_READ, DefaultSelector
from subprocess import DEVNULL, PIPE, Popen

from flask import Blueprint, request

from checks import same_origin_only
from sse import Event, EventStream

PROGRAM = """
import sys, time
for step in range(1, 11):
    file = sys.stdout if step % 3 else sys.stderr
    print("Step", step, "of 10", file=file)
    time.sleep(0.5)
"""
COMMAND = [sys.executable, "-u", "-c", PROGRAM]  # never from a user
LOOK_SECONDS = 0.2  # to notice a disconnect, and the program's end
READ_BYTES = 16 * 1024  # a longer line arrives in pieces
DAY_MS = 24 * 60 * 60 * 1000  # retry delay: never run it twice

bp = Blueprint("console", __name__)
bp.before_request(same_origin_only)  # it starts a program


@bp.get("/stream/console")
def stream():
    if "Last-Event-ID" in request.headers:
        return "", 204  # the program has already run
    return EventStream(run(COMMAND), retry=DAY_MS)


def run(command):
    pipes = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
    ids = count(1)
    # A new session puts a program and its children in one group.
    with Popen(command, **pipes, start_new_session=True) as process:
        try:
            yield from output(process, ids)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    yield Event(process.returncode, event="exit", id=next(ids))


def output(process, ids):
    pipes = Lines("stdout", ids), Lines("stderr", ids)
    with DefaultSelector() as selector:
        selector.register(process.stdout, EVENT_READ, pipes[0])
        selector.register(process.stderr, EVENT_READ, pipes[1])
        ready, code = True, None
        # A child may keep the pipes open, so don't wait for them.
        while ready or code is None:
            code = process.poll()  # first, so no output is missed
            ready = selector.select(LOOK_SECONDS)
            if not ready:
                yield None
            for key, _ in ready:
                data = os.read(key.fd, READ_BYTES)
                yield from key.data.events(data)
                if not data:
                    selector.unregister(key.fileobj)
    for lines in pipes:
        yield from lines.events(b"")


class Lines:
    """A decoder that splits pieces of output into lines."""

    def __init__(self, name, ids):
        utf8 = getincrementaldecoder("utf-8")("replace")
        self.decoder = IncrementalNewlineDecoder(utf8, True)
        self.name, self.ids, self.rest = name, ids, ""

    def events(self, data):
        text = self.rest + self.decoder.decode(data, not data)
        *lines, self.rest = text.split("\n")
        if self.rest and (not data or len(self.rest) > READ_BYTES):
            lines.append(self.rest)
            self.rest = ""
        for line in lines:
            yield Event(line, event=self.name, id=next(self.ids))
