"""Prices: compute once, send to everyone

The prices move twenty times a second, and all clients see the same
ones. A client first gets the history that the channel keeps, and
then every step or, with a longer `interval`, only some of them.

Notice: each process with clients runs a market of its own, in one
thread. A step names the event that it follows, so if two markets
publish at the same moment, only the first succeeds, and the other
takes over its prices. A full history begins with `reset`, because
the very first prices have been discarded.

Try: open a second window, set its interval to 0.05 and this one's
to 2, and press Start in both. Both charts show the same prices, but
one moves forty times as often as the other.

    curl -N "http://127.0.0.1:5000/stream/prices?interval=2"
"""

import json
import random
import threading
import time
from contextlib import closing, contextmanager, suppress
from types import SimpleNamespace

from flask import Blueprint, request

import broker
from broker import BEGIN
from checks import query_number
from sse import Event, EventStream

INTERVAL_SECONDS = 0.5
STEP_SECONDS = 0.05
HISTORY_EVENTS = 1200  # a minute
OPENING = {
    "ALFA": 120,
    "BRVO": 48.5,
    "CHLI": 310,
    "DLTA": 9.6,
    "ECHO": 75,
}

bp = Blueprint("prices", __name__)
market = SimpleNamespace(
    clients=0, is_open=False, lock=threading.Lock()
)


@bp.get("/stream/prices")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    last_event_id = request.headers.get("Last-Event-ID", BEGIN)
    events = broker.subscribe("prices", last_event_id)
    return EventStream(watch(events, interval))


@contextmanager
def opened_market():
    with market.lock:
        market.clients += 1
        must_open, market.is_open = not market.is_open, True
    if must_open:
        threading.Thread(target=run_market, daemon=True).start()
    try:
        yield
    finally:
        with market.lock:
            market.clients -= 1


def run_market():
    last_id, prices = BEGIN, OPENING
    while market_is_needed():
        with suppress(broker.Unavailable):
            last_id, prices = step(last_id, moved(prices))
        time.sleep(STEP_SECONDS)


def market_is_needed():
    with market.lock:
        market.is_open = market.clients > 0
        return market.is_open


def step(last_id, prices):
    options = {"after": last_id, "max_events": HISTORY_EVENTS}
    try:
        event = Event(prices)
        return broker.publish("prices", event, **options), prices
    except broker.Conflict:  # another market was faster
        last = broker.newest("prices")
        return (
            (last.id, json.loads(last.data))
            if last
            else (BEGIN, prices)
        )


def moved(prices, factor=lambda: random.gauss(1, 0.001)):
    return {
        name: round(prices[name] * factor(), 3) for name in prices
    }


def watch(events, interval):
    every, count = max(1, round(interval / STEP_SECONDS)), 0
    with opened_market(), closing(events):
        for event in events:
            is_price = event is not None and event.event is None
            if not is_price or count % every == 0:
                yield event
            count += is_price
