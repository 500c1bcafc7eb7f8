"""The pictures of the catalogue: inline SVG, drawn from the tables below."""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from markupsafe import Markup

from demos import Part

EVENTS = {1: 1.95, 2: 3.0, 3: 4.85, 4: 9.45}  # the second at which each happens
END_SECONDS = 12
TRIP_SECONDS = 0.25  # from the browser to the server, or back
POLL_SECONDS = 1.5


class Exchange(NamedTuple):
    """A request and its response. `events` has the time of each event."""

    sent: float
    events: dict[int, float]
    ended: float = END_SECONDS


def polls() -> Iterable[Exchange]:
    waiting = EVENTS
    for number in range(int(END_SECONDS / POLL_SECONDS)):
        sent = number * POLL_SECONDS
        ended = sent + TRIP_SECONDS
        ready = {n: ended for n, at in waiting.items() if at <= ended}
        waiting = {n: at for n, at in waiting.items() if n not in ready}
        yield Exchange(sent, ready, ended)


def long_polls() -> Iterable[Exchange]:
    sent = 0.0
    for number, at in EVENTS.items():
        ended = max(at, sent + TRIP_SECONDS)
        yield Exchange(sent, {number: ended}, ended)
        sent = ended + TRIP_SECONDS
    yield Exchange(sent, {})


class Lane(NamedTuple):
    """A way to send the events to the browser.

    notes: for each, the seconds, the px below the server's line, the words.
    messages: the times at which the browser sends data on the open connection.
    """

    name: str
    request: str
    exchanges: tuple[Exchange, ...]
    cost: str
    notes: tuple[tuple[float, int, str], ...]
    messages: tuple[float, ...] = ()

    def sent(self) -> dict[int, float]:
        """Return when the server sends each event."""
        return dict(chain(*(each.events.items() for each in self.exchanges)))

    def counted_cost(self) -> str:
        late = max(at - EVENTS[number] for number, at in self.sent().items())
        empty = sum(not each.events for each in self.exchanges)
        return self.cost.format(n=len(self.exchanges), empty=empty, late=late)


LANES = (
    Lane(
        "Polling",
        "GET",
        (*polls(),),
        "{n} requests, {empty} empty; events up to {late:.1f} s late",
        ((0.5, 72, "empty"), (10.1, -7, "late")),
    ),
    Lane(
        "Long polling",
        "GET",
        (*long_polls(),),
        "{n} requests; a new one after each event",
        ((7.25, 29, "waiting"),),
    ),
    Lane(
        "WebSocket",
        "upgrade",
        (Exchange(0, EVENTS),),
        "{n} request, then no HTTP; your script reconnects",
        ((7.3, 72, "both directions"),),
        messages=(6.5, 7.7),
    ),
    Lane(
        "Event stream (SSE)",
        "GET",
        (Exchange(0, EVENTS),),
        "{n} request, ordinary HTTP; the browser reconnects",
        ((7.25, 29, "one response"), (10.9, 72, "time →")),
    ),
)


class Layout(NamedTuple):
    """The positions of the lanes in their picture, in px.

    start, end: the x of the first and the last second.
    top, pitch: the y of the first server line, and the distance to the next.
    name, cost: the x, and the distance from the server's line.
    frame: the top and bottom of the last lane's frame, relative to that line.
    """

    size: tuple[int, int]
    start: int
    end: int
    top: int
    pitch: int
    name: tuple[int, int]
    cost: tuple[int, int]
    frame: tuple[int, int]

    def x(self, seconds: float) -> float:
        scale = (self.end - self.start) / END_SECONDS
        return round(self.start + min(seconds, END_SECONDS) * scale, 1)


LAYOUTS = {
    "wide": Layout(
        (1200, 444), 300, 924, 62, 100, (20, 30), (950, 19), (-22, 79)
    ),
    "narrow": Layout(
        (360, 783), 78, 348, 88, 186, (14, -26), (14, 96), (-56, 134)
    ),
}
GAP = 48  # px from the server's line to the browser's
RADIUS = 11


class Box(NamedTuple):
    """A sender or receiver, centered on a point."""

    name: str
    x: int
    y: int = 66
    height: int = 120
    events: tuple[int, ...] = ()


class Link(NamedTuple):
    """An arrow from one point to another, in the style of its kind."""

    kind: str
    ends: tuple[int, int, int, int]
    words: str = ""
    events: tuple[int, ...] = ()


