"""The pictures of the catalogue: their data, drawing and layout."""

from collections import Counter
from itertools import combinations
from xml.etree import ElementTree

import pytest

from demos import PARTS
from website.pictures import (
    END_SECONDS,
    EVENTS,
    LANES,
    LAYOUTS,
    TRIP_SECONDS,
    comparison,
    part_picture,
)

POLLING, LONG_POLLING, WEBSOCKET, EVENT_STREAM = LANES
PICTURES = [
    *(pytest.param(comparison, name, id=name) for name in LAYOUTS),
    *(pytest.param(part_picture, part, id=part.title) for part in PARTS),
]
# Return the box of every visible text, and whether it is in its picture.
VISIBLE_TEXTS = """
() => [...document.querySelectorAll("svg.picture")]
  .filter((svg) => svg.checkVisibility())
  .map((svg) => [...svg.querySelectorAll("text")].map((text) => {
    const { left, right, top, bottom } = text.getBoundingClientRect();
    const scale = svg.getScreenCTM().a;
    const size = parseFloat(getComputedStyle(text).fontSize) * scale;
    const around = svg.getBoundingClientRect();
    const inside = left >= around.left && right <= around.right
      && top >= around.top && bottom <= around.bottom;
    return { words: text.textContent, left, right, size, inside,
      // A line of text is as high as its letters, not as its line height.
      bottom: bottom - 0.2 * size, top: top + 0.2 * size };
  }))
"""

# Return the colour of every text, and the possible colours behind it.
COLOURS = """
() => {
  const colour = (selector, property) => getComputedStyle(
    document.querySelector(selector),
  )[property].match(/[\\d.]+/g).map(Number);
  const accent = colour("circle.event", "fill");
  const share = Number(colour("path.band", "opacity"));
  const plain = [colour("body", "backgroundColor"), colour("rect.box", "fill")];
  const shaded = plain.map((below) => below.map(
    (value, place) => value + share * (accent[place] - value),
  ));
  return [...document.querySelectorAll("svg.picture text")].map((text) => [
    text.textContent,
    getComputedStyle(text).fill.match(/[\\d.]+/g).map(Number),
    text.matches(".event") ? [accent] : [...plain, ...shaded],
  ]);
}
"""


def of_class(svg: ElementTree.Element, kind: str, tag: str = "*"):
    return [
        element
        for element in svg.iter()
        if kind in element.get("class", "").split()
        and tag in ("*", element.tag)
    ]


@pytest.mark.parametrize(("draw", "what"), PICTURES)
def test_a_picture_is_xml_with_a_title_and_a_description(draw, what):
    svg = ElementTree.fromstring(draw(what))
    assert svg.get("role") == "img"
    labels = svg.get("aria-labelledby").split()
    assert [svg.find(f"*[@id='{label}']").tag for label in labels] == [
        "title",
        "desc",
    ]
    assert svg.findtext("title")
    assert svg.findtext("desc").endswith(".")


def test_no_two_elements_of_the_catalogue_share_an_id(client):
    page = client.get("/").text
    svgs = [draw(what) for draw, what in (one.values for one in PICTURES)]
    assert all(svg in page for svg in svgs)
    ids = Counter(
        element.get("id")
        for svg in svgs
        for element in ElementTree.fromstring(svg).iter()
        if element.get("id")
    )
    assert set(ids.values()) == {1}


@pytest.mark.parametrize("lane", LANES, ids=lambda lane: lane.name)
def test_every_lane_delivers_the_same_events_and_none_too_early(lane):
    sent = lane.sent()
    assert list(sent) == list(EVENTS)
    assert all(at >= EVENTS[number] for number, at in sent.items())
    assert max(sent.values()) + TRIP_SECONDS < END_SECONDS


def test_only_polling_sends_events_late():
    assert all(at > EVENTS[n] for n, at in POLLING.sent().items())
    assert LONG_POLLING.sent() == WEBSOCKET.sent() == EVENTS
    assert EVENT_STREAM.sent() == EVENTS


