"""Prices: one market for everybody

The prices move twenty times a second, and all who watch see the same ones. A
reader begins with the history that the channel holds, and then gets the prices
at most every `interval`: who asks for less is sent less.

Notice: in each process that has readers a thread makes prices, but never two at
once. It publishes a step only if nobody else has, by naming the event that the
step comes after. All but one get a conflict, and go on from that one.

Try: open a second window, and set its interval to 0.05 and this one's to 2. The
lines are the same. Then reload: the chart is full from the start.

    curl -N "http://127.0.0.1:5000/stream/prices?interval=2"
"""

import json
import random
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

from flask import Blueprint, request

from broker import BEGIN, Conflict, Unavailable, publish, subscribe
from sse import KEEP_ALIVE, Event, EventStream, query_number

INTERVAL_SECONDS = 0.5
STEP_SECONDS = 0.05
HISTORY_EVENTS = 1200  # a minute
OPENING = {"ALFA": 120, "BRVO": 48.5, "CHLI": 310, "DLTA": 9.6, "ECHO": 75}

bp = Blueprint("prices", __name__)
market = SimpleNamespace(watchers=0, is_open=False, lock=threading.Lock())


@bp.get("/stream/prices")
def stream():
    interval = query_number("interval", INTERVAL_SECONDS, 0.01, 10)
    last_event_id = request.headers.get("Last-Event-ID", BEGIN)
    return EventStream(watch(subscribe("prices", last_event_id), interval))


@contextmanager
def opened_market():
    with market.lock:
        market.watchers += 1
        if not market.is_open:
            market.is_open = True
            threading.Thread(target=run_market, daemon=True).start()
    try:
        yield
    finally:
        with market.lock:
            market.watchers -= 1


def run_market():
    prices, last_id = OPENING, BEGIN
    for event in subscribe("prices", BEGIN, STEP_SECONDS):
        with market.lock:
            market.is_open = market.watchers > 0
            if not market.is_open:
                return
        if event is KEEP_ALIVE:  # for a whole step nobody has published
            step = Event(moved(prices))
            with suppress(Conflict, Unavailable):
                publish(
                    "prices", step, after=last_id, max_events=HISTORY_EVENTS
                )
        elif event.id:
            prices, last_id = json.loads(event.data), event.id


def moved(prices, factor=lambda: random.gauss(1, 0.001)):
    return {name: round(price * factor(), 3) for name, price in prices.items()}


def watch(events, interval):
    due = 0
    with opened_market():
        for event in events:
            if event is not KEEP_ALIVE and event.id:
                at = int(event.id.split("-")[0]) / 1000  # ids begin with a time
                if at < due:
                    continue
                due = at + interval - STEP_SECONDS / 2
            yield event