BOX_WIDTH = 86
PART_SIZE = (360, 132)
PART_PICTURES = {
    "The protocol": (
        "The browser sends one request. The server's response carries events.",
        (Box("Browser", 44), Box("Server", 316)),
        (
            Link("request", (87, 42, 273, 42), "GET"),
            Link("stream", (273, 82, 87, 82), "text/event-stream", (3, 2, 1)),
        ),
    ),
    "When connections fail": (
        "The connection drops. The browser reconnects with Last-Event-ID, and "
        "the server sends the events after it.",
        (Box("Browser", 44), Box("Server", 316)),
        (
            Link("stream", (198, 28, 87, 28), events=(2, 1)),
            Link("broken", (273, 28, 198, 28)),
            Link("request", (87, 71, 273, 71), "Last-Event-ID: 2"),
            Link("stream", (273, 103, 87, 103), events=(4, 3)),
        ),
    ),
    "Streaming answers": (
        "The browser reads an event stream from your server, while your server "
        "reads one from a language model.",
        (
            Box("Browser", 44),
            Box("Your server", 180),
            Box("Language model", 316),
        ),
        (
            Link("request", (87, 42, 137, 42)),
            Link("request", (223, 42, 273, 42)),
            Link("stream", (137, 88, 87, 88), events=(1,)),
            Link("stream", (273, 88, 223, 88), events=(2,)),
        ),
    ),
    "Many readers": (
        "A publisher sends events to a channel, which keeps them. Three "
        "browsers receive every event.",
        (
            Box("Browser", 44, 22, 32),
            Box("Browser", 44, 66, 32),
            Box("Browser", 44, 110, 32),
            Box("Channel", 180, events=(1, 2, 3)),
            Box("Publisher", 316),
        ),
        (
            Link("request", (273, 66, 223, 66), "POST"),
            Link("stream", (137, 32, 87, 22), events=(3,)),
            Link("stream", (137, 66, 87, 66), events=(3,)),
            Link("stream", (137, 100, 87, 110), events=(3,)),
        ),
    ),
}


TEXT = Markup('<text class="{}" x="{}" y="{}">{}</text>')
LINE = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
ARROW = Markup(
    '<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"'
    ' marker-end="url(#{}-tip)"/>'
)
RECT = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="{}"/>')
SPOT = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>')
BAND = Markup('<path class="band" d="M{} {}L{} {}L{} {}L{} {}z"/>')
CROSS = Markup('<path class="cross" d="M{} {}m-8-8l16 16m0-16l-16 16"/>')
LANE = Markup('<g class="lane">{}</g>')
SVG = Markup(
    '<svg class="picture {name}" viewBox="0 0 {width} {height}" role="img"'
    ' aria-labelledby="{name}-title {name}-desc">'
    '<title id="{name}-title">{title}</title>'
    '<desc id="{name}-desc">{description}</desc>'
    '<marker id="{name}-tip" refX="8" refY="4.5" orient="auto" markerWidth="9"'
    ' markerHeight="9" markerUnits="userSpaceOnUse">'
    '<path d="M0 0 9 4.5 0 9z"/></marker>{drawing}</svg>'
)


def picture(
    name: str,
    size: tuple[int, int],
    title: str,
    description: str,
    drawing: Iterable[Markup],
) -> Markup:
    return SVG.format(
        name=name,
        width=size[0],
        height=size[1],
        title=title,
        description=description,
        drawing=Markup("").join(drawing),
    )


def dot(x: float, y: float, number: int, kind: str = "event") -> Markup:
    spot = SPOT.format(kind, x, y, RADIUS)
    return spot + TEXT.format(f"{kind} number", x, y + 5, number)


def comparison(name: str) -> Markup:
    """Draw the lanes in one of the LAYOUTS, with time from left to right."""
    layout = LAYOUTS[name]
    tops = [layout.top + layout.pitch * place for place in range(len(LANES))]
    begin, end = layout.frame
    frame = 1, tops[-1] + begin, layout.size[0] - 2, end - begin, 12
    drawing = [
        RECT.format("frame", *frame),
        TEXT.format("before", layout.start - 12, 23, "events"),
    ]
    for number, at in EVENTS.items():
        x = layout.x(at)
        drawing.append(LINE.format("guide", x, 18, x, tops[-1]))
        drawing.append(dot(x, 18, number, "happens"))
    for lane, top in zip(LANES, tops, strict=True):
        parts = lane_picture(lane, top, layout, name)
        drawing.append(LANE.format(Markup("").join(parts)))
    title = "The same four events, sent in four ways"
    costs = [f"{lane.name}: {lane.counted_cost()}." for lane in LANES]
    return picture(name, layout.size, title, " ".join(costs), drawing)


