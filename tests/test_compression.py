"""A compressing proxy does not delay streams."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Client, Server, need, read_until
from npm import install

PROXY = """
const compress = require("compression")();
const http = require("http");

function pass(request, response) {
  const { url, method, headers } = request;
  const options = { port: process.argv[1], path: url, method, headers };
  const passed = http.request(options, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  request.pipe(passed);
}

const server = http.createServer((request, response) => {
  compress(request, response, () => pass(request, response));
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""


@pytest.fixture
def proxy_port(site: Server, tmp_path: Path) -> Iterator[int]:
    install("compression@1.8.2", tmp_path)
    with subprocess.Popen(
        [need("node"), "-e", PROXY, str(site.port)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    ) as process:
        yield int(process.stdout.readline())
        process.kill()


def test_compression_in_a_proxy_does_not_delay_events(proxy_port):
    accepted = {"Accept-Encoding": "gzip"}
    with Client(proxy_port, "GET", "/", headers=accepted) as client:
        assert client.header("Content-Encoding") == "gzip"
    with Client(proxy_port, "GET", "/sse", headers=accepted) as client:
        assert client.header("Content-Encoding") is None
        read_until(client.chunks(), b"data: ")
