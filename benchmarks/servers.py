"""The measured servers: this app and its peers.

A server gets its own core. Its CPU time and memory are those of all its
processes. This needs Linux.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

if sys.platform != "linux":
    raise SystemExit("The benchmarks need Linux.")

PROJECT = Path(__file__).parents[1]
PEERS = PROJECT / "benchmarks" / "peers"
START_SECONDS = 30
EVENTS_PER_SECOND = 20  # of a broadcast
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]

COMMANDS = {
    "this app": (
        "gunicorn benchmarks.stamped:app --bind 127.0.0.1:{port} "
        "--log-level warning"
    ),
    "Express": "node benchmarks/peers/with_express.js {port} {upstream}",
    "sse-starlette": (
        "uvicorn --app-dir benchmarks/peers with_sse_starlette:app "
        "--port {port} --log-level warning"
    ),
    "FastAPI": (
        "uvicorn --app-dir benchmarks/peers with_fastapi:app "
        "--port {port} --log-level warning"
    ),
    "bare `send`": "python benchmarks/peers/bare_send.py {port}",
}
UPSTREAM = "python -m benchmarks.upstream {port} "


def missing() -> dict[str, str]:
    """Return the servers that cannot run here, with the reason.

    Installs Express with npm if Node is available.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        return {"Express": "node or npm is not installed"}
    if not (PEERS / "node_modules" / "express").is_dir():
        npm = ("npm", "install", "--no-package-lock", "--loglevel=error")
        if subprocess.run(npm, cwd=PEERS, stdout=subprocess.PIPE).returncode:
            return {"Express": "npm could not install it"}
    return {}


class Running:
    """A context manager that runs a server on `port`.

    Raises SystemExit if the server does not start.
    """

    def __init__(
        self,
        command: str,
        core: int,
        upstream: int = 9,
        per_second: float = EVENTS_PER_SECOND,
    ):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{upstream}/v1"
        folders = (str(Path(sys.executable).parent), os.environ["PATH"])
        environ = os.environ | {
            "PATH": os.pathsep.join(folders),
            "REDIS_URL": "",
            "FLASK_MAX_STREAMS": "100000",
            "EVENTS_PER_SECOND": str(per_second),
            "OPENAI_BASE_URL": url,
            "OPENAI_API_KEY": "sk-unused",
        }
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # the program inherits it
        self._process = psutil.Popen(
            shlex.split(command.format(port=self.port, upstream=url)),
            cwd=PROJECT,
            env=environ,
        )
        os.sched_setaffinity(0, cores)

    def __enter__(self) -> "Running":
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        raise SystemExit(f"The server did not start: {self._process.args}")

    def __exit__(self, *_) -> None:
        for process in self._processes():
            process.kill()
        self._process.wait()

    def _processes(self) -> list[psutil.Process]:
        if not self._process.is_running():
            return []
        return [*self._process.children(recursive=True), self._process]

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self._processes()]
        return sum(one.user + one.system for one in times)

    def memory_bytes(self) -> int:
        """Return the proportional set size."""
        return sum(one.memory_full_info().pss for one in self._processes())
