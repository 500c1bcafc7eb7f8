import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
from conftest import COMMANDS, PROJECT, Client, Server, read_until, wait_until
from playwright.sync_api import Page, expect

import broker
import redis_broker
import sse
from broker import BEGIN, GAP, forget, publish, subscribe
from demos import prices
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event

SYMBOLS = ["ALFA", "BRVO", "CHLI", "DLTA", "ECHO"]
ALL = "/stream/prices?interval=0.01"
STEP_MS = 50
RESET = Event(GAP, event="reset", id=BEGIN)
COLORS = ["#3b82f6", "#d97706", "#16a34a", "#db2777", "#8b5cf6"]


def times(ids) -> list[int]:
    return [int(id.split("-")[0]) for id in ids]


def gaps(ids) -> list[int]:
    """Return the milliseconds between one id and the next."""
    return [after - before for before, after in pairwise(times(ids))]


# The market of a process, with its channel in memory or in Redis


@pytest.fixture(autouse=True)
def _closed_market(app, monkeypatch):
    """Close the market of this process after the test."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(redis_broker, "BLOCK_MS", 10)
    yield
    wait_until(lambda: not markets())


@pytest.fixture(params=["memory", "redis"])
def store(request, monkeypatch, app) -> None:
    """Keep the channel in memory or in Redis."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
        monkeypatch.setattr(broker, "BROKER", RedisBroker(url))
        forget("prices")


def markets() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if "(run_market)" in thread.name
    ]


def watch() -> Iterator[Event | None]:
    return prices.watch(subscribe("prices", BEGIN), 0.01)


def take(events: Iterator[Event | None], count: int) -> dict[str, dict]:
    """Return the next prices, each with its id."""
    taken = {}
    while len(taken) < count:
        event = next(events)
        if event is not None:
            assert event.event in (None, "message")
            taken[event.id] = json.loads(event.data)
    return taken


def test_the_five_symbols_walk_in_small_steps(store):
    with closing(watch()) as events:
        steps = list(take(events, 20).values())
    assert steps[0] == dict.fromkeys(SYMBOLS, 100)
    for before, after in pairwise(steps):
        assert list(after) == SYMBOLS
        assert before != after
        assert after == pytest.approx(before, rel=0.01)


def test_one_market_is_open_while_any_client_is_connected(store):
    with closing(watch()) as one, closing(watch()) as other:
        seen = take(one, 3)
        assert take(other, 3) == seen
        (thread,) = markets()
        other.close()
        take(one, 1)
        assert markets() == [thread]
    wait_until(lambda: not thread.is_alive())
    assert prices.market.clients == 0

    with closing(watch()) as again:
        assert take(again, 3) == seen  # the history
        take(again, 2)
        assert len(markets()) == 1


def test_connects_and_disconnects_result_in_one_market(store):
    with ExitStack() as stack:
        for _ in range(5):
            with closing(watch()) as events:
                take(events, 1)
        events = stack.enter_context(closing(watch()))
        take(events, 1)
        wait_until(lambda: len(markets()) == 1)


class LockedMarket(SimpleNamespace):
    """A market that a thread may change only while it has the lock."""

    def __setattr__(self, name, value):
        assert self.lock.locked()
        super().__setattr__(name, value)


def test_counts_every_one_of_many_concurrent_disconnects(monkeypatch):
    market = LockedMarket(clients=0, lock=threading.Lock())
    monkeypatch.setattr(prices, "market", market)
    all_in = threading.Barrier(20)

    def visit(_):
        with prices.opened_market():
            all_in.wait(30)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(visit, range(20)))
    assert market.clients == 0
    assert market.closed.is_set()


def test_a_stream_that_never_starts_opens_no_market(client):
    for _ in range(3):
        assert client.head("/stream/prices").status_code == 200
        client.get("/stream/prices", buffered=False).close()
    assert markets() == []
    assert prices.market.clients == 0


def test_a_market_that_cannot_open_is_opened_by_the_next_client(
    app, monkeypatch
):
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


def test_two_markets_publish_no_faster_than_one(store, open_market):
    for _ in range(2):
        open_market()
    with closing(subscribe("prices", BEGIN)) as events:
        seen = take(events, 40)
    assert min(gaps(seen)) >= STEP_MS - 2
    for before, after in pairwise(seen.values()):
        assert after == pytest.approx(before, rel=0.01)


def test_another_market_takes_over_from_one_that_stops(store, open_market):
    first = open_market()
    with closing(subscribe("prices", BEGIN)) as events:
        walk = take(events, 5)
        open_market()
        first.set()
        wait_until(lambda: len(markets()) == 1)
        walk |= take(events, 20)
    for before, after in pairwise(walk.values()):
        assert after == pytest.approx(before, rel=0.01)


def test_the_walk_continues_from_the_newest_prices(store):
    newest = dict(zip(SYMBOLS, [1.5, 20.5, 300.5, 4000.5, 5.5], strict=True))
    publish("prices", Event(newest))
    with closing(watch()) as events:
        first, *steps = take(events, 3).values()
    assert first == newest
    for step in steps:
        assert step != newest
        assert step == pytest.approx(newest, rel=0.02)


