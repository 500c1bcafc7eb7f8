"""Prices: compute once, send to everyone

One thread computes the prices, however many clients watch them. The
prices change twenty times a second. A client first gets the last
minute of prices from the channel, and then every change or, with a
longer interval, only some.

Notice: processes that share a Redis share one market, and need no
leader. Each reads the newest prices, waits, and publishes the next
ones only if nobody else has. If one process stops, another takes
over.

Try: open a second window, set the interval to 0.05 there and to 2
here, and press Start in both. The second chart moves twenty times a
second. The first gets every fortieth of these prices, so its lines
have fewer corners.

    curl -N "http://127.0.0.1:5000/stream/prices?interval=2"
"""

import json
import random
import threading
from contextlib import closing, contextmanager, suppress
from types import SimpleNamespace

from flask import Blueprint, request

import broker
from broker import BEGIN, Conflict, Unavailable
from checks import query_number
from sse import Event, EventStream

INTERVAL_SECONDS = 0.5
STEP_SECONDS = 0.05
HISTORY_EVENTS = 1200  # a minute
SYMBOLS = ("ALFA", "BRVO", "CHLI", "DLTA", "ECHO")
OPENING = dict.fromkeys(SYMBOLS, 100)

bp = Blueprint("prices", __name__)
market = SimpleNamespace(clients=0, lock=threading.Lock())


@bp.get("/stream/prices")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    last_event_id = request.headers.get("Last-Event-ID", BEGIN)
    events = broker.subscribe("prices", last_event_id)
    # Spread out the reconnects that follow a restart.
    retry = random.randint(2000, 5000)
    return EventStream(watch(events, interval), retry=retry)


@contextmanager
def opened_market():
    with market.lock:
        if market.clients == 0:
            market.closed = threading.Event()
            threading.Thread(
                target=run_market, args=[market.closed], daemon=True
            ).start()
        market.clients += 1
    try:
        yield
    finally:
        with market.lock:
            market.clients -= 1
            if market.clients == 0:
                market.closed.set()


def run_market(closed):
    last = None
    while not closed.wait(STEP_SECONDS):
        after = last.id if last else BEGIN
        prices = moved(json.loads(last.data)) if last else OPENING
        options = {"after": after, "max_events": HISTORY_EVENTS}
        with suppress(Conflict, Unavailable):
            broker.publish("prices", Event(prices), **options)
        with suppress(Unavailable):
            last = broker.newest("prices")


def moved(prices, factor=lambda: random.gauss(1, 0.001)):
    return {key: round(prices[key] * factor(), 3) for key in prices}


def watch(events, interval):
    every, count = max(1, round(interval / STEP_SECONDS)), 0
    with opened_market(), closing(events):
        for event in events:
            is_price = event is not None and event.event is None
            if not is_price or count % every == 0:
                yield event
            count += is_price
