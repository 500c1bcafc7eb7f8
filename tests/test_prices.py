import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from itertools import islice, pairwise

import pytest
from conftest import (
    PROJECT,
    Client,
    RedisServer,
    Server,
    read_until,
    wait_until,
)
from playwright.sync_api import Page, expect

import broker
from broker import BEGIN, GAP, forget, publish, subscribe
from demos import prices
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event

SYMBOLS = ["ALFA", "BRVO", "CHLI", "DLTA", "ECHO"]
FAST = "/stream/prices?interval=0.05"
ALL = "/stream/prices?interval=0.01"
STEP_MS = 50
RESET = Event(GAP, event="reset", id=BEGIN)
COLORS = ["#3b82f6", "#d97706", "#16a34a", "#db2777", "#8b5cf6"]


def take(client: Client, count: int) -> dict[str, dict[str, float]]:
    """Return the next prices, each with its id."""
    events = list(islice(parse_events(client.chunks()), count))
    assert all(event.event == "message" for event in events)
    return {event.id: json.loads(event.data) for event in events}


def take_until(client: Client, id: str) -> dict[str, dict[str, float]]:
    taken = {}
    for event in parse_events(client.chunks()):
        taken[event.id] = json.loads(event.data)
        if event.id == id:
            return taken
    raise AssertionError(f"{id} did not come")


def times(ids) -> list[int]:
    return [int(id.split("-")[0]) for id in ids]


def gaps(ids) -> list[int]:
    """Return the milliseconds between one id and the next."""
    return [after - before for before, after in pairwise(times(ids))]


@pytest.fixture(scope="module")
def market_server(command) -> Iterator[Server]:
    """A server whose market opens with these tests."""
    running = Server(command)
    yield running
    running.stop()


@pytest.fixture(scope="module", params=["two gunicorn", "four flask run"])
def instances(request, redis_server) -> Iterator[list[Server]]:
    """Servers that share one Redis, and so one market."""
    redis_server.client().delete("sse:prices")
    commands = {"two gunicorn": ["gunicorn"] * 2}
    with ExitStack() as stack:
        running = []
        for command in commands.get(request.param, ["flask run"] * 4):
            running.append(Server(command, REDIS_URL=redis_server.url))
            stack.callback(running[-1].stop)
        yield running


def test_prices_are_exactly_these_bytes(market_server):
    with market_server.get("/stream/prices") as client:
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        received = read_until(client.chunks(), b"}\n\n").decode()
    values = ",".join(rf'"{name}":\d+\.\d{{1,3}}' for name in SYMBOLS)
    expected = rf":\nid: \d{{13}}-\d+\ndata: {{{values}}}\n\n"
    assert re.fullmatch(expected, received)


def test_the_five_symbols_walk_in_small_steps(market_server):
    with market_server.get(FAST) as client:
        steps = list(take(client, 20).values())
    assert all(list(step) == SYMBOLS for step in steps)
    for before, after in pairwise(steps):
        for name in SYMBOLS:
            assert after[name] == pytest.approx(before[name], rel=0.01)
        assert before != after


def test_readers_of_one_server_see_the_same_prices(market_server):
    with market_server.get(FAST) as one, market_server.get(FAST) as other:
        seen = take(one, 20)
        assert take_until(other, max(seen)).items() >= seen.items()