def test_the_channel_keeps_no_more_than_the_history(store):
    for _ in range(prices.HISTORY_EVENTS + 5):
        publish("prices", Event(prices.OPENING), max_events=2000)
    with closing(watch()) as events:
        take(events, prices.HISTORY_EVENTS + 6)  # one is new
    wait_until(lambda: not markets())
    with closing(subscribe("prices", BEGIN)) as events:
        assert next(events).event == "reset"
        take(events, prices.HISTORY_EVENTS)
        assert next(events) is None


# Which prices a client gets


@pytest.fixture
def stream(client):
    """Return a function that opens the stream through the test client."""
    with ExitStack() as opened:

        def stream(query: str = "", last: str | None = None) -> Iterator[Event]:
            headers = {} if last is None else {"Last-Event-ID": last}
            response = client.get(
                f"/stream/prices{query}", headers=headers, buffered=False
            )
            opened.enter_context(closing(response))
            return parse_events(response.response)

        yield stream


def test_a_new_client_starts_with_the_history(stream):
    history = [publish("prices", Event(prices.OPENING)) for _ in range(20)]
    assert list(take(stream("?interval=0.05"), 25))[:20] == history


def test_a_client_resumes_after_its_last_event_id(stream):
    history = [publish("prices", Event(prices.OPENING)) for _ in range(20)]
    resumed = take(stream("?interval=0.05", history[9]), 10)
    assert list(resumed) == history[10:]


def test_an_unknown_last_event_id_gets_a_reset_and_the_history(stream):
    history = [publish("prices", Event(prices.OPENING)) for _ in range(5)]
    events = stream("?interval=0.05", "1-0")
    assert next(events).event == "reset"
    assert list(take(events, 5)) == history


@pytest.mark.parametrize(
    ("interval", "sent"),
    [
        (0.01, [1, 2, 3, 4, 5, 6]),
        (0.05, [1, 2, 3, 4, 5, 6]),
        (0.07, [1, 2, 3, 4, 5, 6]),
        (0.1, [1, 3, 5]),
        (0.2, [1, 5]),
        (10, [1]),
    ],
)
def test_a_client_gets_every_nth_price(monkeypatch, interval, sent):
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


def test_an_interval_out_of_range_is_refused(client):
    for interval in ("0.009", "10.1"):
        response = client.get(f"/stream/prices?interval={interval}")
        assert response.status_code == 400
        assert response.json["error"] == (
            f"interval must be a number from 0.01 to 10, got {interval!r}."
        )


def test_every_price_moves_by_its_own_factor():
    factors = iter([1.01, 0.99, 1, 1.000004, 1.5])
    assert prices.moved(prices.OPENING, lambda: next(factors)) == {
        "ALFA": 101,
        "BRVO": 99,
        "CHLI": 100,
        "DLTA": 100,
        "ECHO": 150,
    }


def test_a_price_that_only_falls_stays_above_zero():
    falling = prices.OPENING
    for _ in range(2000):
        falling = prices.moved(falling, lambda: 0.99)
    assert list(falling) == SYMBOLS
    assert all(price > 0 for price in falling.values())


# Redis is down, or has lost all data


@pytest.fixture
def own_store(own_redis, app, monkeypatch):
    monkeypatch.setattr(broker, "BROKER", RedisBroker(own_redis.url))
    return own_redis


def test_the_walk_continues_when_redis_is_back(own_store, caplog):
    with closing(watch()) as events:
        walk = take(events, 5)
        own_store.stop()
        for _ in range(15):
            while next(events) is not None:
                pass
        assert len(caplog.records) <= 5  # fewer than one for each step
        own_store.start()
        back_at = 1000 * time.time()
        while times([max(walk)])[0] < back_at:
            walk |= take(events, 1)
    for before, after in pairwise(walk.values()):
        assert after == pytest.approx(before, rel=0.01)


def test_the_market_continues_after_redis_was_emptied(own_store):
    with closing(watch()) as events:
        take(events, 5)
        own_store.client().flushall()
        wait_until(lambda: getattr(next(events), "event", None) == "reset")
        take(events, 5)


# Servers


def of_client(client: Client) -> Iterator[Event]:
    return parse_events(client.chunks())


def test_prices_are_exactly_these_bytes(start):
    server = start("gunicorn")
    with server.get("/stream/prices") as client:
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        received = read_until(client.chunks(), b"}\n\n").decode()
    values = ",".join(rf'"{name}":\d+(\.\d{{1,3}})?' for name in SYMBOLS)
    expected = rf"retry: \d{{4}}\nid: \d{{13}}-\d+\ndata: {{{values}}}\n\n"
    assert re.fullmatch(expected, received)


@pytest.fixture
def instances(redis_server, start) -> list[Server]:
    """Two servers that share one Redis, and so one market."""
    redis_server.client().delete("sse:prices")
    return [
        start(command, REDIS_URL=redis_server.url)
        for command in COMMANDS.values()
    ]


