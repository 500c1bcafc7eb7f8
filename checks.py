"""Validate a request: its numbers, its text, its JSON, and who sent it.

Each function returns the valid value, or aborts with a message that says what
is wrong and what is allowed. Copy this file into any Flask app.
"""

import json
import re
from typing import Any

from flask import Response, abort, request
from werkzeug.exceptions import RequestEntityTooLarge

# Names of blueprints that other sites may use, because they cost nothing.
OPEN_BLUEPRINTS: frozenset[str] = frozenset()
FOREIGN = (
    "Only this site's own pages may do this. If this page is one of them, "
    "a proxy in front of the server has changed the Host header."
)
NUMBER = re.compile("[-+]?([0-9]+|[0-9]*[.][0-9]+)([eE][-+]?[0-9]+)?")


def query_number(
    name: str, default: float, lowest: float, highest: float
) -> float:
    """Return a number from the query string, of the type of `default`.

    Aborts with 400 unless it is a number from `lowest` to `highest`.
    """
    text = request.args.get(name, str(default))
    try:
        number = type(default)(text) if NUMBER.fullmatch(text) else None
    except ValueError:
        number = None
    if number is None or not lowest <= number <= highest:
        kind = "an integer" if isinstance(default, int) else "a number"
        allowed = f"{kind} from {lowest} to {highest}"
        abort(400, f"{name} must be {allowed}, got {text!r}.")
    return number


def query_text(name: str, lowest: int, highest: int) -> str:
    """Return text from the query string.

    Aborts with 400 unless it has `lowest` to `highest` characters.
    """
    return _checked_text(request.args.get(name), name, lowest, highest)


def json_text(
    body: dict[str, Any], name: str, lowest: int, highest: int
) -> str:
    """Return a string from a JSON object.

    Aborts with 400 unless it has `lowest` to `highest` characters.
    """
    return _checked_text(body.get(name), name, lowest, highest)


def _checked_text(text: Any, name: str, lowest: int, highest: int) -> str:
    if not isinstance(text, str) or not lowest <= len(text) <= highest:
        abort(400, f"{name} must be text of {lowest} to {highest} characters.")
    return text


def json_object(max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in the body, strictly as RFC 8259 defines it.

    Aborts with 415 if the Content-Type is not JSON, with 413 for a body over
    `max_bytes`, and with 400 if the body is incomplete or not a JSON object.
    """
    if not request.is_json:
        abort(415, "The body must have the Content-Type application/json.")
    try:
        body = request.stream.read(max_bytes + 1)
        if len(body) < min(request.content_length or 0, max_bytes + 1):
            raise EOFError
    except RequestEntityTooLarge:  # the app sets a smaller limit
        raise
    except Exception:  # each server raises its own exceptions
        abort(400, "The body is incomplete.")
    if len(body) > max_bytes:
        abort(413, f"The body must have at most {max_bytes} bytes.")
    try:
        value = json.loads(body.decode())
        json.dumps(value, allow_nan=False)  # Python parses NaN; JSON has none
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        abort(400, 'The body must be a JSON object, such as {"a": 1}.')
    return value


def same_origin_only() -> None:
    """Abort with 403 if another site's page, or a prefetch, sent the request.

    Guard requests that change something or cost money: pass this function to
    `bp.before_request`. Browsers send Sec-Fetch-Site and Sec-Purpose (W3C Fetch
    Metadata), Origin (RFC 6454) or, with a GET over plain HTTP, only Referer.
    curl and API clients send none of them, and pass. Set Flask's TRUSTED_HOSTS
    as well: without it, DNS rebinding lets any site pass as the same origin.
    """
    if request.blueprint in OPEN_BLUEPRINTS:
        return
    headers, host = request.headers, request.host
    own_origins = (None, f"http://{host}", f"https://{host}")
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    is_get, agent = request.method == "GET", headers.get("User-Agent", "")
    if site is origin is None and is_get and "Mozilla/" in agent:
        origin = "/".join(headers.get("Referer", "none").split("/")[:3])
    is_foreign = site not in (None, "same-origin") or origin not in own_origins
    if is_foreign or "Sec-Purpose" in headers or not host:
        abort(403, FOREIGN)


def allow_any_origin(response: Response) -> Response:
    """Let pages of all sites read the response. Pass to `bp.after_request`."""
    response.headers["Access-Control-Allow-Origin"] = "*"
    return response
