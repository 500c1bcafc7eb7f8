import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
from conftest import PROJECT, wait_until
from playwright.sync_api import Page, expect

import broker
import redis_broker
import sse
from broker import BEGIN, GAP, newest, publish, subscribe
from demos import prices
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event

SYMBOLS = ["ALFA", "BRVO", "CHLI", "DLTA", "ECHO"]
RESET = Event(GAP, event="reset", id=BEGIN)
COLORS = [0x3B82F6, 0xD97706, 0x16A34A, 0xDB2777, 0x8B5CF6]


def gaps(ids) -> list[int]:
    """Return the milliseconds between one id and the next."""
    times = [int(id.split("-")[0]) for id in ids]
    return [after - before for before, after in pairwise(times)]


# The market of a process


@pytest.fixture(autouse=True)
def _short_waits(app, monkeypatch):
    """Shorten all waits. Let this process's market close after the test."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(redis_broker, "BLOCK_MS", 10)
    monkeypatch.setattr(prices, "STEP_SECONDS", 0.02)
    yield
    wait_until(lambda: not markets())


def markets() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "(run_market)" in one.name]


def watch() -> Iterator[Event | None]:
    return prices.watch(subscribe("prices", BEGIN), 0.01)


def take(events: Iterator[Event | None], count: int) -> dict[str, dict]:
    """Return the next prices, each with its id."""
    taken, deadline = {}, time.monotonic() + 30
    while len(taken) < count:
        assert time.monotonic() < deadline, "the market has stopped"
        event = next(events)
        if event is not None:
            assert event.event in (None, "message")
            taken[event.id] = json.loads(event.data)
    return taken


def check_walk(*steps: dict[str, float]) -> None:
    """Check that all prices walk, in small steps."""
    for before, after in pairwise(steps):
        assert list(after) == SYMBOLS
        assert before != after
        assert after == pytest.approx(before, rel=0.01)


def test_the_market_walks_from_its_newest_prices_or_from_the_opening():
    with closing(watch()) as events:
        opening, *steps = take(events, 5).values()
    assert opening == dict.fromkeys(SYMBOLS, 100)
    check_walk(opening, *steps)
    wait_until(lambda: not markets())

    newest = dict(zip(SYMBOLS, [1.5, 20.5, 300.5, 4000.5, 5.5], strict=True))
    id = publish("prices", Event(newest))
    with closing(prices.watch(subscribe("prices", id), 0.01)) as events:
        check_walk(newest, *take(events, 5).values())


def test_one_market_is_open_while_any_client_is_connected():
    with closing(watch()) as one, closing(watch()) as other:
        seen = take(one, 3)
        assert take(other, 3) == seen
        (thread,) = markets()
        other.close()
        take(one, 1)
        assert markets() == [thread]
    wait_until(lambda: not thread.is_alive())
    assert prices.market.clients == 0

    for _ in range(5):
        with closing(watch()) as again:
            assert take(again, 3) == seen  # the history
    with closing(watch()) as events:
        take(events, 5)
        wait_until(lambda: len(markets()) == 1)


class LockedMarket(SimpleNamespace):
    """A market that a thread may change only while it has the lock."""

    def __setattr__(self, name, value):
        assert self.lock.locked()
        super().__setattr__(name, value)


def test_concurrent_clients_change_the_market_one_at_a_time(monkeypatch):
    market = LockedMarket(clients=0, lock=threading.Lock())
    monkeypatch.setattr(prices, "market", market)
    with prices.opened_market(), prices.opened_market():
        assert market.clients == 2
    assert market.clients == 0
    assert market.closed.is_set()


def test_a_stream_that_never_starts_opens_no_market(client):
    assert client.head("/stream/prices").status_code == 200
    client.get("/stream/prices", buffered=False).close()
    assert markets() == []
    assert prices.market.clients == 0


def test_a_market_that_cannot_open_is_opened_by_the_next_client(monkeypatch):
    with monkeypatch.context() as patched:
        failing = watch()
        patched.setattr(threading.Thread, "start", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(failing)
    with closing(watch()) as events:
        take(events, 2)


@pytest.fixture
def open_market():
    """Return a function that runs a market, and returns an event to stop it."""
    with ExitStack() as opened:

        def open_market() -> threading.Event:
            closed = threading.Event()
            args = [closed]
            threading.Thread(target=prices.run_market, args=args).start()
            opened.callback(closed.set)
            return closed

        yield open_market


def test_two_markets_publish_no_faster_than_one_and_one_may_stop(
    store, open_market
):
    first, _ = open_market(), open_market()
    with closing(subscribe("prices", BEGIN)) as events:
        seen = take(events, 15)
        first.set()
        wait_until(lambda: len(markets()) == 1)
        seen |= take(events, 20)
    assert min(gaps(seen)) >= 1000 * prices.STEP_SECONDS - 2
    check_walk(*seen.values())


def test_the_channel_keeps_no_more_than_the_history(monkeypatch, open_market):
    assert prices.HISTORY_EVENTS == 1200  # a minute
    monkeypatch.setattr(prices, "HISTORY_EVENTS", 20)
    ids = [publish("prices", Event(prices.OPENING)) for _ in range(25)]
    closed = open_market()
    wait_until(lambda: newest("prices").id != ids[-1])
    closed.set()
    wait_until(lambda: not markets())
    with closing(subscribe("prices", BEGIN)) as events:
        assert next(events).event == "reset"
        take(events, 20)
        assert next(events) is None


# Which prices a client gets


def test_a_client_starts_with_the_history_or_after_its_last_event_id(client):
    def stream(last):
        headers = {} if last is None else {"Last-Event-ID": last}
        response = client.get("/stream/prices?interval=0.02", headers=headers)
        return response, parse_events(response.response)

    history = [publish("prices", Event(prices.OPENING)) for _ in range(20)]
    for last, rest in ((None, history), (history[9], history[10:])):
        response, events = stream(last)
        with response:
            assert list(take(events, len(rest))) == rest
    response, events = stream("1-0")
    with response:
        assert next(events).event == "reset"
        assert list(take(events, 20)) == history


@pytest.mark.parametrize(
    ("interval", "sent"),
    [
        (0.01, [1, 2, 3, 4, 5, 6]),
        (0.05, [1, 2, 3, 4, 5, 6]),
        (0.08, [1, 3, 5]),
        (0.1, [1, 3, 5]),
        (0.2, [1, 5]),
        (10, [1]),
    ],
)
def test_a_client_gets_every_nth_price(monkeypatch, interval, sent):
    monkeypatch.setattr(prices, "STEP_SECONDS", 0.05)
    monkeypatch.setattr(prices, "opened_market", nullcontext)
    made = [Event({}, id=f"{n}-0") for n in range(1, 7)]
    watched = prices.watch((event for event in made), interval)
    assert list(watched) == [made[n - 1] for n in sent]


def test_a_reset_and_silence_are_passed_on(monkeypatch):
    monkeypatch.setattr(prices, "opened_market", nullcontext)
    price = Event({}, id="1-0")
    events = [RESET, price, None, RESET, price, None]
    watched = list(prices.watch((event for event in events), 10))
    assert watched == [RESET, price, None, RESET, None]


def test_every_price_moves_by_its_own_factor_and_stays_above_zero():
    factors = iter([1.01, 0.99, 1, 1.0000412, 1.5])
    assert prices.moved(prices.OPENING, lambda: next(factors)) == {
        "ALFA": 101,
        "BRVO": 99,
        "CHLI": 100,
        "DLTA": 100.004,
        "ECHO": 150,
    }
    falling = prices.OPENING
    for _ in range(2000):
        falling = prices.moved(falling, lambda: 0.99)
    assert all(price > 0 for price in falling.values())


# Several processes


def test_the_market_continues_after_redis_was_down_or_emptied(
    own_redis, monkeypatch, caplog
):
    monkeypatch.setattr(broker, "BROKER", RedisBroker(own_redis.url))
    with closing(watch()) as events:
        walk = take(events, 5)
        own_redis.stop()
        for _ in range(15):
            while next(events) is not None:
                pass
        assert len(caplog.records) <= 5  # fewer than one for each step
        own_redis.start()
        walk |= take(events, 20)
        check_walk(*walk.values())
        own_redis.client().flushall()
        wait_until(lambda: getattr(next(events), "event", None) == "reset")
        take(events, 5)


# The page


def show(page: Page, *events: tuple[float, list[float] | None]) -> None:
    """Start the page with prices at these seconds. None means a reset."""
    body = b"retry: 86400000\n"
    for seconds, values in events:
        if values is None:
            body += RESET.encode()
        else:
            data = dict(zip(SYMBOLS, values, strict=True))
            body += Event(data, id=f"{round(1000 * seconds)}-0").encode()
    page.route(
        "**/stream/prices?*",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=body
        ),
    )
    page.get_by_role("button", name="Start").click()


OPENED = [100.0, 200.0, 50.0, 10.0, 1000.0]
MOVED = [101.0, 199.0, 50.0, 10.25, 1000.5]
ROWS = [
    ["ALFA", "101.00", "▲ +1.00 %"],
    ["BRVO", "199.00", "▼ −0.50 %"],
    ["CHLI", "50.00", "▲ +0.00 %"],
    ["DLTA", "10.25", "▲ +2.50 %"],
    ["ECHO", "1000.50", "▲ +0.05 %"],
]
CELLS = "rows => rows.map((row) => [...row.cells].map((c) => c.textContent))"


def expect_table(page: Page, rows: list[list[str]]) -> None:
    table = page.locator("#prices > tr")
    expect(table).to_have_text(["".join(row) for row in rows])
    assert table.evaluate_all(CELLS) == rows


COPIED = """
const { width, height } = canvas;
const copy = new OffscreenCanvas(width, height)
  .getContext("2d", { willReadFrequently: true });
