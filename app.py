"""Server-sent events by example: the app that serves every lesson."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from flask import Flask

import background
import broker
import checks
import language_model
import sse
from demos import FREE_OFFLINE, LESSONS, relay
from website import limits, offline_model, pages, security, take
from website.settings import has_upstream, read_settings


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Return the app, or raise SystemExit if a setting is invalid."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(read_settings(os.environ) | dict(config or {}))
    set_up_parts(app.config)
    lessons = [lesson.module for lesson in LESSONS.values()]
    for module in (pages, take, *lessons):
        app.register_blueprint(module.bp)
    security.init_app(app)
    limits.init_app(app)
    return app


def set_up_parts(config: Mapping[str, Any]) -> None:
    """Set the parts' constants, and plug in Redis and the offline model."""
    sse.KEEP_ALIVE_SECONDS = config["KEEP_ALIVE_SECONDS"]
    language_model.SILENCE_SECONDS = config["UPSTREAM_SILENCE_SECONDS"]
    background.LOST_SECONDS = config["JOB_LOST_SECONDS"]
    relay.MAX_BODY_BYTES = config["RELAY_MAX_BYTES"]
    relay.MAX_CHOICES = config["RELAY_MAX_CHOICES"]
    relay.MAX_TOKENS = config["RELAY_MAX_TOKENS"]
    broker.BROKER = broker.MemoryBroker()
    if url := os.environ.get("REDIS_URL"):
        from redis_broker import RedisBroker  # only this needs redis-py

        broker.BROKER = RedisBroker(url)
        broker.BROKER.refuse_cluster()
    checks.OPEN_BLUEPRINTS = frozenset()
    if not has_upstream(os.environ):
        model = offline_model.OfflineModel(config["OFFLINE_WORD_SECONDS"])
        language_model.session.mount(offline_model.URL, model)
        language_model.BASE_URL = offline_model.URL
        checks.OPEN_BLUEPRINTS = FREE_OFFLINE


app = create_app()

if __name__ == "__main__":
    raise SystemExit("Run `flask run` or, in production, `gunicorn` instead.")
