"""Settings from environment variables, validated at startup.

`FLASK_MAX_STREAMS=200` sets MAX_STREAMS, as it does for Flask's own settings.
The OPENAI_ names are those of the official client. REDIS_URL is the usual name.
This module needs only the standard library, so `gunicorn.conf.py` can validate
the settings before any worker starts.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

SETTINGS = {
    # name: (default, lowest, highest)
    "RUN_PORT": (5000, 1, 65535),
    "MAX_STREAMS": (1000, 1, 100_000),
    "KEEP_ALIVE_SECONDS": (15.0, 0.1, 25.0),  # many proxies time out after 30
    "UPSTREAM_SILENCE_SECONDS": (60.0, 0.1, 600.0),
    "OFFLINE_WORD_SECONDS": (0.05, 0.0, 5.0),
    "JOB_LOST_SECONDS": (15.0, 1.0, 600.0),
    "RELAY_MAX_BYTES": (512 * 1024, 1024, 100 * 1024 * 1024),
    "RELAY_MAX_CHOICES": (1, 1, 128),
    "RELAY_MAX_TOKENS": (16_384, 1, 10_000_000),
}

logger = logging.getLogger(__name__)


def read_settings(environ: MutableMapping[str, str]) -> dict[str, Any]:
    """Return the value of each setting, and add a missing SECRET_KEY.

    Raises SystemExit with one line that says what is wrong and what is allowed.
    """
    if sys.flags.optimize > 1:
        raise SystemExit(
            "Unset PYTHONOPTIMIZE, and omit -OO: "
            "the pages show the docstrings of the lessons."
        )
    values: dict[str, Any] = {"TRUSTED_HOSTS": _trusted_hosts(environ)}
    for name, (default, lowest, highest) in SETTINGS.items():
        text = environ.get(f"FLASK_{name}", default)
        try:
            values[name] = type(default)(text)
            in_range = lowest <= values[name] <= highest
        except ValueError:
            in_range = False
        if not in_range:
            kind = "an integer" if isinstance(default, int) else "a number"
            allowed = f"{kind} from {lowest} to {highest}"
            raise SystemExit(f"FLASK_{name} must be {allowed}, got {text!r}.")
    _check_upstream(environ)
    _check_redis(environ)
    return values | {"SECRET_KEY": _secret_key(environ)}


def _secret_key(environ: MutableMapping[str, str]) -> str:
    """Return the key that signs session cookies.

    Without one, add a random key. gunicorn's workers and the child process of
    `flask run --reload` inherit the environment, and so the same key.
    """
    given = environ.get("SECRET_KEY") or environ.get("FLASK_SECRET_KEY")
    if not given:
        given = environ["SECRET_KEY"] = token_hex()
        logger.warning("SECRET_KEY is not set, so a random key is used.")
    return given


def _trusted_hosts(environ: Mapping[str, str]) -> list[str]:
    names = environ.get("FLASK_TRUSTED_HOSTS", "").replace(",", " ").split()
    host = re.compile(r"[.]?[\w-]+([.][\w-]+)*")
    if not all(host.fullmatch(name) and "_" not in name for name in names):
        raise SystemExit(
            "FLASK_TRUSTED_HOSTS must contain host names without ports or "
            "underscores, such as example.org,.example.org "
            "(a leading dot adds all subdomains)."
        )
    return [name.lower() for name in names]


def _check_upstream(environ: Mapping[str, str]) -> None:
    try:
        url = urlsplit(environ.get("OPENAI_BASE_URL") or "http://localhost")
        usable = (
            url.scheme in ("http", "https")
            and re.fullmatch(r"\S+", url.hostname or "")
            and url.port != 0
            and not (url.query or url.fragment or "@" in url.netloc)
        )
    except ValueError:
        usable = False
    if not usable:
        raise SystemExit(
            "OPENAI_BASE_URL must be an http or https URL without a query "
            "or password, such as http://localhost:11434/v1."
        )
    key = environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise SystemExit("OPENAI_API_KEY must be ASCII, without spaces.")


def _check_redis(environ: Mapping[str, str]) -> None:
    try:
        text = environ.get("REDIS_URL") or "redis://localhost"
        url = urlsplit(text)
        (url.hostname or "").encode("idna")
        usable = (url.query, url.fragment) == ("", "") and (
            text.startswith("unix:///")
            or (
                text.startswith(("redis://", "rediss://"))
                and re.fullmatch(r"\S+", url.hostname or "")
                and re.fullmatch("/?[0-9]{0,6}", url.path)
                and url.port != 0
            )
        )
    except ValueError:
        usable = False
    if not usable:
        raise SystemExit(
            "REDIS_URL must be a redis, rediss or unix URL without a query, "
            "such as redis://localhost:6379/0."
        )


def has_upstream(environ: Mapping[str, str]) -> bool:
    """Return whether an API is configured, so that answers may cost money."""
    names = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
    return any(environ.get(name) for name in names)
