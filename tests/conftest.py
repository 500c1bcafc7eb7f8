"""Fixtures and helpers: real servers, a real browser, and a raw client.

For a test that copies into another project, see test_example.py. Most tests
here take one of these fixtures, the most used first:

    client        Flask's test client: `client.get("/poll")`
    upstream      a language model's API, which answers as the test says
    online_app    the app in this process, which asks `upstream`
    page          an empty page in Chromium
    lesson_page   `lesson_page("clock")` opens that lesson's page in Chromium
    store         runs the test twice: with channels in memory and in Redis
    site          the app under `flask run`, which all tests share
    server        runs it twice: with `site`, and with the app under gunicorn
    live          the app in a thread, so that a test may set its constants
    start         `start("flask run", FLASK_MAX_STREAMS="2")` starts a server
    redis_server  a Redis server, which the tests share
    engine        runs it twice: in Firefox and in WebKit, in tests/engines
    own_redis     a Redis server for one test, which may stop it
    in_redis      keeps channels in `redis_server`, to share them with a server
    online        like `server`, but asks `upstream`

`server.get(path)` returns a Client, which reads a stream as it arrives:

    with server.get("/sse") as client:
        event = next(parse_events(client.chunks()))

With `wait_until`, wait for something that you can observe. Never sleep.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path
from random import randrange
from typing import NoReturn

import pytest
import redis
from upstream import (
    HELLO,
    KEY,
    PATIENCE_SECONDS,
    Upstream,
    reserved_port,
    stream,
)
from werkzeug.serving import make_server

import background
import broker
import language_model
import redis_broker
import sse
from app import app as shared_app
from app import set_up_parts
from demos import LESSONS
from website.pages import texts

PROJECT = Path(__file__).parent.parent
JSON = "application/json"
VIEWPORT = {"width": 1280, "height": 720}
BROWSERS = (
    "chromium-headless-shell",  # without windows, so at a third of the CPU time
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chrome",
)


def wait_until(
    condition: Callable[[], object], seconds: float = PATIENCE_SECONDS
) -> None:
    """Wait until `condition` is true. Fail if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition timed out"
        time.sleep(0.01)


def need(*programs: str) -> str:
    """Return the path of the first program found, or skip the test."""
    for program in programs:
        if path := shutil.which(program):
            return path
    lack(f"needs {' or '.join(programs)}")