def lane_picture(lane: Lane, top: int, layout: Layout, name: str):
    x, bottom, before = layout.x, top + GAP, layout.start - 12
    yield TEXT.format("name", layout.name[0], top + layout.name[1], lane.name)
    cost_x, cost_y = layout.cost[0], top + layout.cost[1]
    for row, words in enumerate(lane.counted_cost().split("; ")):
        yield TEXT.format(f"cost{row}", cost_x, cost_y + row * 21, words)
    for y, words in (top, "server"), (bottom, "browser"):
        yield TEXT.format("before", before, y + 5, words)
        yield LINE.format("side", layout.start, y, layout.end, y)
    yield TEXT.format("before code", before, top + 29, lane.request)

    for sent, events, ended in lane.exchanges:
        arrived, received = x(sent + TRIP_SECONDS), x(ended + TRIP_SECONDS)
        corners = x(sent), bottom, arrived, top, x(ended), top, received, bottom
        yield BAND.format(*corners)
        if not events and ended < END_SECONDS:
            yield LINE.format("down", x(ended), top, received, bottom)
            yield SPOT.format("empty", received, bottom, 5)
    for at in (*(each.sent for each in lane.exchanges), *lane.messages):
        arrived = x(at + TRIP_SECONDS)
        yield ARROW.format("up", x(at), bottom, arrived, top, name)
    for at in lane.messages:
        yield RECT.format("message", x(at) - 5, bottom - 5, 10, 10, 0)

    sent = lane.sent()
    for number, at in sent.items():
        happened, received = x(EVENTS[number]), x(at + TRIP_SECONDS)
        if at > EVENTS[number]:
            yield LINE.format("late", happened, top, x(at), top)
        yield SPOT.format("source", happened, top, 4)
        yield LINE.format("down event", x(at), top, received, bottom)
    for number, at in sent.items():
        # Events of one response share its arrow, the first one in front.
        ahead = sum(sent[other] == at for other in range(1, number))
        share = 1 - ahead * 2 * RADIUS / GAP
        yield dot(x(at + TRIP_SECONDS * share), top + GAP * share, number)
    for at, below, words in lane.notes:
        yield TEXT.format("note", x(at), top + below, words)


def part_picture(part: Part) -> Markup:
    """Draw who connects to whom in the lessons of a part."""
    description, boxes, links = PART_PICTURES[part.title]
    name = part.title.lower().replace(" ", "-")
    drawing = [box_picture(box) for box in boxes]
    drawing += [link_picture(link, name) for link in links]
    return picture(name, PART_SIZE, part.title, description, drawing)


def box_picture(box: Box) -> Markup:
    corner = box.x - BOX_WIDTH / 2, box.y - box.height / 2
    drawing = RECT.format("box", *corner, BOX_WIDTH, box.height, 8)
    words = box.name.split()
    rows = len(words) + bool(box.events)
    for row, word in enumerate(words):
        y = box.y + 5 + 21 * (row - (rows - 1) / 2)
        drawing += TEXT.format("label", box.x, y, word)
    for place, number in enumerate(box.events):
        x = box.x + 25 * (place - (len(box.events) - 1) / 2)
        drawing += dot(x, box.y + 16, number)
    return drawing


def link_picture(link: Link, name: str) -> Markup:
    kind, (x1, y1, x2, y2), words, events = link
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    if kind == "broken":
        return LINE.format(kind, *link.ends) + CROSS.format(x, y)
    drawing = ARROW.format(kind, *link.ends, name)
    if kind == "stream":
        drawing = LINE.format("band", *link.ends) + drawing
    if words:
        drawing += TEXT.format("note", x, y + (33 if events else -9), words)
    for place, number in enumerate(events, 1):
        share = place / (len(events) + 1)
        drawing += dot(x1 + share * (x2 - x1), y1 + share * (y2 - y1), number)
    return drawing
