import json
import re
from types import SimpleNamespace

from conftest import read_until, wait_until
from playwright.sync_api import expect
from upstream import Upstream, silence, stream

from demos.client import SILENCE_SECONDS
from event_source import parse_events

PATH = "/stream/client?interval=0.05"


def take(client, count):
    events = parse_events(client.chunks())
    return [next(events) for _ in range(count)]


def test_reports_each_connection_and_then_its_events(server):
    with server.get(PATH) as client:
        body = read_until(client.chunks(), b"id: 2\n")
    assert re.match(
        rb":\nevent: connected\ndata: \n\n"
        rb'id: 1\ndata: {"id":1,"number":\d+}\n\nid: 2\n',
        body,
    )


def test_resumes_after_the_last_event_id_of_its_client(site):
    with site.get(PATH, Last_Event_ID="41") as client:
        connected, event = take(client, 2)
    assert (connected.event, connected.data) == ("connected", "41")
    assert event.id == "42"
    assert json.loads(event.data)["id"] == 42


def test_a_cut_makes_python_reconnect_with_no_id_lost_or_repeated(server):
    with server.get(PATH) as client:
        events = parse_events(client.chunks())
        found = [next(events) for _ in range(3)]
        with server.post("/real-time-updates/cut") as cut:
            assert cut.status == 204
        while [one.event for one in found].count("connected") < 2:
            found.append(next(events))
        found.append(next(events))
    *_, last, again, event = found
    assert again.data == last.id
    ids = [one.id for one in found if one.event == "message"]
    assert ids == [str(n) for n in range(1, int(event.id) + 1)]


def test_reads_from_its_own_server_whatever_the_host_header_says(server):
    with Upstream(silence) as elsewhere:
        host = f"127.0.0.1:{elsewhere.server_address[1]}"
        with server.get(PATH, Host=host) as client:
            assert take(client, 2)[1].id == "1"
    assert elsewhere.requests == []


def test_reads_from_its_own_server_without_a_proxy(start):
    with Upstream(silence) as proxy:
        server = start("flask run", HTTP_PROXY=proxy.url)
        with server.get(PATH) as client:
            assert take(client, 2)[1].id == "1"
    assert proxy.requests == []


def test_needs_a_server_that_knows_its_address(client):
    response = client.get(PATH)
    assert response.status_code == 501
    assert response.json["error"] == (
        "This needs `flask run`, or gunicorn on a TCP port."
    )


def test_rejects_pages_of_other_sites(client):
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert client.get(PATH, headers=headers).status_code == 403


def test_rejects_an_interval_out_of_range(client):
    for interval in ("0", "10.1", "x"):
        response = client.get(f"/stream/client?interval={interval}")
        assert response.status_code == 400
        assert response.json["error"] == (
            f"interval must be a number from 0.01 to 10, got {interval!r}."
        )


def test_a_disconnect_wakes_a_reader_that_waits(client):
    first = b"id: 1\ndata: a\n\n"
    with Upstream(stream(first, end="silent")) as own:
        sock = SimpleNamespace(getsockname=lambda: own.server_address)
        environ = {"werkzeug.socket": sock}
        response = client.get(PATH, environ_overrides=environ)
        read_until(response.iter_encoded(), first)
        response.close()
        wait_until(own.connections[0].disconnected.is_set, SILENCE_SECONDS / 2)
    (request,) = own.requests
    assert request.path == "/real-time-updates?interval=0.05"


def test_a_disconnect_ends_both_streams(start, command):
    server = start(command, FLASK_MAX_STREAMS="2")

    def status() -> int:
        with server.get("/sse") as client:
            return client.status

    with server.get(PATH) as client:
        take(client, 2)
        assert status() == 503
    wait_until(lambda: status() == 200)


def test_the_final_event_reports_a_rejected_stream(start, page):
    server = start("flask run", FLASK_MAX_STREAMS="1")
    with server.get(PATH) as client:
        (event,) = parse_events(client.chunks())
    message = "expected an event stream, got 503 and 'application/json'"
    assert (event.event, event.data) == ("failed", message)
    page.expected = "Failed to load resource"
    page.route("**/real-time-updates*", lambda route: route.abort())
    page.goto(f"{server.url}/demos/client")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#problem")).to_have_text(message)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).not_to_contain_text("open")


def test_page_shows_each_id_once_in_both_columns_after_a_cut(lesson_page):
    page = lesson_page("client")
    page.get_by_label("Interval in seconds").fill("0.2")
    page.get_by_role("button", name="Start").click()
    third = page.get_by_role("row", name=re.compile(r"^3 .* s .* s"))
    third.wait_for()
    page.get_by_role("button", name="Cut both").click()
    for column in (2, 3):
        resumed = page.locator(f"tbody td:nth-child({column})")
        resumed.get_by_text("Last-Event-ID:").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("closed")
    cells = page.locator("tbody td").all_text_contents()
    times = r"\d+\.\d s(, Last-Event-ID: \d+)? "
    ids = [int(id) for id in cells[::3]]
    assert ids == list(range(ids[0], ids[0] - len(ids), -1))
    for column in (cells[1::3], cells[2::3]):
        arrived = [text for text in column if text]
        assert column[-len(arrived) :] == arrived  # one may be behind
        assert all(re.fullmatch(times, text) for text in arrived)
        resumed = [text for text in column if "Last-Event-ID" in text]
        assert len(resumed) == 1