def test_the_clients_of_all_servers_share_one_market(instances, redis_server):
    with ExitStack() as stack:
        clients = [
            stack.enter_context(instance.get(ALL)) for instance in instances * 2
        ]
        seen = take(of_client(clients[0]), 40)
        for client in clients[1:]:
            assert take(of_client(client), 40) == seen
    assert list(seen) == sorted(seen)
    # They get twenty prices a second, however many servers publish.
    waits = gaps(seen)[5:]
    assert min(waits) >= STEP_MS - 2

    def newest() -> str:
        ((id, _),) = redis_server.client().xrevrange("sse:prices", count=1)
        return id.decode()

    # The market closes without clients, and reopens at the last prices.
    wait_until(lambda: 1000 * time.time() - times([newest()])[0] > 400)
    closing_id = newest()
    with instances[1].get(ALL) as client:
        events, walk = of_client(client), {}
        while closing_id not in walk:
            walk = take(events, 1)
        (opening,) = take(events, 1).values()
    assert opening == pytest.approx(walk[closing_id], rel=0.01)


def test_when_a_server_dies_another_takes_over_its_market(instances):
    dying, other = instances
    with dying.get(ALL) as client:
        seen = take(of_client(client), 5)
        with other.get(ALL) as survivor:
            events = of_client(survivor)
            assert take(events, 5) == seen
            dying.process.kill()
            walk = list(take(events, 40).values())
    for before, after in pairwise(walk):
        assert after == pytest.approx(before, rel=0.01)


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


COPIED = """
const { width, height } = canvas;
const copy = new OffscreenCanvas(width, height)
  .getContext("2d", { willReadFrequently: true });
copy.drawImage(canvas, 0, 0);
"""
PIXELS = f"""(canvas, colors) => {{
  {COPIED}
  const {{ data }} = copy.getImageData(0, 0, width, height);
  const found = Object.fromEntries(colors.map((color) => [color, []]));
  for (let i = 0; i < data.length; i += 4) {{
    if (data[i + 3] < 255) continue;
    const rgb = [...data.slice(i, i + 3)];
    const hex = rgb.map((part) => part.toString(16).padStart(2, "0"));
    const place = [i / 4 % width, Math.floor(i / 4 / width)];
    found["#" + hex.join("")]?.push(place);
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


def painted(page: Page) -> dict[str, list[list[int]]]:
    """Return the places on the chart that have each of the five colours."""
    return page.locator("#chart").evaluate(PIXELS, COLORS)


def test_the_chart_has_five_lines_and_legible_labels(lesson_page):
    page = lesson_page("prices")
    page.get_by_label("Interval").fill("0.05")
    page.get_by_role("button", name="Start").click()
    for scheme, lowest, highest in [("light", 0, 100), ("dark", 180, 255)]:
        page.emulate_media(color_scheme=scheme)

        def stand_out(lowest=lowest, highest=highest):
            labels = page.locator("#chart").evaluate(LABELS)
            parts = [part for rgb in labels for part in rgb]
            return parts and all(lowest <= part <= highest for part in parts)

        wait_until(stand_out)
        wait_until(lambda: min(map(len, painted(page).values())) > 50)
    expect(page.locator("#prices > tr")).to_have_count(5)


def test_the_lines_are_in_the_order_of_the_changes(lesson_page):
    page = lesson_page("prices")
    show(page, (1, OPENED))  # even a single price is drawn
    expect(page.locator("#prices > tr")).to_have_count(5)
    assert any(painted(page).values())
    show(page, (1, [100.0] * 5), (2, [105.0, 101.0, 100.0, 99.0, 90.0]))
    expect(page.locator("#prices")).to_contain_text("105.00")
    ends = [max(places) for places in painted(page).values()]
    heights = [y for _, y in ends]
    assert heights == sorted(heights)
    assert len(set(heights)) == 5
    assert len({round(x, -1) for x, _ in ends}) == 1

    # The chart fits the window.
    chart = page.locator("#chart")
    fits = "e => e.width === e.clientWidth * devicePixelRatio"
    for width in (360, 700, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        wait_until(lambda: chart.evaluate(fits))
        lines = painted(page).values()
        assert min(map(len, lines)) > 20
        rightmost = min(max(x for x, _ in places) for places in lines)
        assert rightmost > chart.evaluate("e => e.width") - 120


COUNTED = """() => {
  window.most = 0;
  let count = 0;
  const { beginPath, lineTo } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.beginPath = function () {
    count = 0;
    beginPath.call(this);
  };
  CanvasRenderingContext2D.prototype.lineTo = function (x, y) {
    most = Math.max(most, ++count);
    lineTo.call(this, x, y);
  };
}"""


def test_the_page_shows_the_complete_history(lesson_page):
    page = lesson_page("prices")
    page.evaluate(COUNTED)
    count = prices.HISTORY_EVENTS
    history = [(100 + n * STEP_MS / 1000, OPENED) for n in range(count)]
    show(page, (1, None), *history)
    wait_until(lambda: page.evaluate("most") >= count)


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
