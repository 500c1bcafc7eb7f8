"""Prices: one market for everybody

The prices move about twenty times a second, and all who watch see the same
ones. A reader begins with the history that the channel holds, and then gets
every step or, with a longer `interval`, only some.

Notice: every process with readers has a thread that makes prices. A step names
the event that it comes after, so of two threads only the first succeeds; the
other goes on from what that one published. A full history begins with `reset`,
because the first prices of all are no longer held.

Try: open a second window, set its interval to 0.05 and this one's to 2, and
press Start in both. The lines are the same, but one chart moves forty times as
often as the other.

    curl -N "http://127.0.0.1:5000/stream/prices?interval=2"
"""

import json
import random
import threading
from contextlib import closing, contextmanager, suppress
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
    with closing(subscribe("prices", BEGIN, STEP_SECONDS)) as events:
        for event in events:
            with market.lock:
                market.is_open = market.watchers > 0
                if not market.is_open:
                    return
            if event is KEEP_ALIVE:  # for a whole step nobody has published
                step, most = Event(moved(prices)), HISTORY_EVENTS
                with suppress(Conflict, Unavailable):
                    publish("prices", step, after=last_id, max_events=most)
                continue
            last_id = event.id
            if event.event == "message":
                prices = json.loads(event.data)


def moved(prices, factor=lambda: random.gauss(1, 0.001)):
    return {name: round(price * factor(), 3) for name, price in prices.items()}


def watch(events, interval):
    every, steps = max(1, round(interval / STEP_SECONDS)), 0
    with opened_market(), closing(events):
        for event in events:
            if event is not KEEP_ALIVE and event.event == "message":
                steps, left_out = steps + 1, steps % every
                if left_out:
                    continue
            yield event