copy.drawImage(canvas, 0, 0);
"""
PIXELS = f"""(canvas, colors) => {{
  {COPIED}
  const {{ data }} = copy.getImageData(0, 0, width, height);
  const found = colors.map(() => [0, 0, 0]);
  for (let i = 0; i < data.length; i += 4) {{
    const rgb = data[i] << 16 | data[i + 1] << 8 | data[i + 2];
    const line = found[colors.indexOf(rgb)];
    if (data[i + 3] < 255 || !line) continue;
    const [x, y] = [i / 4 % width, Math.floor(i / 4 / width)];
    if (x >= line[1]) line.splice(1, 2, x, y);
    line[0] += 1;
  }}
  return found;
}}"""
LABELS = f"""(canvas) => {{
  {COPIED}
  const {{ data }} = copy.getImageData(width - 40, 0, 40, height);
  const found = [];
  for (let i = 0; i < data.length; i += 4) {{
    if (data[i + 3] > 100) found.push([...data.slice(i, i + 3)]);
  }}
  return found;
}}"""


def painted(page: Page) -> list[list[int]]:
    """Return each line's number of pixels, and the last pixel's x and y."""
    return page.locator("#chart").evaluate(PIXELS, COLORS)


DEFERRED = """() => {
  window.frames = [];
  window.requestAnimationFrame = (draw) => window.frames.push(draw);
  window.parsed = window.drawn = 0;
  const { parse } = JSON;
  JSON.parse = (text) => {
    window.parsed += 1;
    return parse(text);
  };
  const { getContext } = HTMLCanvasElement.prototype;
  HTMLCanvasElement.prototype.getContext = function (type) {
    window.drawn += 1;
    return getContext.call(this, type);
  };
}"""


def test_the_table_shows_each_price_and_its_change(lesson_page):
    page = lesson_page("prices")
    for first, *then in [
        [(1, OPENED), (2, [1.0] * 5), (3, MOVED)],
        # The change is relative to the first price of the last minute, or to
        # the first one after a reset.
        [(1, [1.0] * 5), (2, None), (3, OPENED), (4, MOVED)],
        [(1, [1.0] * 5), (29, [1.0] * 5), (31, OPENED), (90, MOVED)],
    ]:
        show(page, (0, [1.0] * 5), (0, None), first, (2, [3.0] * 5))
        expect(page.locator("#prices")).to_contain_text("3.00")
        show(page, first, *then)
        expect_table(page, ROWS)
    # A screen reader gets the same table.
    for name in SYMBOLS:
        expect(page.get_by_role("rowheader", name=name)).to_be_visible()
    for name in ("Symbol", "Price", "Change"):
        expect(page.get_by_role("columnheader", name=name)).to_be_visible()
    chart = page.get_by_role("img", name="the table below has the values")
    expect(chart).to_have_count(1)
    table = page.get_by_role("table", name="The last minute, from first to")
    for row in ROWS:
        name = " ".join(row)
        expect(table.get_by_role("row", name=name)).to_have_count(1)


def test_the_chart_has_five_lines_and_legible_labels(lesson_page):
    page = lesson_page("prices")
    show(page, (1, OPENED))  # even a single price is drawn
    expect(page.locator("#prices > tr")).to_have_count(5)
    assert any(count for count, _, _ in painted(page))

    changed = [105.0, 101.0, 100.0, 99.0, 90.0]
    for scheme, lowest, highest in [("light", 0, 100), ("dark", 180, 255)]:
        page.emulate_media(color_scheme=scheme)
        show(page, (1, OPENED))
        expect(page.locator("#prices")).to_contain_text("200.00")
        show(page, (1, [100.0] * 5), (2, changed))
        expect(page.locator("#prices")).to_contain_text("105.00")
        labels = page.locator("#chart").evaluate(LABELS)
        assert labels
        assert all(lowest <= part <= highest for rgb in labels for part in rgb)

    # The lines are in the order of the changes.
    ends = painted(page)
    heights = [y for _, _, y in ends]
    assert heights == sorted(set(heights))
    assert len({round(x, -1) for _, x, _ in ends}) == 1

    # The chart fits the window.
    chart = page.locator("#chart")
    fits = """(e) => e.width === e.clientWidth * devicePixelRatio &&
      e.height === e.clientHeight * devicePixelRatio"""
    for width, ratio in ((360, 1), (1600, 2)):
        page.evaluate("(ratio) => window.devicePixelRatio = ratio", ratio)
        page.set_viewport_size({"width": width, "height": 800})
        wait_until(lambda: chart.evaluate(fits))
        counts, rightmost, _ = zip(*painted(page), strict=True)
        assert min(counts) > 20
        assert min(rightmost) > chart.evaluate("e => e.width") - 120 * ratio


def test_the_chart_is_drawn_once_a_frame_for_any_number_of_events(lesson_page):
    page = lesson_page("prices")
    page.evaluate(DEFERRED)
    show(page, *[(n, OPENED) for n in range(1, 51)])
    wait_until(lambda: page.evaluate("parsed") == 50)
    assert page.evaluate("drawn") == 0
    page.evaluate("for (const frame of frames) frame()")
    assert page.evaluate("drawn") == 1


def test_the_chart_script_has_at_most_60_lines():
    lines = (PROJECT / "static/chart.js").read_text("utf-8").splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80