def lack(reason: str) -> NoReturn:
    """Skip the test because something is missing. In CI, fail instead."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


# Each xdist worker has its own range of ports, and uses every port only once.
# The system would soon assign the same port to another test or a client.
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_ports = count(11_000 + 2_000 * _worker + randrange(1_000))


def free_port() -> int:
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Address:
    """A port on which an app may be up, and requests to it."""

    def __init__(self, port: int | None = None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def is_up(self) -> bool:
        """Return whether it responds. gunicorn listens before it can."""
        try:
            with self.get("/no-such-page") as client:
                return client.status > 0
        except OSError:
            return False

    def get(self, path: str, **headers: str) -> "Client":
        return Client(self.port, "GET", path, headers=headers)

    def post(self, path: str, body: bytes = b"", **headers: str) -> "Client":
        return Client(self.port, "POST", path, body, headers)


class Server(Address):
    """The app in its own process, started as in the README.

    At the end of a `with` block it is killed. To end it as users do, stop it.
    """

    def __init__(
        self,
        command: str,
        folder: Path = PROJECT,
        port: int | None = None,
        **environ: str,
    ):
        super().__init__(port)
        self.log: list[str] = []
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLASK_", "OPENAI_", "REDIS_", "SECRET_"))
        }
        own = {"FLASK_RUN_PORT": str(self.port), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=folder,
            env=kept | own | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            wait_until(lambda: self.is_up() or self.process.poll() is not None)
            assert self.process.poll() is None, "\n".join(self.log)
        except BaseException:
            self.process.kill()
            raise

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        """Kill it. gunicorn's worker notices, and ends as well."""
        self.process.kill()
        self.process.wait()

    def _read_log(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                self.log.append(line.rstrip("\n"))

    def logged(self, pattern: str) -> list[str]:
        return [line for line in self.log if re.search(pattern, line)]

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait()
        self._reader.join()


class LiveServer(Address):
    """An app in a thread of this process, served as `flask run` does.

    It runs for as long as the `with` block.
    """

    def __init__(self, app):
        super().__init__()
        self._server = make_server("127.0.0.1", self.port, app, threaded=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=[0.01]
        )

    def __enter__(self) -> "LiveServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Client:
    """One request over a real socket, and its response as it arrives.

    Headers are keyword arguments, with `_` instead of `-` in their names.
    """

    def __init__(self, port, method, path, body=None, headers=()):
        self.connection = http.client.HTTPConnection(
            "127.0.0.1", port, timeout=PATIENCE_SECONDS
        )
        names = {name.replace("_", "-"): headers[name] for name in headers}
        self.connection.request(method, path, body, names)
        self.sock = self.connection.sock
        self._response = None

    @property
    def response(self) -> http.client.HTTPResponse:
        if self._response is None:
            self._response = self.connection.getresponse()
        return self._response

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str | None:
        return self.response.getheader(name)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of the body as they arrive."""
        while chunk := self.response.read1(65536):
            yield chunk

    def read(self) -> bytes:
        return self.response.read()

    def close(self) -> None:
        """Disconnect, as a browser does when its tab is closed."""
        if self._response is not None:
            self._response.close()
        self.connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class RedisServer:
    """A Redis server that loses no data when it is killed."""

    def __init__(self, folder: Path, *options: str):
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder, self._options = folder, options
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                need("redis-server"),
                *("--port", str(self.port), "--dir", str(self._folder)),
                *("--appendonly", "yes", "--appendfsync", "always"),
                *("--save", "", *self._options),
            ],
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._is_up)

    def _is_up(self) -> bool:
        try:
            with closing(self.client()) as client:
                return client.ping()
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def clients(self, other_than: redis.Redis) -> list[dict]:
        """Return all connected clients except `other_than`."""
        own = str(other_than.client_id())
        return [one for one in other_than.client_list() if one["id"] != own]

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait()


def open_stream(server: Server, name: str) -> Client:
    """Open the stream of a lesson, as its curl line does."""
    lesson = texts(LESSONS[name])
    if name == "private":
        return server.get(lesson.stream_path, Cookie=log_in(server, "Ada"))
    if lesson.stream_body is None:
        return server.get(lesson.stream_path)
    body = lesson.stream_body.encode()
    answer = server.post(lesson.stream_path, body, Content_Type=JSON)
    if answer.status != 202:
        return answer
    with answer:
        return server.get(answer.header("Location"))


def log_in(server: Server, name: str) -> str:
    """Log in to the lesson `private`, and return the cookie to send."""
    body = json.dumps({"name": name}).encode()
    with server.post("/login", body, Content_Type=JSON) as answer:
        assert answer.status == 200
        return answer.header("Set-Cookie").partition(";")[0]


def media_type(name: str) -> str:
    """Return the Content-Type of a lesson's stream."""
    if name == "html":
        return "text/html; charset=utf-8"
    return "text/event-stream"


NAMES = list(LESSONS)
COMMANDS = {"flask": "flask run", "gunicorn": "gunicorn"}


@pytest.fixture(scope="session")
def site() -> Iterator[Server]:
    """The app with its default settings, run with `flask run`."""
    with Server("flask run") as running:
        yield running


@pytest.fixture(scope="session")
def gunicorn() -> Iterator[Server]:
    """The app with its default settings, run with `gunicorn`."""
    with Server("gunicorn") as running:
        yield running


@pytest.fixture(params=["site", "gunicorn"], ids=COMMANDS)
def server(request) -> Server:
    """The app with its default settings, under each of the two servers."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Return a function that starts servers, which end after the test."""
    with ExitStack() as running:

        def start(command: str, **options) -> Server:
            return running.enter_context(Server(command, **options))

        yield start


@pytest.fixture
def app():
    """The app with empty channels. Tests share it: a new one takes 11 ms."""
    set_up_parts(shared_app.config)
    return shared_app


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def online_app(upstream, monkeypatch):
    """The app, which asks `upstream`. No test reaches its timeout."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    set_up_parts(dict(shared_app.config, UPSTREAM_SILENCE_SECONDS=300))
    yield shared_app
    language_model.session.close()


@pytest.fixture
def live(app) -> Iterator[LiveServer]:
    with LiveServer(app) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_upstream_and_no_redis(monkeypatch):
    for name in os.environ:
        if name.startswith(("OPENAI_", "REDIS_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[RedisServer]:
    """A shared Redis server. No test stops it."""
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    yield running
    running.stop()


@pytest.fixture(params=["memory", "redis"])
def store(request, monkeypatch, app) -> None:
    """Keep the lessons' channels in memory or in Redis, and empty them."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(redis_broker, "BLOCK_MS", 10)
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.client().flushall()
        new = redis_broker.RedisBroker(server.url)
        monkeypatch.setattr(broker, "BROKER", new)


@pytest.fixture
def in_redis(monkeypatch, app, redis_server) -> Iterator[str]:
    """Keep the lessons' channels in Redis. Yield its URL, for other servers."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)  # threads end soon
    monkeypatch.setattr(redis_broker, "BLOCK_MS", 10)
    monkeypatch.setattr(background, "_watched", set())
    new = redis_broker.RedisBroker(redis_server.url)
    monkeypatch.setattr(broker, "BROKER", new)
    yield redis_server.url
    wait_until(lambda: not background._watched)


@pytest.fixture
def own_redis(tmp_path) -> Iterator[RedisServer]:
    """A Redis server for one test, which may stop, kill and restart it."""
    running = RedisServer(tmp_path)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser():
    executable = need(*BROWSERS)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_SECONDS * 1000)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--host-resolver-rules=MAP *.test 127.0.0.1"],
        )
        yield browser
        browser.close()


def new_page(browser):
    """Open a page that records the errors and warnings in its console."""
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    page.problems, page.expected = [], ""
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            message.type in ("error", "warning")
            and page.problems.append(message.text)
        ),
    )
    return page


def renew(page) -> None:
    """Reset a page for the next test."""
    for other in page.context.pages:
        if other is not page:
            other.close()
    page.unroute_all()
    if page.url.startswith("http"):
        page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
    page.goto("about:blank")
    page.context.clear_cookies()
    page.context.clear_permissions()
    page.emulate_media(media="null", color_scheme="null")
    page.set_viewport_size(VIEWPORT)


@pytest.fixture(scope="session")
def used_pages() -> list:
    """Pages to reuse, because opening a page takes a second of CPU time."""
    return []


@pytest.fixture
def page(request, browser, used_pages):
    """A browser page. The test fails if its console shows a problem.

    Tests share pages. A test that does something irreversible, such as adding
    an init script, needs the mark `own_page`.
    """
    own = request.node.get_closest_marker("own_page")
    page = new_page(browser) if own or not used_pages else used_pages.pop()
    listen, listeners = page.on, []

    def on(event, listener):
        listeners.append((event, listener))
        listen(event, listener)

    page.on = on
    yield page
    page.on = listen
    if own or page.is_closed():
        page.context.close()
    else:
        for event, listener in listeners:
            page.remove_listener(event, listener)
        renew(page)
        used_pages.append(page)
    problems, page.problems = page.problems, []
    expected, page.expected = page.expected, ""
    if expected:  # filtered here, because console messages may be late
        problems = [one for one in problems if expected not in one]
    assert problems == []


@pytest.fixture
def lesson_page(page, site):
    """Return a function that opens the page of a lesson."""

    def open_lesson(name: str):
        page.goto(f"{site.url}/demos/{name}")
        return page

    return open_lesson


@pytest.fixture(scope="session", params=["firefox", "webkit"])
def engine(request, tmp_path_factory):
    """Firefox and WebKitGTK, each of which starts once."""
    from drivers import ENGINES

    running = ENGINES[request.param](tmp_path_factory.mktemp(request.param))
    yield running
    running.quit()


@pytest.fixture(scope="module", params=COMMANDS)
def command(request) -> str:
    return COMMANDS[request.param]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.fixture(scope="module")
def online_server(command, port) -> Iterator[Server]:
    """The app. No test reaches the timeout for its upstream."""
    url = f"http://127.0.0.1:{port}/v1"
    environ = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY}
    silence = {"FLASK_UPSTREAM_SILENCE_SECONDS": "300"}
    with Server(command, **environ, **silence) as running:
        yield running


@pytest.fixture
def online(online_server) -> Iterator[Server]:
    """The app with an upstream. Its log never shows a traceback or the key."""
    length = len(online_server.log)
    yield online_server
    log = "\n".join(online_server.log[length:])
    assert "Traceback" not in log
    assert KEY not in log


@pytest.fixture
def upstream(port) -> Iterator[Upstream]:
    """The upstream of the app. Without this fixture, its port is closed."""
    with Upstream(stream(*HELLO), port) as upstream:
        yield upstream


def read_until(chunks: Iterator[bytes], part: bytes) -> bytes:
    """Read until `part` has arrived. Return everything received."""
    received = b""
    for piece in chunks:
        received += piece
        if part in received:
            return received
    raise AssertionError(f"the stream ended with {received!r}")


def without_comments(body: bytes) -> bytes:
    """Return an event stream without the keep-alive comments."""
    return re.sub(rb"(?m)^:\n|^: keep-alive\n\n", b"", body)
