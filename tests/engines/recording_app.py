"""The app, with pages that record their own errors and warnings.

WebKitGTK's driver reports none of them. The first script of each page does.
"""

import threading
from collections.abc import Iterable, Iterator
from itertools import islice

from flask import Flask, Response

import app as ours

RECORD = """
window.recorded = [];
{
  const record = (...words) => recorded.push(words.join(" "));
  addEventListener("error", ({ message, target }) => {
    record(message ?? `${target.src ?? target.href} does not load`);
  }, true);
  addEventListener("unhandledrejection", ({ reason }) => record(reason));
  addEventListener("securitypolicyviolation", (event) => {
    record(event.effectiveDirective, event.blockedURI, event.sample);
  });
  for (const level of ["error", "warn"]) console[level] = record;
}
"""


def create_app(hold: bool = False) -> Flask:
    """Return the app. With `hold`, its streams begin, but never end."""
    app = ours.create_app()

    @app.get("/record.js")
    def record() -> Response:
        return Response(RECORD, mimetype="text/javascript")

    @app.after_request
    def add_script(response: Response) -> Response:
        if response.mimetype == "text/html" and not response.is_streamed:
            script = '<head><script src="/record.js"></script>'
            response.set_data(response.get_data(True).replace("<head>", script))
        if hold and response.is_streamed:
            response.response = begin(response.response)
        return response

    return app


def begin(body: Iterable) -> Iterator:
    yield from islice(body, 2)  # enough to show an event
    threading.Event().wait()
