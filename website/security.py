"""Response headers that protect the reader of a page."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable

from flask import Flask, Response, request

import checks
from demos import LESSONS


def init_app(app: Flask) -> None:
    app.after_request(add_headers)


def add_headers(response: Response) -> Response:
    """Allow our own scripts only, and let other sites read what is open."""
    lesson = LESSONS.get(request.blueprint)
    response.headers.setdefault(
        "Content-Security-Policy",
        content_security_policy(lesson.inline_scripts if lesson else ()),
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    if request.blueprint in checks.OPEN_BLUEPRINTS:
        checks.allow_any_origin(response)
        # The answer to the preflight of a POST of JSON.
        allowed = "Authorization, Content-Type"
        response.headers["Access-Control-Allow-Headers"] = allowed
    return response


def content_security_policy(inline_scripts: Iterable[str]) -> str:
    """Return a policy that allows our own files and these inline scripts."""
    hashes = [
        b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in inline_scripts
    ]
    sources = " ".join(["'self'", *(f"'sha256-{one}'" for one in hashes)])
    return (
        f"default-src 'none'; script-src {sources}; style-src 'self'; "
        "img-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-src 'self'; frame-ancestors 'self'"
    )
