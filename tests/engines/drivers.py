"""Drive an installed Firefox or WebKitGTK.

Firefox speaks WebDriver BiDi itself, and WebKitGTK's driver is built from the
same source as the engine. So nothing here needs a driver that someone else must
keep up to date.
"""

import base64
import json
import os
import re
import subprocess
from contextlib import suppress
from itertools import count
from pathlib import Path

import requests
from conftest import VIEWPORT, free_port, need, wait_until
from websocket import create_connection

MINI_BROWSER = "usr/lib/*/webkit*gtk-*/MiniBrowser"
TIMEOUT_SECONDS = 100  # more than a slow machine needs to start a browser
HAS_LOADED = """
(url) => location.href === url && document.readyState === "complete" &&
  !window.isOld
"""


class Engine:
    """A browser. Each subclass knows how to control one."""

    problems: list[str]
    """What the console has shown as an error or a warning."""

    # Engines disagree on how long these commands wait.
    def open(self, url: str) -> None:
        """Load a page, and wait until it has loaded."""
        self._open(url)
        self.wait_for(HAS_LOADED, url)

    def back(self, url: str) -> None:
        """Go back to the page with this URL, and wait until it is there."""
        self._back()
        self.wait_for(HAS_LOADED, url)

    def reload(self) -> None:
        """Reload the page, and wait until it has loaded."""
        url = self.run("() => { window.isOld = true; return location.href; }")
        self._reload()
        self.wait_for(HAS_LOADED, url)

    def wait_for(self, function: str, *arguments, seconds: float = 60):
        """Wait until a function returns something true, and return that."""
        found = []

        def is_true() -> bool:
            found[:] = [self.run(function, *arguments)]
            return bool(found[0])

        try:
            wait_until(is_true, seconds)
        except AssertionError:
            raise AssertionError(f"{function} {arguments}: {found}") from None
        return found[0]


