"""The app behind nginx, with the configuration from the README.

The commands are those of the README, run in a temporary folder.
"""

import json
import re
import shutil
import signal
import ssl
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.client import HTTPSConnection, IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from conftest import (
    NAMES,
    PROJECT,
    Client,
    Server,
    free_port,
    need,
    open_stream,
    read_until,
    wait_until,
)
from playwright.sync_api import expect

from demos import relay
from demos.completion import MAX_PROMPT_CHARACTERS
from event_source import parse_events
from website.take import app_files

pytestmark = pytest.mark.own_page

README = (PROJECT / "README.md").read_text("utf-8")
CERTIFICATE, NGINX = re.search(
    r"^(openssl req .+)\n(nginx .+)$", README, re.M
).groups()
GZIP = {
    "http {\n": "http {\ngzip on; gzip_types text/event-stream;\n"
    "gzip_min_length 0;\n",
    "worker_shutdown_timeout 10s": "worker_shutdown_timeout 1s",
}


class TlsClient(Client):
    """One request over TLS, from a client that trusts the certificate."""

    def __init__(self, context, port, method, path, body=None, headers=()):
        self.connection = HTTPSConnection(
            "localhost", port, timeout=60, context=context
        )
        names = {name.replace("_", "-"): headers[name] for name in headers}
        self.connection.request(method, path, body, names)
        self.sock = self.connection.sock
        self._response = None


