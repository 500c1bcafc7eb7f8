"""Allowed hosts, and headers that protect the visitors of a page."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, Response, abort, request
from werkzeug.sansio.utils import host_is_trusted

import checks
from demos import LESSONS

LOOPBACK = ("localhost", ".localhost")


def init_app(app: Flask) -> None:
    """Allow only TRUSTED_HOSTS, LOOPBACK and IP addresses; add headers."""
    names = app.config["TRUSTED_HOSTS"] or ()
    app.config["TRUSTED_HOSTS"] = None  # Flask's check rejects IP addresses

    @app.before_request
    def refuse_other_hosts() -> None:
        if not is_ours(request.host, names):
            host = request.headers.get("Host")
            abort(400, f"The host {host!r} is not in FLASK_TRUSTED_HOSTS.")

    app.after_request(add_headers)


def is_ours(host: str, names: Iterable[str]) -> bool:
    """Return whether a request's Host belongs to this site.

    Without this check, DNS rebinding lets any site pass as the same origin: its
    name resolves first to its own server, then to ours. IP addresses are safe.
    """
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return bool(ip_address(name))
    except ValueError:
        return host_is_trusted(name, [*LOOPBACK, *names])


def add_headers(response: Response) -> Response:
    """Allow only our own scripts; let other sites read OPEN_BLUEPRINTS."""
    lesson = LESSONS.get(request.blueprint)
    response.headers.setdefault(
        "Content-Security-Policy",
        content_security_policy(lesson.inline_scripts if lesson else ()),
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    if request.blueprint in checks.OPEN_BLUEPRINTS:
        checks.allow_any_origin(response)
        # For the preflight request of a POST with JSON.
        allowed = "Authorization, Content-Type"
        response.headers["Access-Control-Allow-Headers"] = allowed
    return response


def content_security_policy(inline_scripts: Iterable[str]) -> str:
    """Return a policy that allows only our files and these inline scripts."""
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
