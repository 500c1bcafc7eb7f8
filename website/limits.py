"""A limit on the number of open streams in this process."""

import threading
from weakref import finalize

from flask import Flask, Response, g, request
from werkzeug.exceptions import ServiceUnavailable

from demos import LESSONS

RETRY_AFTER_SECONDS = 5
LONG_ENDPOINTS = {
    f"{name}.{view}"
    for name, lesson in LESSONS.items()
    for view in lesson.long_views
}


def init_app(app: Flask) -> None:
    """Answer long requests with 503 while MAX_STREAMS of them are open.

    A long request takes a slot before its view does any work, and frees it as
    soon as its response is closed. The limit does not affect other requests.
    """
    slots = threading.BoundedSemaphore(app.config["MAX_STREAMS"])

    @app.before_request
    def take_slot() -> None:
        if request.endpoint in LONG_ENDPOINTS:
            if not slots.acquire(blocking=False):
                raise ServiceUnavailable(
                    "Too many streams are open. Try again in a few seconds.",
                    retry_after=RETRY_AFTER_SECONDS,
                )
            g.free_slot = slots.release

    @app.after_request
    def free_slot_when_closed(response: Response) -> Response:
        if "free_slot" in g and response.is_streamed:
            # If the client resets the connection, Werkzeug does not close the
            # response, so free its slot on garbage collection as well.
            response.call_on_close(finalize(response, g.pop("free_slot")))
        return response

    @app.teardown_request
    def free_slot_without_stream(error: BaseException | None) -> None:
        if "free_slot" in g:
            g.pop("free_slot")()