class Nginx:
    """nginx in front of an app, started as in the README."""

    def __init__(self, folder: Path, app: Server, changes: dict[str, str]):
        need("nginx")
        folder.chmod(0o755)  # if root starts nginx, its workers run as nobody
        self.app = app
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        config = (PROJECT / "nginx.conf").read_text("utf-8")
        for old, new in {
            "8443": f"{self.port}",
            "127.0.0.1:5000": f"127.0.0.1:{app.port}",
            **changes,
        }.items():
            assert config.count(old) == 1
            config = config.replace(old, new)
        (folder / "nginx.conf").write_text(config, "utf-8")
        self.context = ssl.create_default_context(
            cafile=folder / "localhost.crt"
        )
        self.test = subprocess.run(
            f"{NGINX} -t",
            shell=True,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        self._log = folder / "nginx.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                f"exec {NGINX}", shell=True, cwd=folder, stderr=log
            )
        wait_until(lambda: self._is_up() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    def _is_up(self) -> bool:
        try:
            with self.get("/no-such-page") as client:
                return client.status == 404
        except OSError:
            return False

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def get(self, path: str, **headers: str) -> Client:
        return TlsClient(self.context, self.port, "GET", path, None, headers)

    def post(self, path: str, body: bytes = b"", **headers: str) -> Client:
        return TlsClient(self.context, self.port, "POST", path, body, headers)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """The folder in which the command of the README made a certificate."""
    need("openssl")
    folder = tmp_path_factory.mktemp("certificate")
    command = {"shell": True, "check": True, "capture_output": True}
    subprocess.run(CERTIFICATE, cwd=folder, **command)
    return folder


@pytest.fixture(scope="module")
def put_nginx_in_front(
    tmp_path_factory, certificate
) -> Iterator[Callable[..., Nginx]]:
    with ExitStack() as running:

        def put(app: Server, changes: dict[str, str] | None = None) -> Nginx:
            folder = tmp_path_factory.mktemp("nginx")
            shutil.copytree(certificate, folder, dirs_exist_ok=True)
            nginx = Nginx(folder, app, changes or {})
            running.callback(nginx.stop)
            return nginx

        yield put


@pytest.fixture(scope="module")
def app_server() -> Iterator[Server]:
    with Server("gunicorn", FLASK_OFFLINE_WORD_SECONDS="0.01") as running:
        yield running


@pytest.fixture(scope="module")
def nginx(put_nginx_in_front, app_server) -> Iterator[Nginx]:
    """An nginx whose log must show no error."""
    running = put_nginx_in_front(app_server)
    yield running
    assert running.log == ""


@pytest.fixture(scope="module")
def zipping_nginx(put_nginx_in_front, app_server) -> Nginx:
    return put_nginx_in_front(app_server, GZIP)


@pytest.fixture
def browser(browser):
    """A browser that accepts every certificate."""
    new_context = partial(browser.new_context, ignore_https_errors=True)
    return SimpleNamespace(new_context=new_context)


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def test_the_config_is_valid(nginx):
    assert nginx.test.returncode == 0
    assert nginx.test.stderr.splitlines() == [
        "nginx: the configuration file ./nginx.conf syntax is ok",
        "nginx: configuration file ./nginx.conf test is successful",
    ]


def test_the_files_named_in_the_readme_serve_a_copied_lesson(
    put_nginx_in_front, start, app, tmp_path, page
):
    with app.app_context():
        files = app_files("clock")
    rows = "\n".join(re.findall(r"^\| gunicorn.*", README, re.M))
    serving = re.findall("`(.+?)`", rows)
    assert "nginx.conf" in serving  # which Nginx copies
    files |= {name: (PROJECT / name).read_bytes() for name in serving}
    files["website/settings.py"] = b""  # not ours
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    server = start("gunicorn", folder=tmp_path)
    nginx = put_nginx_in_front(server)
    page.goto(nginx.url)
    page.get_by_label("Interval in seconds").fill("0.1")
    press(page, "Start")
    page.get_by_text("The time is").wait_for()
    page.goto("about:blank")  # closes the stream, not the connection to nginx
    wait_until(lambda: server.logged("clock: closed"))
    assert nginx.log == ""


def seconds(setting, file):
    text = (PROJECT / file).read_text("utf-8")
    return int(re.search(rf"^ *{setting}[ =]+(\d+)s?;?$", text, re.M).group(1))


def test_nginx_drops_an_idle_connection_before_the_app_closes_it():
    kept = seconds("keepalive_timeout", "nginx.conf")
    assert 2 < kept < seconds("keepalive", "gunicorn.conf.py")


def test_a_reload_of_nginx_ends_its_old_workers(zipping_nginx):
    with zipping_nginx.get("/sse?interval=0.1") as client:
        assert client.sock.version() == "TLSv1.3"
        assert client.status == 200
        zipping_nginx.process.send_signal(signal.SIGHUP)
        with pytest.raises(IncompleteRead):
            client.read()


def test_limits_the_connections_and_requests_of_an_address(
    put_nginx_in_front, app_server
):
    few = {"connections 500": "connections 3", "100r/s": "1r/m", "1000": "9"}
    nginx = put_nginx_in_front(app_server, few)

    def is_refused(path="/", under="requests"):
        with nginx.get(path) as client:
            return client.status == 429 and f"limiting {under}" in nginx.log

    with ExitStack() as opened:
        for _ in range(3):
            client = opened.enter_context(nginx.get("/sse?interval=0.1"))
            assert client.status == 200
        assert is_refused("/sse", "connections")
    wait_until(is_refused)


def test_all_eight_streams_of_six_connections_open_over_http_2(page, nginx):
    page.goto(f"{nginx.url}/demos/six_connections")
    expect(page.locator("#protocol")).to_have_text("h2")
    press(page, "Start")
    expect(page.locator("#state")).to_have_text("8 open")


def test_polling_websocket_and_stream_deliver_events(page, nginx):
    page.goto(f"{nginx.url}/demos/before_sse")
    page.get_by_label("An event every").fill("0.1")
    page.get_by_label("A poll every").fill("0.1")
    sockets = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    press(page, "Start")
    for way in ("poll", "long", "socket", "stream"):
        events = page.locator(f"#{way} td").nth(1)
        wait_until(lambda events=events: int(events.text_content()) > 2)
    assert [url.partition("/socket")[0] for url in sockets] == [
        nginx.url.replace("https", "wss")
    ]


def test_curl_lines_contain_the_https_url(nginx):
    with nginx.get("/demos/hello") as client:
        page = client.read().decode()
    curl = re.search('<code id="curl">(.*?)</code>', page).group(1)
    assert re.findall("https?://[^/]+", curl) == [nginx.url]


def test_no_stream_is_buffered(nginx):
    for name in NAMES:
        with open_stream(nginx, name) as client:
            assert client.status == 200
            assert next(client.chunks())


def unzipped(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decompress = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress
    return map(decompress, chunks)


@pytest.mark.parametrize(
    ("fixture", "encoding", "read"),
    [
        ("nginx", None, iter),
        ("zipping_nginx", "gzip", unzipped),
    ],
)
def test_an_event_does_not_wait_for_the_next(request, fixture, encoding, read):
    server = request.getfixturevalue(fixture)
    path = "/real-time-updates?interval=10"
    with server.get(path, Accept_Encoding="gzip") as client:
        assert client.header("Content-Encoding") == encoding
        received = read_until(read(client.chunks()), b"}\n\n")
    assert received.count(b"data: ") == 1


STATUS = "(url) => fetch(url).then((response) => response.status)"


def test_the_longest_prompt_fits_into_a_url(page, nginx):
    path = f"/completion?prompt={quote('😀' * MAX_PROMPT_CHARACTERS)}"
    assert len(path) > 48_000
    with nginx.get(path) as client:
        assert client.status == 200
        next(parse_events(client.chunks()))
    page.goto(f"{nginx.url}/demos/completion")
    assert page.evaluate(STATUS, path) == 200


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 413)])
def test_only_the_app_limits_a_body(nginx, more, status):
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    body = json.dumps(chat).encode()
    body += b" " * (relay.MAX_BODY_BYTES - len(body) + more)
    json_type = {"Content_Type": "application/json"}
    with nginx.post("/v1/chat/completions", body, **json_type) as client:
        assert client.status == status
        assert client.header("Content-Type") == "application/json"
        assert json.loads(client.read())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "{url}"}, 204),
        ({"Origin": "{url}", "Sec_Fetch_Site": "same-origin"}, 204),
        ({"Origin": "https://localhost"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "{app.url}"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
    ],
)
def test_only_pages_of_other_sites_are_rejected(nginx, headers, status):
    headers = {
        name: value.format(url=nginx.url, app=nginx.app)
        for name, value in headers.items()
    }
    with nginx.post("/real-time-updates/cut", **headers) as client:
        assert client.status == status


def test_streams_reconnect_once_the_app_has_restarted(
    start, put_nginx_in_front, page
):
    server = start("gunicorn")
    nginx = put_nginx_in_front(server)
    page.goto(f"{nginx.url}/demos/reconnect")
    page.get_by_label("drop_after").fill("100")
    page.locator("[name=retry]").fill("100")
    press(page, "Start")
    page.locator("#log").get_by_text("event 1", exact=True).wait_for()
    with nginx.get("/sse?interval=10") as client:
        assert client.status == 200
        server.stop()
        with pytest.raises(IncompleteRead):
            client.read()  # so that no client takes it for complete
    with nginx.get("/") as down:
        assert down.status == 502
    expect(page.locator("#state")).to_have_text("reconnecting")
    expect(page.locator("#timeline path.cross").nth(2)).to_be_attached()
    start("gunicorn", port=server.port)
    expect(page.locator("#state")).to_have_text("open")
    page.expected = "Failed to load resource"