def test_readers_of_all_instances_see_one_market(instances):
    with ExitStack() as stack:
        readers = [
            stack.enter_context(instance.get(ALL)) for instance in instances * 2
        ]
        seen = take(readers[0], 40)
        last = max(seen)
        for reader in readers[1:]:
            assert take_until(reader, last) == seen
    assert list(seen) == sorted(seen)
    # Twenty a second in total, however many there are to publish.
    waits = gaps(seen)[5:]
    assert min(waits) >= STEP_MS - 2
    assert sorted(waits)[len(waits) // 2] < 3 * STEP_MS


def test_the_market_of_all_instances_closes_when_nobody_watches(
    instances, redis_server
):
    channel = redis_server.client()

    def newest() -> str:
        ((id, _),) = channel.xrevrange("sse:prices", count=1)
        return id.decode()

    with instances[0].get(ALL) as one, instances[1].get(ALL) as other:
        take(one, 2)
        take(other, 2)
    wait_until(lambda: 1000 * time.time() - times([newest()])[0] > 400)
    closing_id = newest()
    with instances[1].get(ALL) as client:
        after = take_until(client, closing_id)[closing_id]
        opening = next(iter(take(client, 1).values()))
    assert opening == pytest.approx(after, rel=0.01)


def test_a_new_reader_begins_with_the_history(market_server):
    with market_server.get(FAST) as client:
        seen = take(client, 20)
    with market_server.get(FAST) as client:
        history = take(client, 20)
    assert history == seen


def test_goes_on_right_after_the_last_event_id(market_server):
    with market_server.get(FAST) as client:
        seen = list(take(client, 20))
    with market_server.get(FAST, Last_Event_ID=seen[9]) as client:
        assert list(take(client, 10)) == seen[10:]


def test_an_id_that_is_not_held_gets_a_reset_and_the_history(market_server):
    with market_server.get(FAST) as client:
        seen = take(client, 5)
    with market_server.get(FAST, Last_Event_ID="1-0") as client:
        chunks = client.chunks()
        assert next(chunks) == b":\n"
        events = parse_events(chunks)
        assert next(events).event == "reset"
        assert [next(events).id for _ in seen] == list(seen)


def test_a_reader_with_a_longer_interval_is_sent_a_part(market_server):
    with (
        market_server.get(FAST) as client,
        market_server.get("/stream/prices?interval=1") as slow,
    ):
        some = take(slow, 3)
        every = take_until(client, max(some))
    assert every.items() >= some.items()
    assert all(950 < gap < 3000 for gap in gaps(some))
    assert len(every) > 20


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
def test_is_sent_every_nth_price(monkeypatch, interval, sent):
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


def test_refuses_an_interval_out_of_range(client):
    response = client.get("/stream/prices?interval=0.009")
    assert response.status_code == 400
    assert response.json["error"] == (
        "interval must be a number from 0.01 to 10, got '0.009'."
    )


def test_a_price_moves_by_a_factor_of_its_own():
    factors = iter([1.01, 0.99, 1, 1.00004, 1.5])
    assert prices.moved(prices.OPENING, lambda: next(factors)) == {
        "ALFA": 121.2,
        "BRVO": 48.015,
        "CHLI": 310,
        "DLTA": 9.6,
        "ECHO": 112.5,
    }


def test_a_price_that_only_falls_stays_above_zero():
    falling = prices.OPENING
    for _ in range(2000):
        falling = prices.moved(falling, lambda: 0.99)
    assert list(falling) == SYMBOLS
    assert all(price > 0 for price in falling.values())


@pytest.fixture
def closed_market():
    """The market of this process, before and after each test closed."""
    forget("prices")
    yield
    wait_until(lambda: not markets())


def markets() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if "(run_market)" in thread.name
    ]


def opened() -> Iterator[Event | None]:
    return prices.watch(subscribe("prices", BEGIN), 0.01)


@pytest.mark.usefixtures("closed_market")
def test_one_market_is_open_while_anybody_watches():
    with closing(opened()) as one, closing(opened()) as other:
        seen = [next(one) for _ in range(3)]
        assert [next(other) for _ in range(3)] == seen
        (thread,) = markets()
        other.close()
        next(one)
        assert markets() == [thread]
    wait_until(lambda: not thread.is_alive())

    with closing(opened()) as again:
        assert [next(again) for _ in range(3)] == seen
        next(again)  # that other has not seen any more
        next(again)
        assert thread not in markets()


@pytest.mark.usefixtures("closed_market")
def test_the_walk_goes_on_from_the_newest_prices():
    newest = dict(zip(SYMBOLS, [1.5, 20.5, 300.5, 4000.5, 5.5], strict=True))
    publish("prices", Event(newest))
    with closing(opened()) as watched:
        steps = [json.loads(next(watched).data) for _ in range(3)]
    assert steps[0] == newest
    for step in steps[1:]:
        assert step != newest
        assert step == pytest.approx(newest, rel=0.02)


@pytest.mark.usefixtures("closed_market")
def test_what_was_never_begun_opens_no_market(client):
    for _ in range(3):
        assert client.head("/stream/prices").status_code == 200
        client.get("/stream/prices", buffered=False).close()
    assert markets() == []
    assert prices.market.clients == 0


@pytest.mark.usefixtures("closed_market")
def test_the_channel_holds_no_more_than_the_history():
    for _ in range(1500):
        publish("prices", Event(prices.OPENING), max_events=2000)
    with closing(opened()) as watched:
        newest = list(islice(watched, 1501))[-1]
    with closing(subscribe("prices", BEGIN)) as events:
        assert next(events).event == "reset"
        held = []
        while newest.id not in held:
            held.append(next(events).id)
    assert len(held) == prices.HISTORY_EVENTS


@pytest.fixture
def away(own_redis, start) -> Server:
    return start(
        "flask run",
        REDIS_URL=own_redis.url,
        FLASK_KEEP_ALIVE_SECONDS="0.1",
    )


def test_goes_on_where_it_was_when_redis_is_back(away, own_redis):
    with away.get(FAST) as client:
        before = take(client, 5)
        own_redis.stop()
        chunks = client.chunks()
        while next(chunks) != b":\n":
            pass
        own_redis.start()
        back_at = 1000 * time.time()
        after = {}
        while not after or times([max(after)])[0] < back_at:
            after |= take(client, 1)
    walk = list((before | after).values())
    for one, other in pairwise(walk):
        assert one == pytest.approx(other, rel=0.01)


def test_does_not_fill_the_log_while_redis_is_away(away, own_redis):
    with away.get(FAST) as client:
        take(client, 2)
        own_redis.stop()
        comments = 0
        for chunk in client.chunks():
            comments += chunk.count(b":\n")
            if comments == 15:
                break
    assert len(away.logged("Redis is away")) <= 5


