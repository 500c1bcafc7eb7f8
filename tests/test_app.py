import json

import pytest
from conftest import (
    COMMANDS,
    NAMES,
    Server,
    media_type,
    open_stream,
    wait_until,
)

from app import create_app, script_source
from demos import DEMOS


@pytest.fixture(scope="module", params=COMMANDS.values())
def small(request):
    """The app with room for three streams."""
    server = Server(request.param, FLASK_MAX_STREAMS="3")
    yield server
    server.stop()


def test_beyond_the_cap_streams_get_503_and_pages_still_work(small):
    open_streams = [small.get("/sse?interval=0.05") for _ in range(3)]
    assert [stream.status for stream in open_streams] == [200, 200, 200]
    for demo in DEMOS:
        with open_stream(small, demo) as refused:
            assert refused.status == 503
            assert refused.header("Retry-After") == "5"
            assert json.loads(refused.read()) == {
                "error": "Too many streams are open. "
                "Try again in a few seconds."
            }
    with small.get("/demos/hello") as page:
        assert page.status == 200
    with small.post("/real-time-updates/cut") as no_stream:
        assert no_stream.status == 204
    for stream in open_streams:
        stream.close()
    wait_until(lambda: is_open(small, "/real-time-updates"))


def is_open(server, path):
    with server.get(path) as client:
        return client.status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sse?interval=99"),
        ("GET", "/stream/thinking"),
        ("HEAD", "/sse"),
        ("OPTIONS", "/sse"),
        ("POST", "/real-time-updates/cut"),
        ("POST", "/v1/chat/completions"),
    ],
)
def test_a_place_is_free_again_after_every_kind_of_answer(method, path):
    client = create_app({"MAX_STREAMS": 1}).test_client()
    for _ in range(3):
        response = client.open(path, method=method, buffered=True)
        assert response.status_code != 503


def test_a_place_is_free_again_after_a_fault(monkeypatch):
    app = create_app({"MAX_STREAMS": 1})
    monkeypatch.setitem(app.view_functions, "clock.stream", lambda: 1 / 0)
    for _ in range(3):
        response = app.test_client().get("/sse", buffered=True)
        assert response.status_code == 500
        assert "ZeroDivision" not in response.text
        assert list(response.json) == ["error"]


def test_a_place_is_free_again_after_a_fault_in_the_debugger(monkeypatch):
    app = create_app({"MAX_STREAMS": 1, "PROPAGATE_EXCEPTIONS": True})
    monkeypatch.setitem(app.view_functions, "clock.stream", lambda: 1 / 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            app.test_client().get("/sse")


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/html,*/*;q=0.8", "text/html"),
        ("*/*", "application/json"),
        ("text/event-stream", "application/json"),
    ],
)
def test_an_error_is_a_page_for_pages_and_json_for_the_rest(
    client, accept, media_type
):
    response = client.get("/nowhere", headers={"Accept": accept})
    assert response.status_code == 404
    assert response.mimetype == media_type


def test_an_error_keeps_the_headers_of_its_status(client):
    response = client.post("/sse")
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]
    assert response.mimetype == "application/json"


def test_an_unknown_lesson_is_a_404_that_names_it(client):
    response = client.get("/demos/nope", headers={"Accept": "text/html"})
    assert response.status_code == 404
    assert "There is no lesson &#39;nope&#39;." in response.text


@pytest.mark.parametrize("demo", DEMOS, ids=NAMES)
def test_every_stream_has_the_headers_that_it_needs(server, demo):
    with open_stream(server, demo) as client:
        assert client.header("Content-Type") == media_type(demo)
        assert client.header("Cache-Control") in ("no-cache", "no-store")
        assert client.header("X-Accel-Buffering") == "no"
        assert client.header("Access-Control-Allow-Origin") == "*"
        assert client.response.headers.get_all("Connection") in (
            ["close"],
            ["keep-alive"],
        )


def test_pages_are_not_for_other_sites(client):
    response = client.get("/demos/hello")
    assert "Access-Control-Allow-Origin" not in response.headers


def test_only_scripts_of_ours_run(client):
    policy = client.get("/demos/hello").headers["Content-Security-Policy"]
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_script_source_is_the_hash_of_the_text():
    assert script_source("") == (
        "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_pages_of_other_sites_change_nothing(client, method):
    headers = {"Sec-Fetch-Site": "cross-site"}
    path = "/real-time-updates/cut"
    response = client.open(path, method=method, headers=headers)
    assert response.status_code == 403
    assert response.json == {
        "error": "Pages of other sites may not change anything here."
    }
