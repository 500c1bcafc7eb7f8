"""The limit on open streams."""

import json

import pytest
from conftest import NAMES, open_stream, wait_until
from werkzeug.test import create_environ

from app import create_app


def message(body: bytes) -> str:
    """Return the message of an error in our format or the official one."""
    error = json.loads(body)["error"]
    return error if isinstance(error, str) else error["message"]


def is_open(server, path):
    with server.get(path) as client:
        return client.status == 200


def test_beyond_the_limit_only_streams_get_503(start):
    small = start("gunicorn", FLASK_MAX_STREAMS="3")
    streams = [small.get("/sse?interval=0.05") for _ in range(3)]
    assert [stream.status for stream in streams] == [200, 200, 200]
    for name in NAMES:
        with open_stream(small, name) as refused:
            assert refused.status == 503, name
            assert refused.header("Retry-After") == "5"
            assert message(refused.read()) == (
                "Too many streams are open. Try again in a few seconds."
            )
    with small.get("/demos/hello") as page:
        assert page.status == 200
    with small.post("/real-time-updates/cut") as no_stream:
        assert no_stream.status == 204
    for stream in streams:
        stream.close()
    wait_until(lambda: is_open(small, "/real-time-updates"))


def test_a_slot_is_free_again_after_every_kind_of_response():
    client = create_app({"MAX_STREAMS": 1}).test_client()
    for method, path in [
        ("GET", "/sse?interval=99"),
        ("GET", "/stream/thinking"),
        ("HEAD", "/sse"),
        ("OPTIONS", "/sse"),
        ("POST", "/real-time-updates/cut"),
        ("POST", "/v1/chat/completions"),
    ]:
        for _ in range(3):
            response = client.open(path, method=method, buffered=True)
            assert response.status_code != 503, path


@pytest.mark.parametrize("is_debugging", [False, True])
def test_a_slot_is_free_again_after_an_exception(monkeypatch, is_debugging):
    config = {"MAX_STREAMS": 1, "PROPAGATE_EXCEPTIONS": is_debugging}
    app = create_app(config)
    monkeypatch.setitem(app.view_functions, "clock.stream", lambda: 1 / 0)
    for _ in range(3):
        if is_debugging:
            with pytest.raises(ZeroDivisionError):
                app.test_client().get("/sse")
        else:
            response = app.test_client().get("/sse", buffered=True)
            assert response.status_code == 500
            assert "ZeroDivision" not in response.text
            assert list(response.json) == ["error"]


def test_a_slot_is_free_again_if_the_response_is_never_closed():
    """This happens under `flask run` if a client resets an ended stream."""
    app = create_app({"MAX_STREAMS": 1})
    for _ in range(3):
        statuses = []
        body = app(
            create_environ("/sse?interval=0.01"),
            lambda status, headers: statuses.append(status),  # noqa: B023
        )
        next(iter(body))
        assert statuses == ["200 OK"]
        del body