def test_goes_on_when_redis_has_lost_everything(away, own_redis):
    with away.get(FAST) as client:
        before = take(client, 5)
        own_redis.client().flushall()
        comments = 0
        for chunk in client.chunks():
            comments += chunk.count(b":\n")
            assert comments < 200, "the market stands still"
            ids = re.findall(r"(?m)^id: (.+)", chunk.decode())
            if ids and times(ids)[-1] > times([max(before)])[0] + 500:
                break


def told(page: Page, *events: tuple[int, list[float] | None]) -> None:
    """Start the page with prices at seconds; None for them is a reset."""
    body = b"retry: 86400000\n"
    for seconds, values in events:
        if values is None:
            body += RESET.encode()
        else:
            data = dict(zip(SYMBOLS, values, strict=True))
            body += Event(data, id=f"{1000 * seconds}-0").encode()
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


def test_table_tells_the_current_price_and_how_it_has_changed(lesson_page):
    page = lesson_page("prices")
    told(page, (1, OPENED), (2, [1.0] * 5), (3, MOVED))
    expect_table(page, ROWS)
    for name in SYMBOLS:
        expect(page.get_by_role("rowheader", name=name)).to_be_visible()
    for name in ("Symbol", "Price", "Change"):
        expect(page.get_by_role("columnheader", name=name)).to_be_visible()


def test_a_screen_reader_is_told_the_prices(lesson_page):
    page = lesson_page("prices")
    told(page, (1, OPENED), (3, MOVED))
    expect_table(page, ROWS)
    chart = page.get_by_role("img", name="the table below has the values")
    expect(chart).to_have_count(1)
    table = page.get_by_role("table", name="The last minute, from first to")
    for row in ROWS:
        name = " ".join(row)
        expect(table.get_by_role("row", name=name)).to_have_count(1)


@pytest.mark.parametrize(
    "events",
    [
        [(1, [1.0] * 5), (2, None), (3, OPENED), (4, MOVED)],
        [(1, [1.0] * 5), (29, [1.0] * 5), (31, OPENED), (90, MOVED)],
    ],
    ids=["a reset", "a minute"],
)
def test_change_is_counted_from_the_first_price_after(lesson_page, events):
    page = lesson_page("prices")
    told(page, *events)
    expect_table(page, ROWS)


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
    """Return where on the chart each of the five colours is."""
    return page.locator("#chart").evaluate(PIXELS, COLORS)


@pytest.mark.parametrize(
    ("scheme", "lowest", "highest"), [("light", 0, 100), ("dark", 180, 255)]
)
def test_chart_has_five_lines_and_labels_that_stand_out(
    lesson_page, scheme, lowest, highest
):
    page = lesson_page("prices")
    page.emulate_media(color_scheme=scheme)
    page.get_by_label("Interval").fill("0.05")
    page.get_by_role("button", name="Start").click()
    wait_until(lambda: min(map(len, painted(page).values())) > 50)
    wait_until(lambda: page.locator("#chart").evaluate(LABELS))
    labels = page.locator("#chart").evaluate(LABELS)
    assert all(lowest <= part <= highest for rgb in labels for part in rgb)
    expect(page.locator("#prices > tr")).to_have_count(5)


def test_lines_lie_in_the_order_of_the_changes(lesson_page):
    page = lesson_page("prices")
    told(page, (1, [100.0] * 5), (2, [105.0, 101.0, 100.0, 99.0, 90.0]))
    expect(page.locator("#prices > tr")).to_have_count(5)
    ends = [max(places) for places in painted(page).values()]
    heights = [y for _, y in ends]
    assert heights == sorted(heights)
    assert len(set(heights)) == 5
    assert len({round(x, -1) for x, _ in ends}) == 1


def test_one_price_alone_is_drawn(lesson_page):
    page = lesson_page("prices")
    told(page, (1, OPENED))
    expect(page.locator("#prices > tr")).to_have_count(5)
    assert any(painted(page).values())


def test_chart_is_drawn_anew_for_another_size_of_the_window(lesson_page):
    page = lesson_page("prices")
    told(page, (1, OPENED), (2, MOVED))
    expect(page.locator("#prices > tr")).to_have_count(5)
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


def test_a_page_begins_with_the_history(
    start, own_redis: RedisServer, page, monkeypatch
):
    monkeypatch.setattr(broker, "BROKER", RedisBroker(own_redis.url))
    for _ in range(prices.HISTORY_EVENTS):
        publish(
            "prices", Event(prices.OPENING), max_events=prices.HISTORY_EVENTS
        )
    server = start("flask run", REDIS_URL=own_redis.url)
    page.goto(f"{server.url}/demos/prices")
    page.evaluate(COUNTED)
    page.get_by_label("Interval").fill("0.01")
    page.get_by_role("button", name="Start").click()
    wait_until(lambda: page.evaluate("most") >= prices.HISTORY_EVENTS)


def test_chart_is_at_most_60_lines():
    lines = (PROJECT / "static/chart.js").read_text("utf-8").splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80
