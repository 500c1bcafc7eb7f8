"""Server-sent events by example: the app that serves every lesson."""

import hashlib
import logging
import os
import threading
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flask import (
    Flask,
    Response,
    abort,
    g,
    jsonify,
    make_response,
    render_template,
    request,
)
from werkzeug.exceptions import HTTPException, ServiceUnavailable

import pages
from broker import Unavailable, newest
from demos import DEMOS
from language_model import has_upstream
from settings import read_settings
from sse import is_cross_site

LESSONS = {demo.bp.name: demo for demo in DEMOS}
# Lessons that ask the model import its guard: their answers can cost money.
MODEL_LESSONS = {
    name
    for name, demo in LESSONS.items()
    if hasattr(demo, "refuse_other_sites")
}
MEDIA_TYPES = ("application/json", "text/html")
WAITING_VIEWS = ("stream", "long_poll", "socket")
RETRY_AFTER_SECONDS = 5


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Return the app, configured from the environment, then from `config`.

    Raises SystemExit with one line for a setting that makes no sense.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(read_settings(os.environ) | dict(config or {}))
    app.register_blueprint(pages.bp)
    for demo in DEMOS:
        app.register_blueprint(demo.bp)
    app.before_request(refuse_changes_from_other_sites)
    app.after_request(add_headers)
    app.register_error_handler(HTTPException, explain)
    limit_streams(app)
    if os.environ.get("REDIS_URL"):
        with suppress(Unavailable):  # it may come later; its absence is logged
            newest("start")
    return app


def refuse_changes_from_other_sites() -> None:
    """Answer 403 where the page of another site would change something."""
    if request.method in ("POST", "PUT", "DELETE", "PATCH") and is_cross_site():
        abort(403, "Pages of other sites may not change anything here.")


def add_headers(response: Response) -> Response:
    """Let only scripts of ours run, and other sites read what costs nothing."""
    inline = map(script_source, g.get("inline_scripts", []))
    scripts = " ".join(["'self'", *inline])
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; "
        "img-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-src 'self'; frame-ancestors 'self'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    spends_money = request.blueprint in MODEL_LESSONS and has_upstream()
    if request.blueprint in LESSONS and not spends_money:
        response.headers["Access-Control-Allow-Origin"] = "*"
    return response


def script_source(text: str) -> str:
    """Return the Content-Security-Policy source that allows this script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{b64encode(digest).decode()}'"


def explain(error: HTTPException) -> Response:
    """Say what was wrong: in JSON for streams and APIs, on a page for pages."""
    wants_page = request.accept_mimetypes.best_match(MEDIA_TYPES) == "text/html"
    if wants_page and request.blueprint not in LESSONS:
        response = make_response(render_template("error.html", error=error))
    else:
        response = jsonify(error=error.description)
    response.status_code = error.code
    for name, value in error.get_headers():
        response.headers.setdefault(name, value)
    return response


def limit_streams(app: Flask) -> None:
    """Answer 503 while MAX_STREAMS streams are open in this process.

    A view that goes on, and whatever asks the model, takes a place before it
    does any work, and frees it as soon as its response is closed. To stop an
    answer is always possible.
    """
    places = threading.BoundedSemaphore(app.config["MAX_STREAMS"])

    @app.before_request
    def take_place() -> None:
        view = (request.endpoint or "").rpartition(".")[2]
        waits = view in WAITING_VIEWS or request.blueprint in MODEL_LESSONS
        if request.method != "DELETE" and waits:
            if not places.acquire(blocking=False):
                raise ServiceUnavailable(
                    "Too many streams are open. Try again in a few seconds.",
                    retry_after=RETRY_AFTER_SECONDS,
                )
            g.give_place_back = places.release

    @app.after_request
    def give_back_when_closed(response: Response) -> Response:
        if "give_place_back" in g and response.is_streamed:
            response.call_on_close(g.pop("give_place_back"))
        return response

    @app.teardown_request
    def give_back_without_response(error: BaseException | None) -> None:
        if "give_place_back" in g:
            g.pop("give_place_back")()


app = create_app()
