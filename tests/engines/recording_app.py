"""The app, with pages that record their own errors and warnings.

WebKitGTK's driver reports none of them. The first script of each page does.
"""

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


def create_app() -> Flask:
    app = ours.create_app()

    @app.get("/record.js")
    def record() -> Response:
        return Response(RECORD, mimetype="text/javascript")

    @app.after_request
    def add_script(response: Response) -> Response:
        if response.mimetype == "text/html" and not response.is_streamed:
            script = '<head><script src="/record.js"></script>'
            response.set_data(response.get_data(True).replace("<head>", script))
        return response

    return app
