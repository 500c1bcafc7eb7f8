"""A limit on the streams that are open at once in this process."""

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
    """Answer 503 while MAX_STREAMS long requests are open.

    A long request takes a place before its view does any work, and frees it as
    soon as its response is closed. All other requests are always answered.
    """
    places = threading.BoundedSemaphore(app.config["MAX_STREAMS"])

    @app.before_request
    def take_place() -> None:
        if request.endpoint in LONG_ENDPOINTS:
            if not places.acquire(blocking=False):
                raise ServiceUnavailable(
                    "Too many streams are open. Try again in a few seconds.",
                    retry_after=RETRY_AFTER_SECONDS,
                )
            g.free_place = places.release

    @app.after_request
    def free_place_when_closed(response: Response) -> Response:
        if "free_place" in g and response.is_streamed:
            # Werkzeug does not close a response if the client resets the
            # connection, so free the place when it is garbage, too.
            response.call_on_close(finalize(response, g.pop("free_place")))
        return response

    @app.teardown_request
    def free_place_without_stream(error: BaseException | None) -> None:
        if "free_place" in g:
            g.pop("free_place")()
