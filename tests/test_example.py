"""Test your own stream in three ways. Here, it is the lesson `clock`.

Copy this file next to your app. It needs pytest, Flask and your stream.
"""

from threading import Event, Thread
from urllib.request import urlopen

import pytest
from flask import Flask
from werkzeug.serving import make_server

from demos.clock import bp, clock


@pytest.fixture
def app():
    app = Flask(__name__)
    app.register_blueprint(bp)
    return app


def test_the_generator_with_a_fake_sleep():
    slept = []
    ticks = clock(2, "It is {}", now=lambda: "noon", sleep=slept.append)
    assert next(ticks).encode() == b"data: It is noon\n\n"
    assert next(ticks).encode() == b"data: It is noon\n\n"
    assert slept == [2, 2]
    ticks.close()  # runs its `finally`, as a disconnect does


def test_the_view_and_its_first_chunks(app):
    # Don't read `response.data`: it waits for the end of the stream.
    with app.test_client().get("/sse?interval=0.01") as response:
        assert response.status_code == 200
        assert response.content_type == "text/event-stream"
        chunks = response.iter_encoded()
        assert next(chunks) == b":\n"
        assert next(chunks).startswith(b"data: The time is ")


@pytest.fixture
def url(app):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    server.server_close()


def test_a_real_server_notices_a_disconnect(url, monkeypatch):
    closed = Event()
    monkeypatch.setattr("demos.clock.logger.info", lambda *_: closed.set())
    with urlopen(f"{url}/sse?interval=0.01", timeout=10) as stream:
        assert stream.readline() == b":\n"
        assert stream.readline().startswith(b"data: The time is ")
        assert not closed.is_set()
    assert closed.wait(10)  # the generator's `finally` has run