def test_the_cost_of_a_lane_is_counted():
    assert POLLING.counted_cost().startswith("8 requests, 5 empty; ")
    assert LONG_POLLING.counted_cost().startswith("5 requests; ")
    assert EVENT_STREAM.counted_cost().startswith("1 request, ")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_lane_draws_its_data(name):
    x = LAYOUTS[name].x
    svg = ElementTree.fromstring(comparison(name))
    drawn = of_class(svg, "lane")
    for lane, picture in zip(LANES, drawn, strict=True):
        numbers = [int(one.text) for one in of_class(picture, "number")]
        assert numbers == list(EVENTS)
        arrows = of_class(picture, "event", "line")
        assert [
            (float(one.get("x1")), float(one.get("x2"))) for one in arrows
        ] == [(x(at), x(at + TRIP_SECONDS)) for at in lane.sent().values()]
        requests = of_class(picture, "up")
        assert [float(one.get("x1")) for one in requests] == [
            *(x(each.sent) for each in lane.exchanges),
            *map(x, lane.messages),
        ]
        assert len(of_class(picture, "band")) == len(lane.exchanges)
        assert len(of_class(picture, "message")) == len(lane.messages)
    empty = [len(of_class(picture, "empty")) for picture in drawn]
    late = [len(of_class(picture, "late")) for picture in drawn]
    assert (empty, late) == ([5, 0, 0, 0], [4, 0, 0, 0])


def test_events_of_one_response_do_not_overlap():
    svg = ElementTree.fromstring(comparison("narrow"))
    for picture in of_class(svg, "lane"):
        dots = of_class(picture, "event", "circle")
        places = [(float(d.get("cx")), float(d.get("cy"))) for d in dots]
        for place, (x, y) in enumerate(places):
            for other_x, other_y in places[:place]:
                apart = abs(x - other_x) + abs(y - other_y)
                assert apart >= 2 * float(dots[0].get("r"))


@pytest.mark.parametrize(("draw", "what"), PICTURES)
def test_every_drawing_fits_its_view_box(draw, what):
    svg = ElementTree.fromstring(draw(what))
    _, _, *size = map(int, svg.get("viewBox").split())
    for element in svg.iter():
        get = element.attrib.get
        for axis, most, extent in zip(
            "xy", size, ("width", "height"), strict=True
        ):
            places = [
                float(get(key))
                for key in (axis, f"{axis}1", f"{axis}2", f"c{axis}")
                if get(key)
            ]
            around = float(get("r", 0))
            beyond = float(get(extent, 0)) if element.tag == "rect" else 0
            for place in places:
                assert around <= place <= most - around - beyond


def test_words_are_large_enough_and_do_not_overlap(page, site):
    page.goto(site.url)
    for width, height, least in ((1280, 720, 14), (390, 844, 13)):
        page.set_viewport_size({"width": width, "height": height})
        pictures = page.evaluate(VISIBLE_TEXTS)
        assert len(pictures) == 1 + len(PARTS)
        for texts in pictures:
            assert [one["words"] for one in texts if not one["inside"]] == []
            assert min(one["size"] for one in texts) >= least
            for one, other in combinations(texts, 2):
                assert (
                    one["right"] <= other["left"]
                    or other["right"] <= one["left"]
                    or one["bottom"] <= other["top"]
                    or other["bottom"] <= one["top"]
                ), (one["words"], other["words"])


def luminance(rgb: list[float]) -> float:
    shares = [value / 255 for value in rgb]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(*colours: list[float]) -> float:
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_words_have_enough_contrast(page, site):
    page.goto(site.url)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for words, colour, backgrounds in page.evaluate(COLOURS):
            for background in backgrounds:
                assert contrast(colour, background) >= 4.5, (scheme, words)