class Firefox(Engine):
    """Firefox without a window, over WebDriver BiDi."""

    name = "firefox"

    def __init__(self, folder: Path):
        self.problems = []
        binary = need("firefox", "firefox-esr")
        log = folder / "log"
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [
                    *(binary, "--headless", "--no-remote"),
                    *("--profile", str(folder), "--remote-debugging-port=0"),
                ],
                stdout=output,
                stderr=output,
            )
        pattern = re.compile(r"BiDi listening on (ws://\S+)\n")
        try:
            wait_until(lambda: pattern.search(log.read_text()))
            url = pattern.search(log.read_text())[1] + "/session"
            self._socket = create_connection(
                url, timeout=TIMEOUT_SECONDS, suppress_origin=True
            )
            self._start()
        except BaseException:
            self._process.kill()
            raise

    def _start(self) -> None:
        self._ids = count(1)
        options = {"unhandledPromptBehavior": {"default": "ignore"}}
        self._call("session.new", capabilities={"alwaysMatch": options})
        self._call("session.subscribe", events=["log.entryAdded"])
        tree = self._call("browsingContext.getTree")
        self.first_tab = tree["contexts"][0]["context"]
        self.switch(self.first_tab)
        self.resize(**VIEWPORT)

    def _call(self, method: str, **parameters) -> dict:
        id = next(self._ids)
        message = {"id": id, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while (answer := json.loads(self._socket.recv())).get("id") != id:
            entry = answer["params"]
            if entry["level"] in ("error", "warn"):
                self.problems.append(entry["text"])
        assert answer["type"] == "success", answer
        return answer["result"]

    def _open(self, url: str) -> None:
        self._navigate("navigate", url=url, wait="complete")

    def _back(self) -> None:
        self._navigate("traverseHistory", delta=-1)

    def _reload(self) -> None:
        self._navigate("reload", wait="complete")

    def _navigate(self, method: str, **parameters) -> None:
        self._call(f"browsingContext.{method}", **self._window, **parameters)

    def run(self, function: str, *arguments):
        """Call a JavaScript function in the page, and return its result."""
        answer = self._call(
            "script.callFunction",
            functionDeclaration=f"""async (text) =>
              JSON.stringify([await ({function})(...JSON.parse(text))])""",
            arguments=[{"type": "string", "value": json.dumps(arguments)}],
            awaitPromise=True,
            target=self._window,
        )
        assert answer["type"] == "success", answer["exceptionDetails"]["text"]
        return json.loads(answer["result"]["value"])[0]

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page, in pixels."""
        size = {"width": width, "height": height}
        self._call("browsingContext.setViewport", **self._window, viewport=size)

    def picture(self) -> bytes:
        answer = self._call("browsingContext.captureScreenshot", **self._window)
        return base64.b64decode(answer["data"])

    def new_tab(self) -> str:
        return self._call("browsingContext.create", type="tab")["context"]

    def switch(self, tab: str) -> None:
        self._window = {"context": tab}

    def close_tab(self) -> None:
        self._call("browsingContext.close", **self._window)

    def quit(self) -> None:
        self._call("browser.close")
        self._socket.close()
        self._process.wait(TIMEOUT_SECONDS)


class WebKit(Engine):
    """WebKitGTK's small browser, in a display that nobody sees.

    Its driver reports no console messages, so the page records its errors
    itself: see recording_app.py.
    """

    name = "webkit"

    def __init__(self, folder: Path):
        self.problems = []
        driver = need("WebKitWebDriver")
        display = folder / "display"
        with display.open("w") as file:
            self._display = subprocess.Popen(
                [
                    *(need("Xvfb"), "-displayfd", str(file.fileno())),
                    *("-screen", "0", "1600x1200x24", "-nolisten", "tcp"),
                ],
                pass_fds=[file.fileno()],
                stderr=subprocess.DEVNULL,
            )
        wait_until(lambda: display.read_text().endswith("\n"))
        port = free_port()
        self._driver = subprocess.Popen(
            [driver, f"--port={port}"],
            env=os.environ
            | {
                "DISPLAY": f":{display.read_text().strip()}",
                # A container may not allow a sandbox. All pages are ours.
                "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._session = requests.Session()
        self._session.trust_env = False  # or a proxy may get the requests
        self._url = f"http://127.0.0.1:{port}"
        try:
            wait_until(self._is_up)
            self._start()
        except BaseException:
            self._stop()
            raise

    def _is_up(self) -> bool:
        with suppress(requests.ConnectionError):
            return self._call("GET", "/status") is not None
        return False

    def _start(self) -> None:
        binary = max(Path("/").glob(MINI_BROWSER))
        options = {"binary": str(binary), "args": ["--automation"]}
        wanted = {
            "webkitgtk:browserOptions": options,
            "timeouts": {"script": TIMEOUT_SECONDS * 1000},
        }
        answer = self._call(
            "POST", "/session", capabilities={"alwaysMatch": wanted}
        )
        self._url += f"/session/{answer['sessionId']}"
        self.first_tab = self._call("GET", "/window")
        self.resize(**VIEWPORT)

    def _call(self, method: str, path: str, **parameters):
        answer = self._session.request(
            method,
            self._url + path,
            json=parameters if method == "POST" else None,
            timeout=TIMEOUT_SECONDS,
        )
        value = answer.json()["value"]
        assert answer.ok, value
        return value

    def _open(self, url: str) -> None:
        self._navigate("/url", url=url)

    def _back(self) -> None:
        self._navigate("/back")

    def _reload(self) -> None:
        self._navigate("/refresh")

    def _navigate(self, path: str, **parameters) -> None:
        self._collect()
        self._call("POST", path, **parameters)

    def _collect(self) -> None:
        recorded = self._run("() => window.recorded?.splice(0) ?? []")
        self.problems += recorded

    def run(self, function: str, *arguments):
        result = self._run(function, *arguments)
        self._collect()
        return result

    def _run(self, function: str, *arguments):
        result, error = self._call(
            "POST",
            "/execute/async",
            script=f"""const [text, done] = arguments;
              (async () => ({function})(...JSON.parse(text)))().then(
                (result) => done([result, null]),
                (error) => done([null, `${{error}}`]),
              );""",
            args=[json.dumps(arguments)],
        )
        assert error is None, error
        return result

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window, so that the page has this size."""
        for _ in range(2):
            frame = self._run(
                "() => [outerWidth - innerWidth, outerHeight - innerHeight]"
            )
            size = {"width": width + frame[0], "height": height + frame[1]}
            self._call("POST", "/window/rect", **size)

    def picture(self) -> bytes:
        return base64.b64decode(self._call("GET", "/screenshot"))

    def new_tab(self) -> str:
        return self._call("POST", "/window/new", type="tab")["handle"]

    def switch(self, tab: str) -> None:
        self._call("POST", "/window", handle=tab)

    def close_tab(self) -> None:
        self._call("DELETE", "/window")

    def quit(self) -> None:
        self._call("DELETE", "")
        self._stop()

    def _stop(self) -> None:
        for process in (self._driver, self._display):
            process.terminate()
            process.wait(TIMEOUT_SECONDS)


ENGINES = {engine.name: engine for engine in (Firefox, WebKit)}
